"""The certificate of Tsuzuku, Sato, Sugiyama: Lipschitz-Margin Training (arXiv 1802.04034, NeurIPS 2018).

With K_tj a Lipschitz constant of the difference f_t - f_j of two logits (`bound_pairs`), and t the predicted class, no
change of the input x that is shorter than

    radius(x) = min_{j != t} (f_t(x) - f_j(x)) / K_tj

changes the prediction. Status: exact, in the paper's "++" form; a bound of the logits' rounding errors is subtracted.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

ROUND_DOWN = 1 - 1e-9
"""Factor on every radius."""


def certify_logits(logits: Tensor, pairwise: Tensor, error: Tensor, slope: float) -> tuple[Tensor, Tensor]:
    """The predicted classes t [N], and radii [N] within which no change of the input changes them.

    Args:
        logits: f(x) as computed, finite, [N, C].
        pairwise: K [C, C].
        error: [N, 1], a bound of the difference of a logit between two evaluations, here and within the radius.
        slope: the growth of one evaluation's error for each unit of distance.

    Returns:
        radii are 0 where the margin is within rounding, and infinite where no input changes the prediction.
    """
    prediction = logits.argmax(dim=1)
    margins = logits.gather(1, prediction[:, None]) - logits - 2 * error
    constants = torch.where(pairwise > 0, pairwise + 4 * slope, pairwise)[prediction]
    # A difference that does not depend on the input never limits the radius, unless it is 0.
    radii = torch.where(margins > 0, margins / constants, 0.0)
    return prediction, radii.scatter(1, prediction[:, None], math.inf).amin(dim=1) * ROUND_DOWN

"""Certified radii in an evaluation, and the points that they spare the attacks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..lipschitz import PyTorchLipschitzCertifier
from .estimator_passes import EstimatorPasses
from .options import EvaluationOptions, Samples

WITNESSES = 20
"""The largest number of points that are attacked although they could be spared: witnesses of the certificate."""


@dataclass(frozen=True)
class CertifiedRadii:
    """The certificate of an estimator for the points of an evaluation.

    Attributes:
        radii: the proven radius of each point [N], -1 where the certified class is not the label.
        spared: the points that the attacks leave out, bool [N].
        description: for the report.
    """

    radii: NDArray[np.float64]
    spared: Tensor
    description: dict[str, Any]


def certify_points(
    options: EvaluationOptions, samples: Samples, passes: EstimatorPasses, reach: float
) -> CertifiedRadii | None:
    """Certify the points, if the estimator can; those that need no attack within ``reach`` are spared.

    A certificate is one of exact arithmetic, a verdict one of the network as it computes: only points whose radius
    holds with the rounding of that, too, are spared.
    """
    estimator = options.estimator
    if not isinstance(estimator, PyTorchLipschitzCertifier):
        return None
    start = time.perf_counter()
    prediction, *both = passes.batched.run_whole(
        lambda size: estimator.certify_as_computed(samples.x, size, norm=options.threat.norm)
    )
    radii, computed = (np.where(prediction == samples.y.numpy(), radius, -1.0) for radius in both)
    certified = torch.from_numpy(radii >= reach)
    # Only our own AutoAttack can leave points out; other attacks draw random numbers for a whole batch.
    skips = options.skip_certified and options.backend == "native"
    skips = skips and any(attack.package == "autoattack" for attack in options.attacks)
    spared = leave_witnesses(torch.from_numpy(computed), reach) if skips else torch.zeros_like(certified)
    return CertifiedRadii(
        radii,
        spared,
        {
            "method": "Lipschitz bound, proven",
            "largest constant of a difference of logits (L2)": float(estimator.lipschitz_constants().max()),
            "points not attacked": int(spared.sum()),
            "certified points attacked": int((certified & ~spared).sum()),
            "seconds": time.perf_counter() - start,
        },
    )


def leave_witnesses(radii: Tensor, reach: float) -> Tensor:
    """The points [N] whose radius [N] is at least ``reach``, without those whose radii are the smallest: the witnesses.

    If a certificate is wrong, they are the first to show it.
    """
    spared = radii >= reach
    points = spared.nonzero().flatten()
    spared[points[radii[points].argsort(stable=True)[:WITNESSES]]] = False
    return spared

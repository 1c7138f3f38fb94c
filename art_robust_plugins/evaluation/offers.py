"""What the report says of an estimator that is evaluated by a rule of its own: estimated gradients, uneven ranges."""

from __future__ import annotations

from collections.abc import Sequence

from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ..input_range import InputRange
from .diagnostics import Flag

# A network with logits in [0, 1] for so many images puts them all into one class.
_ENOUGH = 10


def of_estimator(box: InputRange, straight_through: Sequence[str]) -> list[Flag]:
    """Signs in how an estimator takes its inputs.

    Args:
        box: the range of its inputs.
        straight_through: the defences whose gradient is an estimate.
    """
    flags = []
    if straight_through:
        names = ", ".join(straight_through)
        flags.append(
            Flag(
                "straight-through",
                "warning",
                f"{names} has no gradient: attacks that follow gradients took its own estimate of one in its place, by "
                f"default the identity (BPDA).",
                "Verdicts and attacks without gradients (square) ran the defence itself; for the others give it an "
                "estimate_gradient(x, grad) that is closer, and see whether the robust accuracy falls.",
            )
        )
    if not box.even:
        flags.append(
            Flag(
                "uneven-range",
                "note",
                f"Features have clip_values of different widths ({box}), and eps is in these units for each of them.",
                "For a threat in pixels, evaluate PyTorchClassifier(..., clip_values=(0, 1), preprocessing=(mean, "
                "std)) on the pixels, x * std + mean, which is the same classifier.",
            )
        )
    return flags


def of_single_output(estimator: PyTorchClassifier, outputs: Tensor) -> list[Flag]:
    """The sign that the one output of a binary network [N] is a probability, where its loss says a logit."""
    likely = len(outputs) >= _ENOUGH and bool(((outputs >= 0) & (outputs <= 1)).all())
    if not likely or isinstance(estimator.loss, nn.BCELoss):
        return []
    return [
        Flag(
            "probabilities",
            "severe",
            f"The network's one output lies in [0, 1] for all {len(outputs)} images, as a probability does, and "
            f"{type(estimator.loss).__name__} takes it for a logit: all images are of class 1 then.",
            "Remove the network's sigmoid, or give the classifier BCELoss.",
        )
    ]

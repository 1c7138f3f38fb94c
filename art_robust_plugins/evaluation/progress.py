"""The progress of an evaluation: the findings of its clean passes, and each attack's results so far. Data only."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

COUNTS = (
    *("seconds", "forward", "backward", "not_finite", "overturned", "out_of_ball", "out_of_range", "nan", "infinite"),
    *("undecided", "tied"),
)
"""The counts of each batch of an attack's candidates: keys of the saved state."""


@dataclass(frozen=True, eq=False)
class CleanFindings:
    """The findings of the clean passes. The fields are keys of the saved state.

    Attributes:
        clean: the class of each point, int64 [N]; -1 where an output is NaN or all are the same.
        outputs: the outputs of the first batch [n, classes].
        difference: between two passes of the same images, as a share of the outputs' length.
        passes: the number of passes of a verdict.
        seeded_difference: the difference between two passes with the same random numbers, for a randomised network.
        memory: the difference between outputs for the same images with other images passing in between.
        batch_difference: the difference between outputs for an image in different batches.
        probabilities: whether the outputs are softmax probabilities.
        nan: how many points have NaN among their outputs.
        infinite: how many have infinity.
        undecided: how many have the same output for all classes.
        tied: how many have their largest output at the label and at another class.
        gradients: whether a pass computes gradients inside.
        moved: the names of the weights and buffers that a pass changed.
    """

    clean: Tensor
    outputs: Tensor
    difference: float
    passes: int
    seeded_difference: float
    memory: float
    batch_difference: float
    probabilities: bool
    nan: int
    infinite: int
    undecided: int
    tied: int
    gradients: bool
    moved: list[str]

    def to_record(self) -> dict[str, Any]:
        """The findings as entries of the saved state."""
        return dict(vars(self))

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> CleanFindings:
        """The findings in a saved state, whose other entries are passed over."""
        return cls(**{entry.name: record[entry.name] for entry in fields(cls)})


@dataclass(eq=False)
class AttackProgress:
    """The results of one attack so far.

    Attributes:
        fooled: the points that it broke under its own constraint, bool [N].
        counts: sums over its batches, see `COUNTS`.
        farthest: the largest distance of a candidate from its clean image.
        widest: the largest margin at which the verdict overturned an image that the attack had misclassified.
        repeat_difference: the largest difference between two passes of an image that the verdict overturned.
        moved: the names of the weights and buffers that changed while it ran.
        gradients: whether a pass of its images computed gradients inside.
        batches: the numbers of the logical batches that it finished.
    """

    fooled: Tensor
    counts: dict[str, Any] = field(default_factory=lambda: {**dict.fromkeys(COUNTS, 0), "seconds": 0.0})
    farthest: float = 0.0
    widest: float = 0.0
    repeat_difference: float = 0.0
    moved: set[str] = field(default_factory=set)
    gradients: bool = False
    batches: set[int] = field(default_factory=set)

    @classmethod
    def begin(cls, points: int) -> AttackProgress:
        """The progress of an attack that has not begun."""
        return cls(torch.zeros(points, dtype=torch.bool, device="cpu"))

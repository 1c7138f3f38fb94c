"""Flags of an estimator's input processing: estimated gradients, uneven ranges."""

from __future__ import annotations

from collections.abc import Iterator

from ..flags import Flag
from .findings import Findings


def flag_straight_through(findings: Findings) -> Iterator[Flag]:
    """A defence has no gradient, and attacks follow an estimate of one."""
    if findings.straight_through:
        names = ", ".join(findings.straight_through)
        yield Flag(
            "straight-through",
            "warning",
            f"{names} has no gradient: attacks that follow gradients took its own estimate of one in its place, by "
            f"default the identity (BPDA).",
            "Verdicts and attacks without gradients (square) ran the defence itself; for the others give it an "
            "estimate_gradient(x, grad) that is closer, and see whether the robust accuracy falls.",
        )


def flag_uneven_range(findings: Findings) -> Iterator[Flag]:
    """Features have ranges of different widths."""
    if not findings.input_range.even:
        yield Flag(
            "uneven-range",
            "note",
            f"Features have clip_values of different widths ({findings.input_range}), and eps is in these units for "
            f"each of them.",
            "For a threat in pixels, evaluate PyTorchClassifier(..., clip_values=(0, 1), preprocessing=(mean, "
            "std)) on the pixels, x * std + mean, which is the same classifier.",
        )

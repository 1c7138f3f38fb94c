"""Flags of the images that an attack returned: outside the ball, not confirmed by the verdict, not finite."""

from __future__ import annotations

from collections.abc import Iterator

from ..flags import Flag
from ..progress import AttackProgress, CleanFindings
from .differences import RANDOM_DIFFERENCE
from .findings import Findings

# Margins of logits whose sign rounding may change, as a share of the outputs' length (TensorFloat-32, bfloat16).
ROUNDING = 1e-2


def flag_candidates(findings: Findings) -> Iterator[Flag]:
    """The flags of each attack's candidates."""
    for name, progress in findings.progress.items():
        yield from flag_left_the_ball(name, progress)
        yield from flag_not_confirmed(name, progress, findings.clean)
        yield from flag_not_finite(name, progress)


def flag_left_the_ball(name: str, progress: AttackProgress) -> Iterator[Flag]:
    """An attack that is bound to the ball returned images outside of it, or of the range."""
    outside = []
    if progress.counts["out_of_ball"]:
        outside.append(
            f"{progress.counts['out_of_ball']} candidates outside the threat model, the farthest at distance "
            f"{progress.farthest:.4g}"
        )
    if progress.counts["out_of_range"]:
        outside.append(f"{progress.counts['out_of_range']} candidates outside clip_values")
    if outside:
        yield Flag(
            "left-the-ball",
            "severe",
            f"{name} returned {' and '.join(outside)}.",
            "They do not count as successes; check the attack's eps and its units.",
        )


def flag_not_confirmed(name: str, progress: AttackProgress, clean: CleanFindings) -> Iterator[Flag]:
    """An attack misclassified images that the verdict's pass classifies correctly."""
    if progress.counts["overturned"]:
        yield Flag(
            "not-confirmed",
            "warning",
            f"{name} misclassified {progress.counts['overturned']} images in its own passes that the verdict's pass "
            f"classified correctly.",
            f"They count as robust, {_explain_disagreement(clean, progress)}",
        )


def flag_not_finite(name: str, progress: AttackProgress) -> Iterator[Flag]:
    """An attack returned NaN or infinity."""
    if progress.counts["not_finite"]:
        yield Flag(
            "not-finite",
            "warning",
            f"{name} returned NaN or infinity for {progress.counts['not_finite']} images.",
            "They do not count as successes: use an attack that does not divide by a zero gradient.",
        )


def _explain_disagreement(clean: CleanFindings, progress: AttackProgress) -> str:
    """The reason why two passes of an image may disagree, and advice."""
    if clean.batch_difference:
        return "because an image's answer depends on the other images of a pass: see batch-dependent."
    changes = clean.gradients or clean.moved or clean.memory > RANDOM_DIFFERENCE
    if changes or progress.gradients or progress.moved:
        return "because the network changes while it predicts: see dynamic."
    if progress.repeat_difference > RANDOM_DIFFERENCE:
        return (
            f"because the network is random for these images: two of its passes differ by "
            f"{progress.repeat_difference:.1e} of the outputs' length, see randomised."
        )
    widest = progress.widest
    if widest <= 0:
        return "because their label's output and another's are equal, which the attack counts as a success: see ties."
    if widest > ROUNDING:
        return (
            f"by up to {widest:.1e} of the outputs' length, more than sums in another order round: the network jumps "
            f"(it rounds its input, or compares it with a threshold); attack a smooth stand-in of it."
        )
    return (
        "by no more than rounding that depends on the number of images in a pass: compare with another "
        "physical_batch_size, and with a CPU, whose float32 is not TensorFloat-32."
    )

"""Flags of the network's outputs: random ones, probabilities, NaN and infinity."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ..flags import Flag
from ..libraries import SUITES
from .differences import RANDOM_DIFFERENCE
from .findings import Findings

# A network with logits in [0, 1] for so many images puts them all into one class.
ENOUGH_IMAGES = 10


def flag_randomised(findings: Findings) -> Iterator[Flag]:
    """Two passes of the same images differ; severe where no attack averaged over the randomness."""
    if findings.clean.passes == 1:
        yield from _flag_random_candidates(findings)
        return
    averaging = {attack.name for attack in SUITES["rand"]}
    ran = any(result.name in averaging for result in findings.results)
    yield Flag(
        "randomised",
        "warning" if ran else "severe",
        f"Two passes of the same images differ by {findings.clean.difference:.1e} of the outputs' length.",
        "The suite 'rand' averages gradients over the randomness; compare its robust accuracy with this one."
        if ran
        else "Run the suite 'rand', which averages gradients over the randomness.",
    )


def _flag_random_candidates(findings: Findings) -> Iterator[Flag]:
    """The network is random for images that attacks found, but not for clean ones."""
    for name, progress in findings.progress.items():
        if progress.repeat_difference > RANDOM_DIFFERENCE:
            yield Flag(
                "randomised",
                "severe",
                f"Two passes of the same images that {name} found differ by {progress.repeat_difference:.1e} of the "
                f"outputs' length, those of clean images do not: one pass gave each verdict.",
                "Let the network draw its random numbers for every image, so that verdicts average over them, or for "
                "none.",
            )


def flag_probabilities(findings: Findings) -> Iterator[Flag]:
    """The outputs are softmax probabilities."""
    if findings.clean.probabilities:
        yield Flag(
            "probabilities",
            "severe",
            "The network's outputs are softmax probabilities, not logits.",
            "Evaluate the network without its softmax: losses of saturated probabilities have no gradient.",
        )


def flag_single_probability(findings: Findings) -> Iterator[Flag]:
    """The one output of a binary network is a probability, where its loss says a logit."""
    if not findings.single_output or isinstance(findings.loss, nn.BCELoss):
        return
    outputs = findings.clean.outputs[:, 1]
    if len(outputs) >= ENOUGH_IMAGES and bool(((outputs >= 0) & (outputs <= 1)).all()):
        yield Flag(
            "probabilities",
            "severe",
            f"The network's one output lies in [0, 1] for all {len(outputs)} images, as a probability does, and "
            f"{type(findings.loss).__name__} takes it for a logit: all images are of class 1 then.",
            "Remove the network's sigmoid, or give the classifier BCELoss.",
        )


def flag_nan_logits(findings: Findings) -> Iterator[Flag]:
    """The network puts out NaN."""
    return _flag_overflow(findings, "nan", "NaN", "these points count as misclassified")


def flag_infinite_logits(findings: Findings) -> Iterator[Flag]:
    """The network puts out infinity."""
    return _flag_overflow(findings, "infinite", "infinity", "gradients through it are zero or NaN")


def _flag_overflow(findings: Findings, kind: str, value: str, consequence: str) -> Iterator[Flag]:
    clean = getattr(findings.clean, kind)
    candidates = sum(progress.counts[kind] for progress in findings.progress.values())
    if clean or candidates:
        yield Flag(
            f"{kind}-logits",
            "severe",
            f"The network put out {value} for {clean} of {findings.points} clean images and for {candidates} "
            f"candidates.",
            f"Find the operation that overflows; {consequence}.",
        )

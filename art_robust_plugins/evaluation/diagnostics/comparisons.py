"""Flags from comparing attacks: one that should be weaker broke more points."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np

from ..flags import Flag
from ..libraries import SUITES, TRANSFER
from ..results import AttackResult
from .findings import Findings, exceeds_chance

# The smallest shares of points that are worth a flag. The square attack's is AutoAttack's own.
SQUARE_SHARE = 0.002
# Adversarially trained networks lose two to four points of accuracy between these two attacks.
CROSS_ENTROPY_SHARE = 0.08
FGSM_SHARE = 0.01
ONE_STEP_ADVICE = (
    "One step must not be stronger than many, so the gradients are likely masked: run the suite 'standard', and look "
    "for what masks them (saturation, quantisation, a defence)."
)


def flag_not_adversarial(findings: Findings) -> Iterator[Flag]:
    """No attack is bound to the threat model."""
    if not any(result.bounded for result in findings.results):
        yield Flag(
            "not-adversarial",
            "severe",
            "No attack of this run is bound to the threat model.",
            "Do not call this robust_accuracy an adversarial accuracy; run the suite 'standard'.",
        )


def flag_stages(findings: Findings) -> Iterator[Flag]:
    """The flags of a stage of AutoAttack that follows directly on another."""
    standard = {attack.name for attack in SUITES["standard"]}
    stages = [result for result in findings.results if result.name in standard]
    for before, after in pairwise(stages):
        yield from flag_square(before, after)
        yield from flag_cross_entropy(before, after)


def flag_square(before: AttackResult, after: AttackResult) -> Iterator[Flag]:
    """The square attack broke points that attacks along gradients left."""
    broken, points = _count_broken(before, after), len(after.robust)
    if after.name == "square" and exceeds_chance(broken, points, SQUARE_SHARE):
        yield Flag(
            "square-beats-white-box",
            "warning",
            f"square, which uses no gradients, broke another {broken} of {points} points after the attacks "
            f"that follow gradients.",
            "The gradients may be masked: try an attack made for this network, and more queries.",
        )


def flag_cross_entropy(before: AttackResult, after: AttackResult) -> Iterator[Flag]:
    """The attack on logit differences broke many points that the attack on cross-entropy left.

    They are compared only if they ran directly one after the other: a stage between them may have broken these points.
    """
    broken, points = _count_broken(before, after), len(after.robust)
    if (before.name, after.name) == ("apgd-ce", "apgd-t") and exceeds_chance(broken, points, CROSS_ENTROPY_SHARE):
        yield Flag(
            "cross-entropy-misleads",
            "warning",
            f"apgd-t, which follows logit differences, broke another {broken} of {points} points after "
            f"apgd-ce, which follows the cross-entropy.",
            "The cross-entropy's gradients may be masked: do not judge this network by FGSM or PGD.",
        )


def flag_transfer(findings: Findings) -> Iterator[Flag]:
    """Another network's gradients broke points that this network's own left."""
    own = [result.robust for result in findings.results if result.bounded and not result.name.startswith(TRANSFER)]
    for result in findings.results:
        if not (result.name.startswith(TRANSFER) and own):
            continue
        broken, points = int((np.logical_and.reduce(own) & ~result.robust).sum()), len(result.robust)
        if exceeds_chance(broken, points, SQUARE_SHARE):
            yield Flag(
                "transfer-beats-white-box",
                "severe",
                f"{result.name}, which follows another network's gradients, broke {broken} of {points} points that "
                f"the attacks on this network left.",
                "This network's gradients mislead: attack a differentiable stand-in of it, and trust the worst "
                "case only as an upper bound.",
            )


def flag_fgsm(findings: Findings) -> Iterator[Flag]:
    """FGSM broke more than PGD."""
    left = {result.name: int(result.robust.sum()) for result in findings.results}
    points = len(findings.results[0].robust)
    for many in ("pgd-20", "pgd-100"):
        if {"fgsm", many} <= left.keys() and exceeds_chance(left[many] - left["fgsm"], points, FGSM_SHARE):
            yield Flag(
                "fgsm-beats-pgd",
                "warning",
                f"fgsm leaves {left['fgsm']} and {many} leaves {left[many]} of {points} points (clean "
                f"{findings.clean_accuracy:.2%}).",
                ONE_STEP_ADVICE,
            )


def _count_broken(before: AttackResult, after: AttackResult) -> int:
    return int(before.robust.sum()) - int(after.robust.sum())

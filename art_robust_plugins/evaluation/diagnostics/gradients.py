"""Flags from the short attacks: gradients that are missing, zero, random, or misleading."""

from __future__ import annotations

from collections.abc import Iterator

from ..flags import Flag
from .comparisons import FGSM_SHARE, ONE_STEP_ADVICE
from .findings import CHANCE, Findings, exceeds_chance
from .short_attacks import STEPS

ZERO_GRADIENT_SHARE = 0.01
# Plainly trained networks lose up to a quarter of the points between one step and many.
SINGLE_STEP_SHARE = 0.3
# The share of points that may stand against an adversary that may make any image.
UNBOUNDED_ACCURACY = 0.05


def flag_no_gradients(findings: Findings) -> Iterator[Flag]:
    """No gradient reaches the input."""
    obstacle = findings.short_attacks.obstacle
    if obstacle is not None:
        yield Flag(
            "no-gradients",
            "severe",
            f"{obstacle[0].upper()}{obstacle[1:]}.",
            "Attacks that follow gradients were left out: attack a differentiable stand-in of the network.",
        )


def flag_zero_gradients(findings: Findings) -> Iterator[Flag]:
    """The cross-entropy's input gradient is exactly zero."""
    short = findings.short_attacks
    if short.correct and short.zero_gradients / short.correct > ZERO_GRADIENT_SHARE:
        yield Flag(
            "zero-gradients",
            "warning",
            f"The cross-entropy's input gradient is exactly zero at {short.zero_gradients} of the {short.correct} "
            f"correctly classified among the first {short.points} points.",
            "Attacks on the cross-entropy cannot move there: trust those on logit differences (apgd-t, fab-t).",
        )


def flag_random_gradients(findings: Findings) -> Iterator[Flag]:
    """Input gradients differ from pass to pass, though the outputs do not."""
    short = findings.short_attacks
    if short.random_gradients > min(CHANCE, short.points - 1):
        yield Flag(
            "random-gradients",
            "warning",
            f"The input gradients of the same images differ between two passes at {short.random_gradients} of the "
            f"first {short.points} points, though the outputs do not.",
            "Attacks that follow one such gradient at a time mislead: run the suite 'rand', which averages them.",
        )


def flag_one_step_beats_many(findings: Findings) -> Iterator[Flag]:
    """One gradient step broke more than many."""
    short = findings.short_attacks
    if exceeds_chance(short.left_after_many - short.left_after_one, short.points, FGSM_SHARE):
        yield Flag("fgsm-beats-pgd", "warning", _compare_steps(findings), ONE_STEP_ADVICE)


def flag_single_step(findings: Findings) -> Iterator[Flag]:
    """Many steps broke far more than one. (In L1 a step moves a single coordinate.)"""
    short = findings.short_attacks
    if short.norm != "L1" and exceeds_chance(
        short.left_after_one - short.left_after_many, short.points, SINGLE_STEP_SHARE
    ):
        yield Flag(
            "single-step-misleads",
            "note",
            _compare_steps(findings),
            "Do not judge this network by FGSM; if it was trained against single steps, it has overfitted to them "
            "(catastrophic overfitting): train with more steps.",
        )


def flag_short_attack(findings: Findings) -> Iterator[Flag]:
    """A short attack broke, within eps, points that the attacks of this run left."""
    short = findings.short_attacks
    if short.beaten:
        yield Flag(
            "short-attack-beats-this-run",
            "severe" if short.beaten > CHANCE else "note",
            f"{STEPS} steps on logit differences break, within eps, {short.beaten} of the first {short.points} points "
            f"that all attacks of this run left.",
            "They are not counted, so robust_accuracy is too high: "
            + (
                "the suite 'standard' ran and missed them, so try attacks made for this network."
                if short.standard
                else "run the suite 'standard', or attacks made for this network."
            ),
        )


def flag_unbounded_accuracy(findings: Findings) -> Iterator[Flag]:
    """Points stand even where the adversary may make any image."""
    short = findings.short_attacks
    accuracy = short.curve[-1][1]
    if short.obstacle is None and accuracy > UNBOUNDED_ACCURACY:
        yield Flag(
            "eps-does-not-matter",
            "severe",
            f"With eps grown to the whole range of images, {accuracy:.0%} of {short.points} points still stand against "
            f"{STEPS} gradient steps.",
            "Unless the network puts every image into one class, images that break it exist there: its gradients "
            "are masked, and attacks that follow them mislead.",
        )


def _compare_steps(findings: Findings) -> str:
    short = findings.short_attacks
    return (
        f"On the first {short.points} points, one gradient step leaves {short.left_after_one} and {STEPS} steps leave "
        f"{short.left_after_many}."
    )

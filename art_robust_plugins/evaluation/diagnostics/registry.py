"""Every flag's test, in the order in which a report lists flags of the same severity.

To add a flag: write a function that takes `Findings` and yields the `Flag`, with its threshold beside it, in a file of
this folder, and add it to `FLAG_TESTS`. If it needs a measurement that `Findings` lacks, add one where the others are
made: in ``clean.py`` for passes of clean images, in ``short_attacks.py`` for attacks of the diagnostics' own.
"""

from __future__ import annotations

from ..flags import Flag, merge_flags
from . import answers, candidates, certificate, comparisons, estimator, gradients, outputs
from .findings import Findings, FlagTest

FLAG_TESTS: tuple[FlagTest, ...] = (
    outputs.flag_randomised,
    outputs.flag_probabilities,
    outputs.flag_nan_logits,
    outputs.flag_infinite_logits,
    candidates.flag_candidates,
    gradients.flag_no_gradients,
    gradients.flag_zero_gradients,
    gradients.flag_random_gradients,
    gradients.flag_one_step_beats_many,
    gradients.flag_single_step,
    gradients.flag_short_attack,
    gradients.flag_unbounded_accuracy,
    estimator.flag_straight_through,
    estimator.flag_uneven_range,
    outputs.flag_single_probability,
    answers.flag_dynamic,
    answers.flag_batch_dependent,
    answers.flag_no_decision,
    answers.flag_ties,
    comparisons.flag_not_adversarial,
    comparisons.flag_stages,
    comparisons.flag_transfer,
    comparisons.flag_fgsm,
    certificate.flag_broken_certificate,
    certificate.flag_rounded_certificate,
)


def run_diagnostics(findings: Findings) -> list[Flag]:
    """The flags of a finished evaluation, the gravest first. None of them stops an evaluation."""
    return merge_flags([flag for test in FLAG_TESTS for flag in test(findings)])

"""Passes of clean images: their classes, and signs that the network has no fixed answer for an image."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ..bridge import outputs_are_probabilities
from .diagnostics import RANDOM_DIFFERENCE, measure_difference
from .diagnostics.faithfulness import (
    find_ties,
    find_undecided,
    measure_company,
    measure_memory,
    measure_repeat_difference,
    measure_seeded_difference,
)
from .estimator_passes import EstimatorPasses
from .options import EvaluationOptions, Samples
from .progress import CleanFindings
from .verdicts import RANDOM_PASSES, DecisionRule


class _Constancy(NamedTuple):
    """Measures of how far a network's answers for an image differ; see `CleanFindings`."""

    difference: float
    memory: float
    seeded_difference: float
    batch_difference: float

    @property
    def randomised(self) -> bool:
        return self.difference > RANDOM_DIFFERENCE


def inspect_clean(options: EvaluationOptions, samples: Samples, passes: EstimatorPasses) -> CleanFindings:
    """Classify the clean images, and look for what makes an evaluation misleading.

    Args:
        options: of the evaluation.
        samples: the points.
        passes: through the estimator.
    """
    outputs = passes.predict(samples.x)
    again = passes.predict(samples.x[: options.batch_size])
    constancy = _measure_constancy(options, samples.x, passes, outputs, again)
    rule = DecisionRule(RANDOM_PASSES if constancy.randomised else 1, outputs_are_probabilities(outputs), options.seed)
    judged = [outputs] if rule.repeats == 1 else rule.predict(passes.predict, samples.x)
    total = rule.average(judged)
    undecided = find_undecided(total)
    return CleanFindings(
        clean=rule.classify(judged),
        outputs=again,
        passes=rule.repeats,
        probabilities=rule.probabilities,
        nan=int(outputs.isnan().any(dim=1).sum()),
        infinite=int(outputs.isinf().any(dim=1).sum()),
        undecided=int(undecided.sum()),
        tied=int((find_ties(total, samples.y) & ~undecided).sum()),
        gradients=passes.weights.taken,
        moved=sorted(passes.changed),
        **constancy._asdict(),
    )


def _measure_constancy(
    options: EvaluationOptions, x: Tensor, passes: EstimatorPasses, outputs: Tensor, again: Tensor
) -> _Constancy:
    low, high = passes.range.low, passes.range.high
    difference, memory, company, seeded = measure_difference(outputs[: len(again)], again), 0.0, 0.0, 0.0
    if difference <= RANDOM_DIFFERENCE:  # any two passes of a randomised network differ
        memory = measure_memory(passes.predict_unrestored, x, low, high)
        passes.restore()
        company = measure_company(passes.predict, x, outputs[: len(again)], low, high, passes.batched.size)
        if max(memory, company) > RANDOM_DIFFERENCE:
            difference = max(difference, measure_repeat_difference(passes.predict, x))
    if difference > RANDOM_DIFFERENCE:
        seeded = measure_seeded_difference(passes.predict, x, options.seed)
        memory = company = 0.0
    return _Constancy(difference, memory, seeded, company)

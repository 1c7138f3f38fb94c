"""Schedulers that a user gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ExponentialLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from art_robust_plugins import (
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
)

from .small import LINF, X, Y, check_refusal, classifier, fit


class NeedsEpoch:
    def step(self, epoch: int) -> None:
        raise AssertionError("never called")


class Around:
    """A scheduler around something else."""

    def __init__(self, inner: Any) -> None:
        self.held = {"inner": [inner]}

    def step(self, *arguments: Any) -> None:
        self.held["inner"][0].step(*arguments)


ELSEWHERE = SGD([nn.Parameter(torch.ones(1))], 0.1)
STEPS = {"scheduler_interval": "step"}  # 5 in an epoch, 10 in all
BAD_SCHEDULERS: dict[str, tuple[Callable[[Optimizer], Any], dict[str, Any], str]] = {
    "class": (lambda _: StepLR, {}, "the class StepLR"),
    "function": (lambda _: lambda epoch: 1.0, {}, "function"),
    "other optimizer": (lambda _: StepLR(ELSEWHERE, 1), {}, "StepLR over another SGD"),
    "other optimizer, chained": (lambda _: ChainedScheduler([StepLR(ELSEWHERE, 1)]), {}, "over another SGD"),
    "optimizer": (lambda o: o, {}, "the optimizer SGD"),
    "optimizer elsewhere": (lambda _: ELSEWHERE, {}, "the optimizer SGD"),
    "around another optimizer": (lambda _: Around(ELSEWHERE), {}, "Around around another SGD"),
    "around one over another": (lambda _: Around(Around(StepLR(ELSEWHERE, 1))), {}, "Around around another SGD"),
    "around a plateau": (lambda o: Around(ReduceLROnPlateau(o)), {}, "ReduceLROnPlateau within Around"),
    "arguments": (lambda _: NeedsEpoch(), {}, "NeedsEpoch needs epoch"),
    "too short": (lambda o: OneCycleLR(o, 0.1, total_steps=9), STEPS, "9 of 9 steps to go"),
    "part too short": (
        lambda o: SequentialLR(o, [StepLR(o, 1), OneCycleLR(o, 0.1, total_steps=7)], [2]),
        STEPS,
        "at least the 8",
    ),
    "nothing to monitor": (lambda o: ReduceLROnPlateau(o, "max"), {}, "mode 'max'"),
}


@pytest.mark.parametrize("case", BAD_SCHEDULERS)
def test_schedulers_that_would_fail_or_do_nothing_are_refused_at_once(case: str) -> None:
    make, options, word = BAD_SCHEDULERS[case]
    estimator = classifier()
    trainer = StandardTrainer(estimator, options=TrainingOptions(**options))
    check_refusal(trainer, "scheduler: ", word, scheduler=make(estimator.optimizer))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda o: OneCycleLR(o, 0.1, total_steps=10), STEPS),
        (lambda o: SequentialLR(o, [StepLR(o, 1), OneCycleLR(o, 0.1, total_steps=8)], [2]), STEPS),
        (lambda o: ChainedScheduler([StepLR(o, 1), ExponentialLR(o, 0.9)]), {}),
        (lambda o: Around(StepLR(o, 1)), {}),
        (lambda o: Around(Around([StepLR(o, 1), StepLR(ELSEWHERE, 1)][0])), {}),
    ],
)
def test_schedulers_that_just_fit_run(make: Any, options: dict[str, Any]) -> None:
    estimator = classifier()
    fit(StandardTrainer(estimator, options=TrainingOptions(**options)), scheduler=make(estimator.optimizer))


class Recording(ReduceLROnPlateau):
    def step(self, metrics: Any, epoch: Any = None) -> None:
        self.seen = [*getattr(self, "seen", []), metrics]
        super().step(metrics, epoch)


@pytest.mark.parametrize(
    ("mode", "threat", "key"),
    [
        ("min", LINF, "loss"),
        ("max", None, "validation_accuracy"),
        ("max", ThreatModel("Linf", 0.02), "validation_robust_accuracy"),
    ],
)
def test_what_a_plateau_monitors(mode: Any, threat: ThreatModel | None, key: str) -> None:
    estimator = classifier()
    scheduler = Recording(estimator.optimizer, mode)
    trainer = StandardTrainer(estimator, threat=threat, options=TrainingOptions(validation_steps=1))
    fit(trainer, scheduler=scheduler, validation_data=(X[:40], Y[:40]), nb_epochs=3)
    assert scheduler.seen == [record[key] for record in trainer.history]

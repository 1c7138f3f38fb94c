"""Learning rates that follow a formula."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_robust_plugins import (
    StandardTrainer,
    TrainingOptions,
)
from art_robust_plugins.training.engine.learning_rates import one_cycle

from .runs import X, Y, classifier, named_weights, network, same_named, train


class Rates(StandardTrainer):
    """Keeps the learning rate of each step."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.rates: list[float] = []

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.rates.append(self.classifier.optimizer.param_groups[0]["lr"])
        return super().training_loss(x, y)


def test_schedules_are_their_formulas() -> None:
    steps, epochs, rate = 4, 5, 0.05
    total = steps * epochs
    time = np.arange(total)
    shared: dict[str, Any] = {"kind": Rates, "epochs": epochs}

    cosine = train(**shared, schedule="cosine")
    np.testing.assert_allclose(cosine.rates, rate * (1 + np.cos(np.pi * time / total)) / 2, rtol=1e-12)
    warm = train(**shared, schedule="cosine", warmup_epochs=1.5)
    rest = (1 + np.cos(np.pi * (time - 6) / (total - 6))) / 2
    np.testing.assert_allclose(warm.rates, rate * np.where(time < 6, (time + 1) / 7, rest), rtol=1e-12)
    stairs = train(**shared, schedule="piecewise", milestones=[1, 2.5], milestone_decay=0.2)
    np.testing.assert_allclose(stairs.rates, rate * 0.2 ** ((time >= 4).astype(int) + (time >= 10)), rtol=1e-12)

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], rate)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total)
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    cycle = train(**shared, schedule="one-cycle")
    np.testing.assert_allclose(cycle.rates, expected, rtol=1e-9)
    assert train(**shared, schedule="constant").rates == [rate] * total


@pytest.mark.parametrize("total", [1, 2, 3, 4, 10])
def test_short_cycles_stay_between_their_ends(total: int) -> None:
    factors = [one_cycle(total)(step) for step in range(total + 1)]
    assert all(1 / 250_000 <= factor <= 1 for factor in factors)
    assert factors[-2:] == [pytest.approx(1 / 250_000)] * min(2, total + 1)


def test_a_schedule_leaves_the_optimizer_as_it_was_and_begins_anew() -> None:
    model = network()
    estimator = classifier(model)
    trainer = Rates(estimator, options=TrainingOptions(seed=0, schedule="cosine"))
    before = {name: value for name, value in estimator.optimizer.param_groups[0].items() if name != "params"}
    for _ in range(2):
        trainer.rates.clear()
        trainer.fit(X[:64], Y[:64], batch_size=32, nb_epochs=2, verbose=False)
        assert trainer.rates == pytest.approx([0.05 * (1 + np.cos(np.pi * t / 4)) / 2 for t in range(4)])
        after = {name: value for name, value in estimator.optimizer.param_groups[0].items() if name != "params"}
        assert after == before
    with pytest.raises(ValueError, match=r"^scheduler: got ExponentialLR .*'cosine'"):
        train(schedule="cosine", scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5))
    stream = (batch for batch in [])

    class Stream:
        def __iter__(self) -> Any:
            return stream

    with pytest.raises(ValueError, match=r"^schedule: got 'cosine' "):
        trainer.fit_loader(Stream(), verbose=False)


class Stopped(StandardTrainer):
    """Is stopped in its third epoch, once."""

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        if "STOPPED" in os.environ and len(self.history) == 2:
            raise KeyboardInterrupt
        return super().training_loss(x, y)


def test_a_training_can_be_too_short_for_a_schedule() -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs: got 2 of 2 epochs,"):
        train(schedule="cosine", warmup_epochs=2)
    with pytest.raises(ValueError, match=r"schedule: got 'one-cycle' for 3 steps,"):
        train(schedule="one-cycle", samples=96, epochs=1)


def test_a_rate_that_is_a_tensor_comes_back() -> None:
    rate = torch.tensor(0.01)
    trainer = train(optimizer=lambda model: torch.optim.Adam(model.parameters(), rate), schedule="cosine")
    assert trainer.classifier.optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.01


def test_the_history_has_the_rate_of_each_epochs_last_step() -> None:
    trainer = train(kind=Rates, schedule="cosine", epochs=3)
    assert [record["learning_rate"] for record in trainer.history] == trainer.rates[3::4]


@pytest.mark.parametrize(("length", "sentence"), [(2, "got more batches than the 2"), (9, "got 4 batches in epoch 1")])
def test_a_schedule_needs_the_length_that_a_loader_says(length: int, sentence: str) -> None:
    class Loader:
        def __len__(self) -> int:
            return length

        def __iter__(self) -> Iterator[Any]:
            return iter([(X[:10], Y[:10])] * 4)

    with pytest.raises(ValueError, match=f"loader: {sentence}"):
        StandardTrainer(classifier(), options=TrainingOptions(schedule="cosine")).fit_loader(Loader(), verbose=False)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "piecewise"])
def test_schedules_resume(schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    milestones = (1, 2.25) if schedule == "piecewise" else ()
    shared: dict[str, Any] = {"kind": Stopped, "epochs": 4, "schedule": schedule, "milestones": milestones}
    whole = train(**shared)
    monkeypatch.setenv("STOPPED", "1")
    with pytest.raises(KeyboardInterrupt):
        train(**shared, checkpoint_dir=tmp_path)
    monkeypatch.delenv("STOPPED")
    resumed = train(**shared, checkpoint_dir=tmp_path, resume=True)
    assert same_named(named_weights(whole), named_weights(resumed))
    assert [record["learning_rate"] for record in whole.history] == [
        record["learning_rate"] for record in resumed.history
    ]
    longer = {**shared, "epochs": 5, "checkpoint_dir": tmp_path, "resume": True}
    if schedule == "piecewise":
        train(**longer)
    else:  # the whole curve belongs to the number of epochs
        with pytest.raises(ValueError, match=r"^resume: .*nb_epochs 4, .* 5"):
            train(**longer)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"schedule": "linear"}, "schedule: got 'linear',"),
        ({"warmup_epochs": 1}, "warmup_epochs: got 1 with schedule 'constant',"),
        ({"schedule": "cosine", "warmup_epochs": -1}, "warmup_epochs: got -1,"),
        ({"schedule": "piecewise"}, "milestones: got () with schedule 'piecewise',"),
        ({"milestones": [1]}, "milestones: got [1] with schedule 'constant',"),
        ({"schedule": "piecewise", "milestones": [2, 1]}, "milestones: got [2, 1],"),
        ({"schedule": "piecewise", "milestones": 3}, "milestones: got 3,"),
        ({"schedule": "piecewise", "milestones": [1], "milestone_decay": 0}, "milestone_decay: got 0,"),
    ],
)
def test_schedules_are_checked(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        TrainingOptions(**options)
    assert str(error.value).startswith(sentence)

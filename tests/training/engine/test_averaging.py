"""The average of the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from art_robust_plugins import (
    StandardTrainer,
    TrainingOptions,
)

from ..builders import watch_validations
from .runs import X, Y, named_weights, resumes_exactly, same_named, train


class Recording(StandardTrainer):
    """Keeps the weights before each step, and those that are validated."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.steps: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.steps.append(named_weights(self))
        return super().training_loss(x, y)

    def fit(self, *arguments: Any, **settings: Any) -> None:
        with watch_validations(lambda _: self.validated.append(named_weights(self))):
            super().fit(*arguments, **settings)


def test_the_average_of_the_weights_is_the_formula() -> None:
    decay = 0.7
    plain = train(kind=Recording, epochs=3)
    averaged = train(kind=Recording, epochs=3, ema_decay=decay, validation=(X[:50], Y[:50]))
    assert all(same_named(one, other) for one, other in zip(plain.steps, averaged.steps, strict=True))
    visited = [*plain.steps, named_weights(plain)]
    names = dict(plain.classifier.model.named_parameters())
    by_hand = {name: visited[0][name].double() for name in names}
    validated = []
    for step, after in enumerate(visited[1:], start=1):
        by_hand = {name: decay * by_hand[name] + (1 - decay) * after[name].double() for name in names}
        if step % 4 == 0:  # an epoch has 4 steps
            validated.append(by_hand)
    result = named_weights(averaged)
    for name in result:
        if name in names:
            torch.testing.assert_close(result[name].double(), by_hand[name], rtol=1e-5, atol=1e-7)
        else:  # batch normalisation's running statistics are those of the trained network
            assert torch.equal(result[name], visited[-1][name])
    assert len(averaged.validated) == len(validated) == 3
    for one, other in zip(averaged.validated, validated, strict=True):
        for name in names:
            torch.testing.assert_close(one[name].double(), other[name], rtol=1e-5, atol=1e-7)


def test_the_best_epoch_holds_averaged_weights() -> None:
    validation = (X[:100], (Y[:100] + 1) % 10)  # wrong labels: it only gets worse
    trainer = train(kind=Recording, epochs=3, ema_decay=0.9, validation=validation, keep_best=True)
    found = [record["validation_accuracy"] for record in trainer.history]
    best = int(np.argmax(found))
    assert same_named(named_weights(trainer), trainer.validated[best])
    assert best < 2
    assert not same_named(named_weights(trainer), trainer.steps[4 * (best + 1)])  # nor those that were trained


def test_going_back_to_earlier_weights_starts_the_average_anew() -> None:
    class Backward(Recording):
        def end_epoch(self, record: dict[str, float]) -> None:
            self.classifier.model.load_state_dict(self.steps[0])
            record["rolled_back"] = 1.0

    trainer = train(kind=Backward, epochs=1, ema_decay=0.9)
    assert same_named(named_weights(trainer), trainer.steps[0])


@pytest.mark.parametrize("keep_best", [False, True])
def test_the_average_is_resumed(tmp_path: Path, keep_best: bool) -> None:
    validation = (X[:50], (Y[:50] + 1) % 10)
    resumes_exactly(tmp_path, ema_decay=0.9, keep_best=keep_best, validation=validation)
    with pytest.raises(ValueError, match=r"^resume: .*ema_decay 0\.9, .* None"):
        train(epochs=5, checkpoint_dir=tmp_path / "parts", resume=True, keep_best=keep_best, validation=validation)


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1, "0.9", True, float("nan")])
def test_a_decay_lies_between_0_and_1(decay: Any) -> None:
    with pytest.raises(ValueError, match=r"ema_decay: got .*,"):
        TrainingOptions(ema_decay=decay)

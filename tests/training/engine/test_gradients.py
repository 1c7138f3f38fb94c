"""Batches that are cut into parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_robust_plugins import (
    StandardTrainer,
    TrainingOptions,
)

from .runs import PGD, X, Y, classifier, close, named_weights, train, without_normalisation


@pytest.mark.parametrize("parts", [3, 7])
def test_parts_give_the_gradient_of_the_whole_batch(parts: int) -> None:
    """Batches of 32, which 3 and 7 do not divide, and a last one of 4, which has fewer samples than parts."""
    shared: dict[str, Any] = {**PGD, "epochs": 2}
    shared["method"] = {**PGD["method"], "start": "none", "clean_weight": 0.5}
    whole = train(without_normalisation(), **shared)
    cut = train(without_normalisation(), **shared, accumulation_steps=parts)
    assert close(named_weights(whole), named_weights(cut), atol=1e-6)
    for one, other in zip(whole.history, cut.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_the_optimizer_steps_once_for_all_parts_and_the_method_sees_each() -> None:
    seen: list[int] = []

    class Sizes(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(len(x))
            return super().training_loss(x, y)

    # With norm clipping, two steps on halves would go twice as far as one step on the whole.
    shared: dict[str, Any] = {"kind": Sizes, "samples": 10, "batch_size": 10, "epochs": 1, "max_gradient_norm": 1e-3}
    whole = train(without_normalisation(), **shared)
    cut = train(without_normalisation(), **shared, accumulation_steps=4)
    assert seen == [10, 3, 3, 2, 2]
    assert close(named_weights(whole), named_weights(cut), atol=1e-8)


def test_a_part_whose_loss_is_not_finite_is_named_by_its_step() -> None:
    class Breaking(StandardTrainer):
        calls = 0

        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return super().training_loss(x, y) * (torch.nan if self.calls == 6 else 1.0)

    with pytest.raises(FloatingPointError, match=r"loss .*nan .*epoch 1, step 3"):
        train(kind=Breaking, accumulation_steps=2)


def test_parts_need_a_loss_that_averages() -> None:
    for loss in (nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(weight=torch.ones(10))):
        estimator = classifier()
        estimator._loss = loss
        trainer = StandardTrainer(estimator, options=TrainingOptions(accumulation_steps=2))
        with pytest.raises(ValueError, match=r"^classifier: accumulation_steps "):
            trainer.fit(X, Y, verbose=False)
    with pytest.raises(ValueError, match=r"^accumulation_steps: got 2 .*'reduce-overhead'"):
        TrainingOptions(accumulation_steps=2, compile="reduce-overhead")
    with pytest.raises(ValueError, match="accumulation_steps: got 0,"):
        TrainingOptions(accumulation_steps=0)

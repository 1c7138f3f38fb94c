"""channels_last and lower precision."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_robust_plugins import (
    StandardTrainer,
    TrainingOptions,
)

from .runs import X, Y, classifier, close, named_weights, resumes_exactly, same_named, train, two_convolutions


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.05, momentum=0.9), torch.optim.Adam])
def test_fused_steps_in_channels_last_go_on_from_an_earlier_training(optimizer: Any) -> None:
    """What the optimizer keeps of the weights must lie in memory as they do."""
    results = []
    for options in ({}, {"channels_last": True}, {"channels_last": True, "fused_optimizer": True}):
        model = two_convolutions()
        estimator = classifier(model, optimizer=optimizer)
        for further in ({}, options):
            trainer = StandardTrainer(estimator, options=TrainingOptions(seed=0, **further))
            trainer.fit(X[:64], Y[:64], batch_size=32, nb_epochs=2, verbose=False)
        results.append(named_weights(trainer))
    assert close(results[0], results[1])
    assert close(results[0], results[2])


def test_fused_steps_in_channels_last_resume(tmp_path: Path) -> None:
    resumes_exactly(tmp_path, model=two_convolutions, channels_last=True, fused_optimizer=True)


def test_after_training_in_channels_last_everything_lies_as_it_did() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3)),
        *(nn.Flatten(), nn.Linear(16, 10)),
    )
    model[4].to(memory_format=torch.channels_last)  # the user's own choice, which stays
    model.register_buffer("expanded", torch.ones(1, 3, 1, 1).expand(1, 3, 8, 8))
    before = [parameter.stride() for parameter in model.parameters()]
    last = torch.channels_last
    seen: list[bool] = []

    def look(module: nn.Module, *_: Any) -> None:
        if module.training:
            seen.append(module.weight.is_contiguous(memory_format=last))

    for layer in (model[2], model[4]):
        layer.register_forward_hook(look)
    trainer = train(model, optimizer=lambda model: torch.optim.Adam(model.parameters()), channels_last=True)
    assert seen
    assert all(seen)
    assert [parameter.stride() for parameter in model.parameters()] == before
    assert not model[2].weight.is_contiguous(memory_format=last)
    assert model[4].weight.is_contiguous(memory_format=last)
    for parameter in model.parameters():
        state = trainer.classifier.optimizer.state[parameter]
        assert state["exp_avg"].stride() == parameter.grad.stride() == parameter.stride()


def test_losses_of_bfloat16_outputs_are_in_float32() -> None:
    class Precise(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            loss = super().training_loss(x, y)
            assert self.logits(x).dtype == loss.dtype == torch.float32
            return loss

    assert not same_named(named_weights(train(kind=Precise, mixed_precision="bf16")), named_weights(train()))

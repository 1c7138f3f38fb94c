"""The loop is plain torch, and drives what ART's contract asks for."""

from __future__ import annotations

import platform
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.defences.trainer import Trainer
from torch import Tensor
from torch.nn import functional

from art_robust_plugins import StandardTrainer, TrainingOptions

from ..builders import same, weights
from .digits import X, Y, accuracy, classifier, network


def test_it_equals_a_loop_written_by_hand() -> None:
    trained, by_hand = classifier(), network()
    trained.model[6].p = by_hand[6].p = 0.0  # dropout would draw other random numbers
    trainer = StandardTrainer(trained, options=TrainingOptions(shuffle=False))
    trainer.fit(X, Y, batch_size=64, nb_epochs=2, verbose=False)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(2):
        for start in range(0, len(X), 64):
            x, y = torch.from_numpy(X[start : start + 64]), torch.from_numpy(Y[start : start + 64])
            optimizer.zero_grad()
            loss = functional.cross_entropy(by_hand(x), y)
            losses.append(loss.item() * len(x))
            loss.backward()
            optimizer.step()
    assert same(weights(trained), [t.clone() for t in by_hand.state_dict().values()])
    assert trainer.history[1]["loss"] == pytest.approx(sum(losses[10:]) / len(X), rel=1e-6)


def test_it_is_an_art_trainer_that_trains_the_users_own_object() -> None:
    trained = classifier()
    model, optimizer = trained.model, trained.optimizer
    trainer = StandardTrainer(trained)
    assert isinstance(trainer, Trainer)
    trainer.fit(X, np.eye(10)[Y], nb_epochs=5, verbose=False)
    assert trainer.get_classifier() is trained
    assert trainer.classifier is trained
    assert trained.model is model
    assert trained.optimizer is optimizer
    assert accuracy(trained) > 0.8
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_arts_attacks_run_on_the_trained_classifier_and_training_goes_on_after_them() -> None:
    """ART's loss_gradient leaves evaluation mode and gradients behind; neither may leak into training."""
    one, other = classifier(), classifier()
    for trained in (one, other):
        trainer = StandardTrainer(trained, options=TrainingOptions(seed=0))
        trainer.fit(X, Y, nb_epochs=3, verbose=False)
        if trained is one:
            attack = ProjectedGradientDescent(trained, eps=0.1, eps_step=0.02, max_iter=5, verbose=False)
            adversarial = attack.generate(X[:100])
            assert np.abs(adversarial - X[:100]).max() <= 0.1 + 1e-6
            assert (trained.predict(adversarial).argmax(axis=1) == Y[:100]).mean() < accuracy(trained)
            FastGradientMethod(trained, eps=0.1).generate(X[:20], Y[:20])
            assert trained.model[0].weight.grad is not None
        trainer.fit(X, Y, nb_epochs=1, verbose=False)
    assert same(weights(one), weights(other))


def test_schedulers_per_epoch_and_per_step() -> None:
    for interval, expected in (("epoch", [0.05, 0.025, 0.0125]), ("step", [0.025, 0.00625, 0.0015625])):
        trained = classifier()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(trained.optimizer, 0.5)
        trainer = StandardTrainer(trained, options=TrainingOptions(scheduler_interval=interval))
        trainer.fit(X[:100], Y[:100], batch_size=50, nb_epochs=3, scheduler=scheduler, verbose=False)
        assert [record["learning_rate"] for record in trainer.history] == pytest.approx(expected)
    trained = classifier()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(trained.optimizer, patience=0, threshold=1e9)
    trainer = StandardTrainer(trained)
    trainer.fit(X[:100], Y[:100], nb_epochs=3, scheduler=plateau, verbose=False)
    assert trainer.history[-1]["learning_rate"] < 0.05


def test_gradient_clipping_channels_last_and_bf16() -> None:
    small = classifier()
    before = small.model[0].weight.detach().clone()
    options = TrainingOptions(max_gradient_norm=1e-6)
    StandardTrainer(small, options=options).fit(X[:64], Y[:64], batch_size=64, nb_epochs=1, verbose=False)
    assert 0 < (small.model[0].weight.detach() - before).norm() <= 0.05 * 1e-6 * 1.01
    results = []
    for options in (TrainingOptions(seed=0), TrainingOptions(seed=0, channels_last=True)):
        trained = classifier()
        StandardTrainer(trained, options=options).fit(X[:256], Y[:256], nb_epochs=1, verbose=False)
        results.append(weights(trained))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-4)
    seen: list[torch.dtype] = []

    class Watching(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            logits = self.logits(x)
            seen.append(logits.dtype)
            return self.loss(logits, y)

    half = classifier()
    inside: list[torch.dtype] = []
    half.model[-1].register_forward_hook(lambda module, _, out: inside.append(out.dtype) if module.training else None)
    Watching(half, options=TrainingOptions(seed=0, mixed_precision="bf16")).fit(X, Y, nb_epochs=5, verbose=False)
    assert set(inside) == {torch.bfloat16}
    assert set(seen) == {torch.float32}  # for the loss
    assert half.model[0].weight.dtype == torch.float32
    assert accuracy(half) > 0.8


@pytest.mark.parametrize(
    ("capability", "precision", "slow"), [("AVX2", "bf16", 1), ("AVX512", "bf16", 0), ("AVX2", "no", 0)]
)
def test_bfloat16_on_a_cpu_that_emulates_it_is_told(
    capability: str, precision: Any, slow: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        options = TrainingOptions(seed=0, mixed_precision=precision)
        StandardTrainer(classifier(), options=options).fit(X[:64], Y[:64], nb_epochs=2, verbose=False)
    assert [str(warning.message) for warning in caught if "mixed_precision" in str(warning.message)] == [
        "mixed_precision: got 'bf16' on a CPU without AVX-512 (AVX2), where torch emulates bfloat16 and computes "
        "slower than in float32, expected 'no'."
    ] * slow

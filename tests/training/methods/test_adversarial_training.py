"""Adversarial training of every set-up of a ``PyTorchClassifier``."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator
from art.defences.preprocessor import MixupPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from art_robust_plugins import (
    LocalBallTrainer,
    PGDTrainer,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    TRADESTrainer,
    TrainingOptions,
)
from art_robust_plugins.training.engine.validator import Validator

from ..builders import momentum, same, weights
from .adversaries import L2, LINF, X, Y, classifier, make_normed, plain, project, quiet, seen_in, slope


def validate(trainer: RobustTrainer, x: Tensor, y: Tensor) -> dict[str, float]:
    return Validator(trainer.classifier, (x, y), threat=trainer.threat).validate()


# ---------------------------------------------------------------------------------- every set-up of a PyTorchClassifier
def accuracy(estimator: PyTorchClassifier, x: Tensor, y: Tensor) -> float:
    return float((estimator.predict(x.numpy()).argmax(axis=1) == y.numpy()).mean())


@pytest.mark.parametrize("global_loss", ["ce", "kl"])
def test_mixed_labels_train(global_loss: Any) -> None:
    seen: list[Tensor] = []

    class Watching(LocalBallTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(y)
            return super().training_loss(x, y)

    mixup = MixupPyTorch(num_classes=10, device_type="cpu")
    estimator = classifier(preprocessing_defences=mixup)
    trainer = Watching(estimator, threat=LINF, global_loss=global_loss, options=TrainingOptions(seed=0))
    trainer.fit(X[:600], Y[:600], **quiet(8))
    assert all(y.shape == (50, 10) for y in seen)
    assert any(bool(((y > 0.01) & (y < 0.99)).any()) for y in seen)
    assert 0 <= trainer.history[-1]["own_adversary_accuracy"] <= 1
    assert accuracy(estimator, X[600:900], Y[600:900]) > 0.5


def test_mixed_labels_are_those_of_the_formula() -> None:
    """Cross-entropy with class probabilities, in the ascent and in the loss."""
    trainer = PGDTrainer(classifier(plain()), threat=LINF, steps=1, start="none")
    trainer.classifier.model.double()
    x, y = X[:10].double(), torch.rand(10, 10, dtype=torch.float64)
    y = y / y.sum(dim=1, keepdim=True)
    model = trainer.classifier.model

    def soft(z: Tensor) -> Tensor:
        outputs = model(z)
        return -(y * (outputs - outputs.exp().sum(dim=1, keepdim=True).log())).sum(dim=1).mean()

    adversary = project("Linf", x + 0.125 * slope(soft, x).sign(), x, 0.1).clamp(0, 1)
    torch.testing.assert_close(trainer.training_loss(x, y), soft(adversary), rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.BCELoss()], ids=lambda loss: type(loss).__name__)
def test_a_binary_network_with_one_output(loss: nn.Module) -> None:
    """The divergence is that of two classes: p log(p / q) + (1 - p) log((1 - p) / (1 - q))."""
    rows = Y < 2
    x, y = X[rows], Y[rows]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Identity())
    if isinstance(loss, nn.BCELoss):
        model[2] = nn.Sigmoid()
    estimator = classifier(model, loss, optimizer=partial(torch.optim.Adam, lr=0.01), nb_classes=2)
    trainer = TRADESTrainer(estimator, threat=LINF, steps=2, beta=2.0)
    made: list[Tensor] = []
    passed = seen_in(model, lambda: made.append(trainer.training_loss(x[:20], y[:20]).detach()))
    clean, adversary = (z for training, z, _ in passed if training)
    with torch.no_grad():
        p, q = (torch.sigmoid(model[1](z.flatten(1)))[:, 0].double() for z in (clean, adversary))
    divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    expected = -torch.where(y[:20] == 1, p.log(), (1 - p).log()).mean() + 2.0 * divergence
    assert float(made[0]) == pytest.approx(float(expected), rel=1e-4)
    for method in (trainer, LocalBallTrainer(estimator, threat=LINF)):
        method.fit(x, y, **quiet(8))
        assert validate(method, x, y)["validation_accuracy"] > 0.95
        assert method.history[-1]["own_adversary_accuracy"] > 0.5


def test_a_saturated_probability_gives_a_finite_loss() -> None:
    """A sigmoid's output of exactly 1, whose logit is infinite; ART's binary loss is finite there, and so is this."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Sigmoid())
    nn.init.zeros_(model[1].weight)
    nn.init.constant_(model[1].bias, 20.0)
    estimator = classifier(model, nn.BCELoss(), nb_classes=2)
    assert bool(torch.isfinite(PGDTrainer(estimator, threat=LINF).training_loss(X[:8], Y[:8] % 2)))
    assert bool(torch.isfinite(LocalBallTrainer(estimator, threat=LINF).training_loss(X[:8], Y[:8] % 2)))


@pytest.mark.parametrize("global_loss", ["ce", "kl"])
def test_preprocessing_belongs_to_the_network(global_loss: Any) -> None:
    """eps is in the units of the estimator's input, whatever mean and deviation make of them."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = make_normed()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x - 0.3) / 0.5)

    results = []
    for estimator in (classifier(preprocessing=(0.3, 0.5)), classifier(Scaled())):
        trainer = LocalBallTrainer(estimator, threat=LINF, global_loss=global_loss, options=TrainingOptions(seed=0))
        trainer.fit(X[:100], Y[:100], **quiet())
        results.append(weights(estimator))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_pixels_up_to_255_train_as_those_up_to_1() -> None:
    results = []
    for scale in (1, 255):
        # In L2: 255 is no power of 2, so sums round differently, and in Linf a sign could flip.
        estimator = classifier(plain(), clip_values=(0, scale), preprocessing=(0.0, scale))
        threat = ThreatModel("L2", 0.8 * scale)
        trainer = LocalBallTrainer(estimator, threat=threat, global_loss="kl", options=TrainingOptions(seed=0))
        trainer.fit(X[:100] * scale, Y[:100], **quiet())
        results.append(weights(estimator))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_ranges_of_each_feature() -> None:
    high = np.linspace(0.5, 1.5, 64, dtype=np.float32).reshape(1, 8, 8)
    estimator = classifier(clip_values=(np.zeros((1, 8, 8), np.float32), high))
    x = X[:100] * torch.from_numpy(high)
    seen: list[Tensor] = []
    estimator.model.register_forward_pre_hook(lambda _, z: seen.append(z[0].detach()))
    LocalBallTrainer(estimator, threat=ThreatModel("Linf", 0.3)).fit(x, Y[:100], **quiet(1))
    points = torch.cat(seen)
    assert bool((points <= torch.from_numpy(high)).all())
    assert bool((points >= 0).all())
    assert bool((points == torch.from_numpy(high)).any())


@pytest.mark.parametrize("changes", [{}, {"global_loss": "kl"}])
def test_bf16_reaches_all_weights(changes: dict[str, Any]) -> None:
    """Passes without gradients come first in a step; their casts of the weights must not serve the others."""
    results = []
    for precision in ("no", "bf16"):
        estimator = classifier(plain(), optimizer=momentum(1.0))
        before = weights(estimator)
        options = TrainingOptions(seed=0, mixed_precision=precision)
        trainer = LocalBallTrainer(estimator, threat=L2, steps=2, options=options, **changes)
        trainer.fit(X[:64], Y[:64], **quiet(1, 64))
        assert all(tensor.dtype == torch.float32 for tensor in weights(estimator))
        results.append([after - start for after, start in zip(weights(estimator), before, strict=True)])
    for full, half in zip(*results, strict=True):
        assert float((full - half).norm()) < 0.2 * float(full.norm())


def test_bf16_and_channels_last_train() -> None:
    found = {}
    for name, changes in {
        "plain": {},
        "bf16": {"mixed_precision": "bf16"},
        "channels_last": {"channels_last": True},
    }.items():
        trainer = LocalBallTrainer(classifier(), threat=LINF, options=TrainingOptions(seed=0, **changes))
        trainer.fit(X[:600], Y[:600], **quiet(6))
        found[name] = validate(trainer, X[600:900], Y[600:900])["validation_robust_accuracy"]
    assert found["plain"] > 0.5
    assert found["bf16"] > found["plain"] - 0.1
    assert found["channels_last"] == pytest.approx(found["plain"], abs=0.05)


def test_three_ways_in_one_loop() -> None:
    """The same batches give the same weights, wherever they come from; a generator's labels are one-hot."""
    loader = DataLoader(TensorDataset(X[:100], Y[:100]), batch_size=32)
    generator = NumpyDataGenerator(X[:100].numpy(), np.eye(10)[Y[:100]], 32, drop_remainder=False)
    results = []
    for run in (
        lambda t: t.fit(X[:100], Y[:100], **quiet(2, 32)),
        lambda t: t.fit_loader(loader, nb_epochs=2, verbose=False),
        lambda t: t.fit_generator(generator, nb_epochs=2, verbose=False),
    ):
        estimator = classifier()
        # Without random numbers: a loader draws from the stream that a random start draws from.
        trainer = PGDTrainer(
            estimator, threat=LINF, steps=2, start="none", options=TrainingOptions(seed=0, shuffle=False)
        )
        run(trainer)
        results.append(weights(estimator))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_a_seed_makes_a_run_repeatable() -> None:
    def run(seed: int) -> list[Tensor]:
        estimator = classifier()
        LocalBallTrainer(estimator, threat=L2, options=TrainingOptions(seed=seed)).fit(X[:100], Y[:100], **quiet())
        return weights(estimator)

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


def test_it_resists_what_plain_training_does_not() -> None:
    found = {}
    for name, make in {"standard": StandardTrainer, "local-ball": LocalBallTrainer}.items():
        trainer = make(classifier(), threat=LINF, options=TrainingOptions(seed=0, validation_steps=20))
        trainer.fit(X[:1000], Y[:1000], **quiet(8))
        found[name] = validate(trainer, X[1000:], Y[1000:])
    assert found["local-ball"]["validation_robust_accuracy"] > found["standard"]["validation_robust_accuracy"] + 0.15
    assert found["local-ball"]["validation_accuracy"] > 0.8

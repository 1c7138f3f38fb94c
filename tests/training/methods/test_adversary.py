"""What the adversary and the local point find."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import make_linear
from torch import Tensor

from art_robust_plugins import (
    LocalBallTrainer,
    PGDTrainer,
    StandardTrainer,
    ThreatModel,
    TRADESTrainer,
    TrainingOptions,
)

from .adversaries import L1, L2, LINF, X, Y, ce, classifier, kl, quiet


def linear(classes: int = 2, **arguments: Any) -> tuple[PyTorchClassifier, Tensor]:
    """A linear network of 2 classes and the gradient of its margin f_1 - f_0."""
    torch.manual_seed(1)
    model = make_linear(classes=classes)
    trained = classifier(model, optimizer=partial(torch.optim.SGD, lr=0.1), nb_classes=classes, **arguments)
    return trained, (model[1].weight[1] - model[1].weight[0]).detach().view(1, 8, 8)


@pytest.mark.parametrize("limits", [(0, 1), None])
@pytest.mark.parametrize("start", ["uniform", "gaussian", "none"])
def test_the_adversary_of_a_linear_network_is_the_worst_one(start: Any, limits: Any) -> None:
    estimator, margin = linear(clip_values=limits)
    trainer = PGDTrainer(estimator, threat=LINF, steps=1, step_size=0.2, start=start)
    y = Y[:50] % 2
    found = trainer.adversary(X[:50], y)
    worst = X[:50] + 0.1 * torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * margin.sign()
    torch.testing.assert_close(found, worst if limits is None else worst.clamp(0, 1), rtol=0, atol=1e-6)


def test_one_step_in_l2_and_l1_is_the_worst_one_too() -> None:
    estimator, margin = linear(clip_values=None)
    y = Y[:50] % 2
    away = torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1)
    found = PGDTrainer(estimator, threat=L2, steps=1, start="none").adversary(X[:50], y)
    torch.testing.assert_close(found, X[:50] + 0.8 * away * margin / margin.norm(), rtol=0, atol=1e-6)
    found = PGDTrainer(estimator, threat=L1, steps=1, start="none").adversary(X[:50], y)
    largest = margin * (margin.abs() == margin.abs().max())
    torch.testing.assert_close(found, X[:50] + 2.0 * away * largest.sign(), rtol=0, atol=1e-6)


def test_the_divergence_of_a_linear_network_is_ascended_along_its_margin() -> None:
    """Away from p(x), on the side of the start: both ends of that line are adversaries of the divergence."""
    estimator, margin = linear(clip_values=None)
    trainer = TRADESTrainer(estimator, threat=LINF, steps=1, step_size=0.2)
    found = trainer.adversary(X[:200], Y[:200] % 2)
    sides = ((found - X[:200]) / (0.1 * margin.sign())).flatten(1)
    torch.testing.assert_close(sides.abs(), torch.ones_like(sides), rtol=1e-4, atol=0)
    torch.testing.assert_close(sides.mean(dim=1).abs(), torch.ones(200), rtol=1e-4, atol=0)
    assert 0.3 < float((sides[:, 0] > 0).float().mean()) < 0.7


@pytest.fixture(scope="module")
def trained_classifier() -> PyTorchClassifier:
    estimator = classifier()
    StandardTrainer(estimator, options=TrainingOptions(seed=0)).fit(X[:1000], Y[:1000], **quiet(6))
    return estimator


@pytest.mark.parametrize("global_loss", ["ce", "kl"])
@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_more_steps_find_more(trained_classifier: PyTorchClassifier, threat: ThreatModel, global_loss: Any) -> None:
    x, y = X[1000:1200], Y[1000:1200]
    trained_classifier.model.eval()
    heights = []
    for steps in (1, 3, 10):
        trainer = LocalBallTrainer(
            trained_classifier, threat=threat, steps=steps, step_size=threat.eps / 3, global_loss=global_loss
        )
        torch.manual_seed(0)
        adversary = trainer.adversary(x, y)
        trained_classifier.model.eval()
        with torch.no_grad():
            at_x, at_adversary = trainer.logits(x), trainer.logits(adversary)
        heights.append(float(ce(at_adversary, y) if global_loss == "ce" else kl(at_x, at_adversary)))
    at_start = float(ce(at_x, y)) if global_loss == "ce" else 0.0
    assert at_start < heights[0] < heights[1] < heights[2]


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_the_local_point_is_worse_than_a_random_one(trained_classifier: PyTorchClassifier, threat: ThreatModel) -> None:
    x = X[1000:1200]
    trained_classifier.model.eval()
    trainer = LocalBallTrainer(trained_classifier, threat=threat)
    found = trainer.local_point(x, x)
    random = threat.project(x + 10 * torch.randn_like(x), x, 0, 1)
    random = x + 0.5 * (random - x)
    with torch.no_grad():
        at_x, at_found, at_random = trainer.logits(x), trainer.logits(found), trainer.logits(random)
    assert float(kl(at_x, at_found)) > 2 * float(kl(at_x, at_random))


def test_no_local_point_stays_at_its_center_in_l1(trained_classifier: PyTorchClassifier) -> None:
    """A step in L1 moves one coordinate, and must not choose one that the range holds back (digits are 0 or 1)."""
    trained_classifier.model.eval()
    x = X[1000:1200]
    found = LocalBallTrainer(trained_classifier, threat=L1).local_point(x, x)
    assert bool(((found - x).flatten(1).abs().amax(dim=1) > 0).all())

"""Finished runs on some digits with options of the loop, and comparisons of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_robust_plugins import (
    PGDTrainer,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
)

from ..builders import IMAGES, LABELS, make_builder

X = IMAGES[:200]
Y = LABELS[:200]


cuda = pytest.mark.cuda


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def without_normalisation(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 10))


def two_convolutions(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    convolutions = nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 8, 3, stride=2)
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(72, 10))


classifier = make_builder(network, device_type="cpu")


def train(
    model: nn.Module | None = None,
    *,
    kind: type[RobustTrainer] = StandardTrainer,
    optimizer: Any = None,
    method: dict[str, Any] | None = None,
    samples: int = 100,
    batch_size: int = 32,
    epochs: int = 2,
    validation: Any = None,
    scheduler: Any = None,
    preparation: dict[str, Any] | None = None,
    **options: Any,
) -> RobustTrainer:
    """A finished run on some digits."""
    model = network() if model is None else model
    rule = None if optimizer is None else lambda _: optimizer(model)
    estimator = classifier(model, optimizer=rule, **(preparation or {}))
    trainer = kind(estimator, **(method or {}), options=TrainingOptions(**{"seed": 0, **options}))
    trainer.fit(
        X[:samples],
        Y[:samples],
        validation_data=validation,
        batch_size=batch_size,
        nb_epochs=epochs,
        scheduler=None if scheduler is None else scheduler(estimator.optimizer),
        verbose=False,
    )
    return trainer


def named_weights(trainer: RobustTrainer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.classifier.model.state_dict().items()}


def same_named(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 1e-5) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name].float(), other[name].float(), atol=atol) for name in one
    )


PGD = {"kind": PGDTrainer, "method": {"threat": ThreatModel("Linf", 0.1), "steps": 2, "overfitting": "ignore"}}


def resumes_exactly(folder: Path, model: Callable[[], nn.Module] = network, **settings: Any) -> None:
    """A run of 4 epochs equals one that was stopped after 1 and after 3."""
    shared = {"scheduler": None, "kind": StandardTrainer, **settings}
    whole = train(model(), epochs=4, checkpoint_dir=folder / "whole", **shared)
    for epochs in (1, 3, 4):
        parts = train(model(), epochs=epochs, checkpoint_dir=folder / "parts", resume=epochs > 1, **shared)
    assert same_named(named_weights(whole), named_weights(parts))
    for one, other in zip(whole.history, parts.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}

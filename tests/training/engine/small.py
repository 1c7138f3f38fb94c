"""A small classifier of digits, and what a refusal must leave as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from art_robust_plugins import (
    RobustTrainer,
    ThreatModel,
)

from ..builders import IMAGES, LABELS, make_builder, same, weights

X = IMAGES[:300]
Y = LABELS[:300]
LINF = ThreatModel("Linf", 0.1)


def network(*, normalised_at_end: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    end = [nn.BatchNorm1d(12)] if normalised_at_end else []
    return nn.Sequential(
        *(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(128, 12), *end, nn.Linear(12, 10)),
    )


classifier = make_builder(network, device_type="cpu")


def fit(trainer: RobustTrainer, x: Any = X, y: Any = Y, **arguments: Any) -> RobustTrainer:
    trainer.fit(x, y, **{"nb_epochs": 2, "batch_size": 64, "verbose": False, **arguments})
    return trainer


def check_refusal(trainer: RobustTrainer, *words: str, **arguments: Any) -> None:
    """``fit`` refuses with a sentence that has these words, and leaves weights and buffers as they were."""
    before = weights(trainer.classifier)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the words are compared below)
        fit(trainer, **arguments)
    for word in words:
        assert word in str(refusal.value)
    assert same(before, weights(trainer.classifier))

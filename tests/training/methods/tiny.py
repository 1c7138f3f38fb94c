"""Tiny networks and batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from builders import make_classifier
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins.training.methods.layerwise import (
    layerwise_perturbations,
)

from ..builders import momentum, weights


def largest_matching(present: list[int], stored: list[int]) -> int:
    """By augmenting paths."""
    owner: dict[int, int] = {}

    def place(i: int, seen: set[int]) -> bool:
        for j, label in enumerate(stored):
            if label != present[i] and j not in seen:
                seen.add(j)
                if j not in owner or place(owner[j], seen):
                    owner[j] = i
                    return True
        return False

    return sum(place(i, set()) for i in range(len(present)))


# ----------------------------------------------------------------------------------- training against the definition
def small(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Conv2d(3, 4, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).to(dtype)


def batches(count: int, size: int = 7, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 1, 5, 5, dtype=torch.float64, generator=generator),
            torch.randint(0, classes, (size,), generator=generator),
        )
        for _ in range(count)
    ]


def tiny() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).double()


def moves(
    network: nn.Sequential, data: list[tuple[Tensor, Tensor]], labels: list[Tensor] | None = None, **arguments: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """For each batch h~ - h of layer 0 at constant weights, and dLoss/dh."""
    differences, gradients = [], []
    with layerwise_perturbations(network, **{"eps": 0.1, "relative": False, **arguments}) as layerwise:
        for step, (x, y) in enumerate(data):
            h = functional.conv2d(x, network[0].weight, network[0].bias)  # type: ignore[arg-type]
            layerwise.begin_step(y if labels is None else labels[step])
            perturbed = network[0](x)
            differences.append((perturbed - h).detach())
            loss = functional.cross_entropy(network[1:](perturbed), y.repeat(len(x) // len(y)))
            perturbed.retain_grad()
            loss.backward()
            gradients.append(perturbed.grad)
    return differences, gradients


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# ------------------------------------------------------------------------------------------------------- the trainer
GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.random((50, 1, 6, 6), dtype=np.float32), GENERATOR.integers(0, 4, 50)


def classifier() -> PyTorchClassifier:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Dropout(0.3)
    )
    network.append(nn.Linear(36, 4))
    return make_classifier(network, optimizer=momentum(0.1), input_shape=(1, 6, 6), nb_classes=4)


def fit(trainer: Any, epochs: int = 3) -> list[Tensor]:
    trainer.fit(X, Y, nb_epochs=epochs, batch_size=16, verbose=False)  # the last batch of an epoch has 2 samples
    return weights(trainer.classifier)

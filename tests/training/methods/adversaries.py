"""Classifiers of digits for methods that train against an adversary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from art_robust_plugins import (
    ThreatModel,
)

from ..builders import IMAGES, LABELS, make_builder, momentum

X = torch.from_numpy(IMAGES)
Y = torch.from_numpy(LABELS)
LINF, L2, L1 = ThreatModel("Linf", 0.1), ThreatModel("L2", 0.8), ThreatModel("L1", 2.0)


def make_normed(seed: int = 0) -> nn.Sequential:
    """With batch normalisation, and dropout that draws nothing."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(64, 10),
    )


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(36, 10))


classifier = make_builder(make_normed, momentum(0.1))


def quiet(epochs: int = 2, batch_size: int = 50) -> dict[str, Any]:
    return {"nb_epochs": epochs, "batch_size": batch_size, "verbose": False}


def project(norm: str, z: Tensor, x: Tensor, eps: float) -> Tensor:
    if norm == "Linf":
        return torch.minimum(torch.maximum(z, x - eps), x + eps)
    lengths = [(a - b).pow(2).sum().sqrt() for a, b in zip(z, x, strict=True)]
    return torch.stack([b + (a - b) * min(1.0, eps / float(n)) for a, b, n in zip(z, x, lengths, strict=True)])


def kl(p: Tensor, q: Tensor) -> Tensor:
    """The mean over samples of sum p log(p / q), from logits."""
    p, q = p.exp() / p.exp().sum(dim=1, keepdim=True), q.exp() / q.exp().sum(dim=1, keepdim=True)
    return (p * torch.log(p / q)).sum(dim=1).mean()


def ce(z: Tensor, y: Tensor) -> Tensor:
    return torch.stack([torch.log(row.exp().sum()) - row[label] for row, label in zip(z, y, strict=True)]).mean()


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(at), at)[0]


OBJECTIVES: list[dict[str, Any]] = [
    {},
    {"within_threat": False},
    {"global_loss": "kl"},
    {"steps": 3, "global_loss": "kl", "clean_weight": 0.0},
    {"steps": 2, "clean_weight": 0.7, "start": "none"},
    {"global_weight": 0.0, "local_weight": 2.5, "radius": 1.5, "clean_weight": 1.0, "start": "gaussian"},
    {"global_loss": "kl", "global_weight": 0.0, "clean_weight": 0.3, "steps": 2},
]


# -------------------------------------------------------------------------------------------- where the points may lie
def seen_in(network: nn.Module, run: Callable[[], object]) -> list[tuple[bool, Tensor, list[Tensor]]]:
    """Each forward pass of ``network`` in a run: its mode, its input, and copies of the buffers before it."""
    seen: list[tuple[bool, Tensor, list[Tensor]]] = []

    def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append((module.training, inputs[0].detach().clone(), [b.clone() for b in module.buffers()]))

    handle = network.register_forward_pre_hook(look)
    run()
    handle.remove()
    return seen

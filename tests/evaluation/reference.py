"""What the tests of our AutoAttack share: the reference, and a residual network beside the one of digits."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from builders import load_digits
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation.libraries import reference_package

needs_reference = pytest.mark.skipif(
    not (importlib.util.find_spec("autoattack") or importlib.util.find_spec("pyautoattack")),
    reason="AutoAttack's reference is not installed",
)


class Residual(nn.Module):
    """Two residual blocks with batch normalisation."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(2)
        )
        self.head = nn.Linear(8 * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(functional.avg_pool2d(x, 2).flatten(1))


def colour_digits(classes: int = 10) -> tuple[Tensor, Tensor]:
    """The digits as images [3, 32, 32], each of one colour."""
    x, y = (torch.from_numpy(values) for values in load_digits(classes))
    colours = 0.5 + 0.5 * torch.rand(len(x), 3, 1, 1, generator=torch.Generator().manual_seed(0))
    return functional.interpolate(x, scale_factor=4) * colours, y


def train_residual(classes: int = 10) -> nn.Module:
    torch.manual_seed(0)
    network = Residual(classes)
    x, y = colour_digits(classes)
    optimizer = torch.optim.Adam(network.parameters(), 5e-3)
    for _ in range(60):
        batch = torch.randint(0, len(x) // 2, (64,))
        optimizer.zero_grad()
        functional.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    return network.eval()


def reference_ensemble(
    network: nn.Module, threat: ThreatModel, *, seed: int, version: str, stages: Sequence[str] = ()
) -> Any:
    """The reference's AutoAttack; the authors' package and the repackaged one differ in a name."""
    kind = reference_package()[0].AutoAttack
    names = inspect.signature(kind).parameters
    given = {"attacks" if "attacks" in names else "attacks_to_run": list(stages)} if stages else {}
    return kind(network, norm=threat.norm, eps=threat.eps, seed=seed, version=version, device="cpu", **given)


def in_batches(attack: Any, x: Tensor, y: Tensor, size: int) -> Tensor:
    """The reference's attack on one batch after the other."""
    with torch.no_grad():
        parts = zip(x.split(size), y.split(size), strict=True)
        return torch.cat([attack.perturb(images, labels) for images, labels in parts])


def verdicts(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Which points are classified correctly."""
    with torch.no_grad():
        return network(x).argmax(dim=1) == y

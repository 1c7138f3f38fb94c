"""Processes that share the points of a batch find what one finds; here they are threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from numpy.testing import assert_array_equal
from torch import Tensor, nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation.autoattack.apgd import APGD
from art_robust_plugins.evaluation.autoattack.fab import FAB
from art_robust_plugins.evaluation.autoattack.square import Square

SHAPE, CLASSES, POINTS = (2, 5, 5), 6, 24


class Threads:
    """What `count` threads exchange; a thread that calls less often than another breaks the barrier."""

    def __init__(self, count: int) -> None:
        self.count, self.barrier = count, threading.Barrier(count, timeout=20)
        self.values: dict[int, Any] = {}

    def gather(self, value: Any) -> list[Any]:
        self.values[threading.get_ident()] = value
        self.barrier.wait()
        gathered = list(self.values.values())
        self.barrier.wait()
        return gathered

    def merge(self, flags: Tensor) -> Tensor:
        return torch.stack(self.gather(flags)).all(dim=0)

    def find_least(self, value: int) -> int:
        return int(min(self.gather(value)))


class Rows(nn.Linear):
    """A linear layer whose rounding does not depend on how many images pass together."""

    def forward(self, x: Tensor) -> Tensor:
        return (x[:, None] * self.weight).sum(dim=2) + self.bias


def network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), Rows(50, 24), nn.Tanh(), Rows(24, CLASSES)).eval()


ATTACKS: dict[str, tuple[Any, dict[str, Any]]] = {
    "apgd-ce": (APGD, {"steps": 10, "restarts": 3}),
    "apgd-t": (APGD, {"steps": 8, "loss": "dlr-targeted", "targets": 5}),
    "fab": (FAB, {"steps": 6, "targets": None, "restarts": 3}),
    "fab-t": (FAB, {"steps": 6, "targets": 5}),
    "square": (Square, {"queries": 120}),
}
RADII = {"Linf": 0.08, "L2": 0.4, "L1": 2.0}
# The points of each process: one of each two, a single one, and none that is right on clean images.
SHARES: dict[str, list[Sequence[int]]] = {
    "even": [range(0, POINTS, 2), range(1, POINTS, 2)],
    "single": [range(1), range(1, POINTS)],
    "three": [range(5), range(5, 20), range(20, POINTS)],
    "wrong": [[3, 9], [each for each in range(POINTS) if each not in (3, 9)]],
}


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("stage", ATTACKS)
def test_the_images_are_those_of_one_process(stage: str, norm: str, share: str) -> None:
    kind, settings = ATTACKS[stage]
    if norm == "L1" and kind is APGD:
        settings = {**settings, "larger_radii": True}
    model, threat = network(), ThreatModel(norm, RADII[norm])
    x = torch.rand(POINTS, *SHAPE, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(dim=1)
    y[[3, 9, 17]] = (y[[3, 9, 17]] + 1) % CLASSES
    certified = torch.zeros(POINTS, dtype=torch.bool)
    certified[[2, 11]] = True

    def attack(own: list[int] | None, partners: Threads | None) -> Tensor:
        made = kind(model, threat, batch_size=10, physical_batch_size=8, **settings)
        made.passes.partners = partners
        others = torch.zeros(POINTS, dtype=torch.bool) if own is None else torch.ones(POINTS, dtype=torch.bool)
        others[[] if own is None else own] = False
        found: Tensor = made(x, y, certified | others)
        return found

    expected = attack(None, None)
    shares = [list(each) for each in SHARES[share]]
    partners = Threads(len(shares))
    with ThreadPoolExecutor(len(shares)) as pool:
        parts = [job.result() for job in [pool.submit(attack, own, partners) for own in shares]]
    together = x.clone()
    for own, found in zip(shares, parts, strict=True):
        together[own] = found[own]
        moved = (found != x).flatten(1).any(dim=1).nonzero().flatten().tolist()
        assert set(moved) <= set(own)
    assert_array_equal(together.numpy(), expected.numpy())
    broken = (expected != x).flatten(1).any(dim=1)
    assert 2 < int(broken.sum()) < POINTS - 5

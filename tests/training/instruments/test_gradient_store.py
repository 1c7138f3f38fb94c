"""The signs that one step keeps for the next, in one process and in several."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from art_robust_plugins.training.instruments.signs import PackedSigns
from art_robust_plugins.training.methods.layerwise import (
    layerwise_perturbations,
)
from art_robust_plugins.training.processes import Share

from ..methods.tiny import batches, tiny


def test_successive_steps_meet_all_other_classes() -> None:
    y = torch.arange(5).repeat(4)
    met = set()
    with layerwise_perturbations(tiny(), eps=0.1) as layerwise:
        for _ in range(40):
            layerwise.begin_step(y)
            step, previous = layerwise.current, layerwise.previous
            if previous is not None:
                slots, counts = step.pairing(previous, len(y), torch.zeros(len(y), 1))  # type: ignore[union-attr]
                assert counts.all()
                met |= set(zip(y.tolist(), y[slots].tolist(), strict=True))
            signs = PackedSigns.of(torch.zeros(len(y), 1), torch.contiguous_format)
            layerwise.current.signs["0", 0] = signs  # type: ignore[union-attr]
    assert met == {(a, b) for a in range(5) for b in range(5) if a != b}


class Alone:
    """One process that acts as if there were others."""

    count, index = 1, 0

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def sum(self, tensor: Tensor) -> None:
        pass


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_processes_exchange_signs_in_one_order(layout: torch.memory_format) -> None:
    """Whatever the layout of their own outputs, which may depend on how many samples each of them has."""
    network, (x, y) = tiny().to(memory_format=layout), batches(1)[0]
    states = []
    for share in (None, Share(Alone(), len(y))):  # type: ignore[arg-type]
        with layerwise_perturbations(network, eps=0.1) as layerwise:
            layerwise.share = share
            for _ in range(3):
                layerwise.begin_step(y)
                functional.cross_entropy(network(x.contiguous(memory_format=layout)), y).backward()
                kept = {signs.layout for signs in layerwise.current.signs.values()}  # type: ignore[union-attr]
                assert kept == {layout if share is None else torch.contiguous_format}
            states.append(layerwise.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])

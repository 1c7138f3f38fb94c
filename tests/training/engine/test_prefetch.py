"""Batches on the device in time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from art_robust_plugins.training.engine.prefetch import prefetch

from .runs import cuda


def number(count: int, order: list[str]) -> Iterator[tuple[Tensor, Tensor]]:
    for index in range(count):
        order.append(f"read {index}")
        yield torch.full((3, 2), float(index)), torch.full((3,), index)


def test_a_loaders_batches_come_in_order_and_none_is_read_before_its_turn() -> None:
    order: list[str] = []
    for index, (x, y) in enumerate(prefetch(number(3, order), torch.device("cpu"))):
        assert torch.equal(x, torch.full((3, 2), float(index)))
        assert torch.equal(y, torch.full((3,), index))
        order.append(f"used {index}")
    assert order == ["read 0", "used 0", "read 1", "used 1", "read 2", "used 2"]
    assert list(prefetch(iter(()), torch.device("cpu"))) == []


@cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_next_batch_is_read_ahead_and_no_value_is_lost() -> None:
    order: list[str] = []
    for index, (x, _) in enumerate(prefetch(number(3, order), torch.device("cuda"))):
        assert x.device.type == "cuda"
        assert torch.equal(x.cpu(), torch.full((3, 2), float(index)))
        order.append(f"used {index}")
    assert order == ["read 0", "read 1", "used 0", "read 2", "used 1", "used 2"]
    assert list(prefetch(iter(()), torch.device("cuda"))) == []
    # Large batches, whose copies overlap with the work on the one before.
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(1000, 3000, generator=generator), torch.arange(1000)) for _ in range(20)]
    total = torch.zeros(3000, 3000, device="cuda")
    for (x, y), (expected, _) in zip(prefetch(iter(batches), torch.device("cuda")), batches, strict=True):
        total += x.T @ x
        assert torch.equal(x.cpu(), expected)
        assert torch.equal(y.cpu(), torch.arange(1000))

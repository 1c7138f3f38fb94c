"""Prefetching: the next batch of a loader is copied to the device while the current one is used."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

Batch = tuple[Tensor, Tensor]


def prefetch(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yield the same batches on ``device``.

    On CUDA one batch is fetched ahead: while the current one is computed on, the next is read, pinned, and copied on a
    stream of its own. Elsewhere nothing is read ahead.
    """
    if device.type != "cuda":
        for x, y in batches:
            yield x.to(device), y.to(device)
        return
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    ahead: tuple[Batch, torch.cuda.Event] | None = None
    for x, y in batches:
        with torch.cuda.stream(side):
            copies = _copy(x, device), _copy(y, device)
            done = side.record_event()
        if ahead is not None:
            yield _receive(*ahead, device)
        ahead = copies, done
    if ahead is not None:
        yield _receive(*ahead, device)


def _copy(tensor: Tensor, device: torch.device) -> Tensor:
    return (tensor.pin_memory() if tensor.device.type == "cpu" else tensor).to(device, non_blocking=True)


def _receive(batch: Batch, done: torch.cuda.Event, device: torch.device) -> Batch:
    """A batch for whose copy the current stream waits; its memory is not reused before the stream is done with it."""
    current = torch.cuda.current_stream(device)
    current.wait_event(done)
    for tensor in batch:
        tensor.record_stream(current)
    return batch

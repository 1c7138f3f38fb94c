"""Training in channels_last, and the memory format of gradients and optimizer state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@contextmanager
def use_channels_last(network: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """A context within which 4-D weights are in channels_last; their earlier memory format is restored at its end."""
    before = [(tensor, tensor.stride()) for tensor in _tensors(network)]
    try:
        for tensor, _ in before:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
        align_state(optimizer)
        yield
    finally:
        for tensor, strides in before:
            tensor.data = _lay_out(tensor.data, strides)
        align_state(optimizer)


def align_state(optimizer: Optimizer) -> None:
    """Give gradients and optimizer state the memory format of their weight.

    Fused steps on a CPU walk through memory and ignore strides: with different memory formats they would combine
    numbers that do not belong together.
    """
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if weight.grad is not None and weight.grad.layout == torch.strided:
                weight.grad = _lay_out(weight.grad, weight.stride())
            state = optimizer.state.get(weight, {})
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    state[name] = _lay_out(value, weight.stride())


def layout_of(tensor: Tensor) -> torch.memory_format:
    """A tensor's memory format: channels_last in four or five dimensions, or else contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim(), torch.contiguous_format)
    return last if tensor.is_contiguous(memory_format=last) else torch.contiguous_format


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    """Yields the 4-D tensors, skipping expanded ones (stride 0)."""
    tensors = (tensor for tensor in chain(network.parameters(), network.buffers()) if tensor.dim() == 4)
    return (tensor for tensor in tensors if 0 not in tensor.stride())


def _lay_out(tensor: Tensor, strides: tuple[int, ...]) -> Tensor:
    if tensor.stride() == strides:
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)

"""Weights in channels_last while they train, and how what an optimizer keeps of them lies in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@contextmanager
def use_channels_last(network: nn.Module, optimizer: Optimizer) -> Iterator[None]:
    """A context within which weights of four axes lie in channels_last; afterwards they lie as they did."""
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
    """Let gradients and what an optimizer keeps of each weight lie in memory as the weight does.

    Fused steps on a CPU walk through memory, whatever the strides are: laid out otherwise, they would pair numbers that
    do not belong together.
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
    """The order in which a tensor's numbers lie: channels_last in four or five dimensions, or else contiguous."""
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

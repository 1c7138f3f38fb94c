"""A network's parameters and buffers, and samples for test passes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ..bridge import device_of


def tensors_of(network: nn.Module) -> Iterator[Tensor]:
    """The parameters and buffers, in a fixed order."""
    return chain(network.parameters(), network.buffers())


def dtype_of(network: nn.Module) -> torch.dtype:
    """The type of a network's inputs: that of its first floating-point parameter or buffer, else float32."""
    return next((tensor.dtype for tensor in tensors_of(network) if tensor.is_floating_point()), torch.float32)


def dtypes_of(network: nn.Module) -> set[torch.dtype]:
    """The types of a network's inputs and of all its floating-point parameters and buffers."""
    return {dtype_of(network), *(tensor.dtype for tensor in tensors_of(network) if tensor.is_floating_point())}


def make_samples(network: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Two samples in [0, 1], the same each time, on the network's device."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(2, *input_shape, generator=generator, dtype=torch.float32).to(device_of(network), dtype)


def check_initialised(network: nn.Module) -> None:
    """Refuse a network with lazy layers that have not seen an input yet.

    Raises:
        ValueError: by name.
    """
    for name, tensor in chain(network.named_parameters(), network.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"network: its {name!r} has no shape yet, as a lazy layer's before its first input, expected one "
                f"forward pass of the network before."
            )

"""The network of an ART classifier: its device, and a context that restores its modes and gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's first parameter or buffer; ART's own note of it may be out of date."""
    tensor = next(chain(network.parameters(), network.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


@contextmanager
def preserved(network: nn.Module) -> Iterator[None]:
    """Restore, at the end, each submodule's train or eval mode and each parameter's ``requires_grad`` and ``grad``."""
    # Frozen TorchScript has no modes.
    modes = [(module, module.training) for module in network.modules() if hasattr(module, "training")]
    # Copies of TorchScript have parameters that are no leaves, and have no gradients.
    parameters = [
        (p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone())
        for p in network.parameters()
        if p.is_leaf
    ]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, gradient, value in parameters:
            if parameter.requires_grad != requires_grad:  # inference tensors raise even if the value stays the same
                parameter.requires_grad_(requires_grad)
            if gradient is not None and value is not None:
                gradient.copy_(value)
            parameter.grad = gradient

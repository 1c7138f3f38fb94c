"""The network of an ART classifier: its device, its copies, and a context that restores its modes and gradients."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..checks import describe_error
from ..moved import make_alias

Value = TypeVar("Value")


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's first parameter or buffer; ART's own note of it may be out of date."""
    tensor = next(chain(network.parameters(), network.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def copy_deeply(
    subject: str, value: Value, wanted: str = "one that copy.deepcopy copies", copied: dict[int, Tensor] | None = None
) -> Value:
    """A deep copy.

    Args:
        subject: how a refusal begins: the argument's name and what of it is copied.
        value: a network, or what belongs to one.
        wanted: what a refusal expects instead.
        copied: copies of tensors in it, by ``id``, that are taken instead of copies of ``copy.deepcopy``.

    Raises:
        ValueError: a value that ``copy.deepcopy`` does not copy.
    """
    try:
        return copy.deepcopy(value, copied)
    except Exception as error:  # whatever the attributes of users' classes raise
        raise ValueError(f"{subject} cannot be copied ({describe_error(error)}), expected {wanted}.") from error


def copy_network(network: nn.Module) -> nn.Module:
    """A deep copy of a classifier's network, in which tensors that hooks compute are copied by value.

    Raises:
        ValueError: a network that ``copy.deepcopy`` does not copy.
    """
    # Weights that a hook computes (weight normalisation, pruning) are results with a history, which cannot be copied.
    results = [
        value
        for module in network.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    by_value = {id(value): value.detach().clone() for value in results}
    return copy_deeply("classifier: the network", network, copied=by_value)


@contextmanager
def preserve(network: nn.Module) -> Iterator[None]:
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


preserved = make_alias("preserved", preserve)

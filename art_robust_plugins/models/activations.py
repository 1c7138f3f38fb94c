"""Activations that keep the norm of gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def sort_pairs(x: Tensor) -> Tensor:
    """x [N, C, ...] with the larger of each pair (i, i + C/2) of channels in the first half, the smaller in the second.

    The backward pass puts each gradient where its value came from. Where both values of a pair are equal, they count as
    sorted already, and each keeps its own gradient; in forward mode, and in a network that is traced or compiled, each
    gets half of both.

    Raises:
        ValueError: for an odd number of channels, or no axis of them.
    """
    _check_channels(x)
    # Tracers and compilers see the operations themselves; without a gradient there is nothing to remember.
    if torch.jit.is_tracing() or torch.compiler.is_compiling():  # type: ignore[attr-defined, no-untyped-call]
        return _sort(x)
    if not (torch.is_grad_enabled() and x.requires_grad):
        return _sort(x)
    pairs, _ = _SortPairs.apply(x)  # type: ignore[no-untyped-call]
    return pairs  # type: ignore[no-any-return]


def _check_channels(x: Tensor) -> None:
    if x.dim() < 2:
        raise ValueError(f"x: got shape {tuple(x.shape)}, expected [N, C, ...].")
    # A trace would take the number that it compares for data; there `_sort` fails for halves that are unequal.
    if not torch.jit.is_tracing() and x.shape[1] % 2:  # type: ignore[attr-defined, no-untyped-call]
        raise ValueError(f"x: got {x.shape[1]} channels, expected an even number.")


def _sort(x: Tensor) -> Tensor:
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    a, b = torch.unflatten(x, 1, (2, -1)).unbind(1) if tracing else x.chunk(2, dim=1)
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


class _SortPairs(torch.autograd.Function):
    """Saves one mask, where autograd would save both halves and compare them four times."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, dim=1)
        return _sort(x), a >= b

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
        _, in_order = output
        ctx.mark_non_differentiable(in_order)
        ctx.save_for_backward(in_order)
        ctx.save_for_forward(in_order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Any) -> Tensor:
        (in_order,) = ctx.saved_tensors
        return _swap(gradient, in_order)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> tuple[Tensor, None]:
        (in_order,) = ctx.saved_tensors
        return _swap(tangent, in_order), None


def _swap(x: Tensor, in_order: Tensor) -> Tensor:
    """The pairs of x that are not ``in_order``, exchanged: its own inverse and its own transpose."""
    a, b = x.chunk(2, dim=1)
    return torch.cat([torch.where(in_order, a, b), torch.where(in_order, b, a)], dim=1)


class MinMax(nn.Module):
    """Sorts pairs of channels: the larger one goes to the first half of the channels, the smaller one to the second.

    GroupSort with groups of two (Anil, Lucas, Grosse, arXiv 1811.05381, ICML 2019). A permutation for each input, so it
    keeps the norm of every gradient, where ReLU drops part of it: Lipschitz bounds come closer to the truth.

    Raises:
        ValueError: for an odd number of channels (axis 1), or no axis of them.

    Example:
        >>> MinMax()(torch.tensor([[1.0, 5.0, 3.0, 2.0]]))
        tensor([[3., 5., 1., 2.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        return sort_pairs(x)

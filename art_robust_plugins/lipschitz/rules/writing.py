"""Rules of operations that write values to given places of another tensor, or add them there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .movement import entries_of
from .registry import lipschitz_rule
from .values import Call, Value

aten = torch.ops.aten

Write = Callable[[Tensor, Tensor], Tensor]


@lipschitz_rule(aten.index_put.default)
def _index_put(call: Call, x: Any, indices: list[Any], source: Any, accumulate: bool = False) -> Value:
    axes = [axis for axis, index in enumerate(indices) if index is not None]
    _check_places(call, indices, axes[0] if axes else None)

    def write(target: Tensor, values: Tensor) -> Tensor:
        written: Tensor = aten.index_put(target, indices, values, accumulate)
        return written

    def add(target: Tensor, values: Tensor) -> Tensor:
        added: Tensor = aten.index_put(target, indices, values, True)
        return added

    return _bound_adding(call, x, source, add) if accumulate else _bound_writing(call, x, source, write, add)


@lipschitz_rule(aten.scatter.src)
def _scatter(call: Call, x: Any, dim: int, index: Any, source: Any) -> Value:
    _check_places(call, [index], dim % max(len(call.shape), 1))
    return _bound_writing(
        call,
        x,
        source,
        lambda target, values: torch.scatter(target, dim, index, values),
        lambda target, values: torch.scatter_add(target, dim, index, values),
    )


@lipschitz_rule(aten.scatter.value)
def _scatter_value(call: Call, x: Any, dim: int, index: Any, value: float) -> Value:
    return _scatter(call, x, dim, index, torch.zeros_like(index))


@lipschitz_rule(aten.scatter_add.default)
def _scatter_add(call: Call, x: Any, dim: int, index: Any, source: Any) -> Value:
    _check_places(call, [index], dim % max(len(call.shape), 1))
    return _bound_adding(call, x, source, lambda target, values: torch.scatter_add(target, dim, index, values))


def _check_places(call: Call, indices: list[Any], axis: int | None) -> None:
    if any(isinstance(index, Value) for index in indices):
        call.refuse("its indices depend on the network's input, so the result may jump")
    if axis == 0 and call.shape and call.shape[0] == 1:
        call.refuse("it writes to places along axis 0, which holds the samples of a batch, expected each sample alike")


def _bound_writing(call: Call, x: Any, source: Any, write: Write, add: Write) -> Value:
    """Each entry of the result is one of ``x`` or one of ``source``: both side by side, without overwritten entries.

    The operation is applied to numbered entries to find out which; the norm is the root of the number of copies.
    """
    if isinstance(source, Value) and int(call.compute_once(lambda: _counts(call, source, add), "counts").max()) > 1:
        call.refuse("it writes several values to one place, so which of them stays is not defined")
    parts = []
    if isinstance(x, Value):
        nothing = _numbers(call, source.shape) * 0
        left = call.compute_once(lambda: write(_numbers(call, call.shape), nothing).cpu() - 1, "left")
        parts.append(entries_of(call, x, "x", left))
    if isinstance(source, Value):
        empty = _numbers(call, call.shape) * 0
        places = call.compute_once(lambda: write(empty, _numbers(call, source.shape)).cpu() - 1, "places")
        parts.append(entries_of(call, source, "source", places))
    return parts[0] if len(parts) == 1 else call.join(parts)


def _bound_adding(call: Call, x: Any, source: Any, add: Write) -> Value:
    """The sum of ``x`` and of the map from ``source``, which copies entries and sums disjoint sets of the copies.

    Copying an entry k times has norm sqrt(k), and a sum of at most m entries, each in one sum, has norm sqrt(m).
    """
    if not isinstance(source, Value):
        return call.shift(x)

    def norm() -> float:
        counts = _counts(call, source, add)
        copies = -(-int(counts.sum()) // max(math.prod(source.shape), 1))
        return math.sqrt(int(counts.max()) * max(copies, 1))

    slope = call.compute_once(norm)
    if not isinstance(x, Value):
        return call.function(source, slope)
    return Value(call.shape, lambda: x.bound + source.bound * slope)


def _numbers(call: Call, shape: tuple[int, ...]) -> Tensor:
    return torch.arange(1, math.prod(shape) + 1, device=call.evaluation.device).view(shape)


def _counts(call: Call, source: Value, add: Write) -> Tensor:
    """The number of entries that go to each place."""
    return add(_numbers(call, call.shape) * 0, _numbers(call, source.shape) * 0 + 1)

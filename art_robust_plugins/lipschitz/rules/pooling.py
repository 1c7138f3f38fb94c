"""Rules of pooling and of other reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from .registry import lipschitz_rule
from .values import Call, Value, most_copies

aten = torch.ops.aten


def by_axis(call: Call, *settings: Sequence[int]) -> list[tuple[int, ...]]:
    """For each spatial axis of a pooling operation: the axis, from the end, and its own of each setting.

    A setting of one number stands for all axes.
    """
    axes = 3 if "3d" in call.target._schema.name else 2
    spread = [tuple(values) * axes if len(values) == 1 else tuple(values) for values in settings]
    return [(axis - axes, *(values[axis] for values in spread)) for axis in range(axes)]


@lipschitz_rule(aten.max_pool2d_with_indices.default, aten.max_pool3d_with_indices.default)
def _max_pool(
    call: Call,
    x: Value,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Value, None]:
    def windows() -> float:
        count = 1
        for axis, length, step, before, gap in by_axis(call, kernel, stride or kernel, padding, dilation):
            size, outputs = x.shape[axis], call.shape[axis]
            read = torch.arange(outputs)[:, None] * step + torch.arange(length) * gap - before
            count *= most_copies(torch.where(read < size, read, -1).flatten())
        return math.sqrt(count)

    # A maximum moves by at most the largest move in its window; an entry counts in each window that holds it.
    return call.function(x, call.compute_once(windows)), None


@lipschitz_rule(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def _adaptive_max_pool(call: Call, x: Value, output_size: list[int]) -> tuple[Value, None]:
    def windows() -> float:
        count = 1
        for (axis,) in by_axis(call):
            size, outputs = x.shape[axis], call.shape[axis]
            held = [torch.arange(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]
            count *= most_copies(torch.cat(held))
        return math.sqrt(count)

    return call.function(x, call.compute_once(windows)), None


@lipschitz_rule(aten.avg_pool2d.default, aten.avg_pool3d.default)
def _avg_pool(
    call: Call,
    x: Value,
    kernel: list[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    def norm() -> float:
        result = 1.0
        for axis, length, step, before in by_axis(call, kernel, stride or kernel, padding):
            basis = torch.eye(x.shape[axis], dtype=torch.float64)[:, None]
            pool = functional.avg_pool1d(basis, length, step, before, ceil_mode, count_include_pad)[:, 0]
            if divisor_override is not None:
                pool = (pool != 0).double()
            result *= float(torch.linalg.matrix_norm(pool, 2))
        return result / abs(divisor_override or 1)

    # Each window's divisor is a product over the axes, so the map is the Kronecker product of one for each axis.
    return call.function(x, call.compute_once(norm))


@lipschitz_rule(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)
def _adaptive_avg_pool(call: Call, x: Value, output_size: list[int]) -> Value:
    def norm() -> float:
        result = 1.0
        for (axis,) in by_axis(call):
            basis = torch.eye(x.shape[axis], dtype=torch.float64)[:, None]
            pool = functional.adaptive_avg_pool1d(basis, call.shape[axis])[:, 0]
            result *= float(torch.linalg.matrix_norm(pool, 2))
        return result

    return call.function(x, call.compute_once(norm))


@lipschitz_rule(aten.mean.dim, aten.mean.default)
def _mean(call: Call, x: Value, *arguments: Any, **options: Any) -> Value:
    return call.function(x, math.sqrt(math.prod(call.shape) / math.prod(x.shape)))


@lipschitz_rule(aten.sum.dim_IntList, aten.sum.default)
def _sum(call: Call, x: Value, *arguments: Any, **options: Any) -> Value:
    return call.function(x, math.sqrt(math.prod(x.shape) / math.prod(call.shape)))


@lipschitz_rule(aten.amax.default, aten.amin.default, aten.logsumexp.default, aten.max.default, aten.min.default)
def _disjoint_maximum(call: Call, x: Value, *arguments: Any, **options: Any) -> Value:
    return call.function(x, 1.0)


@lipschitz_rule(aten.linalg_vector_norm.default)
def _vector_norm(
    call: Call,
    x: Value,
    ord: float = 2,
    dim: Sequence[int] | None = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
) -> Value:
    """By the triangle inequality a norm changes by at most the norm of the change, for each set of n entries.

    That is at most the L2 norm for orders of at least 2, and n^(1/p - 1/2) times it for orders p from 1 (Hoelder),
    attained at equal entries.
    """
    axes = list(dim) if dim else list(range(len(x.shape)))  # torch takes an empty list as all axes
    call.keep_samples_apart(x, axes)
    if not ord >= 1:
        call.refuse(f"the order {ord} gives no norm, expected at least 1")
    count = math.prod(x.shape[axis] for axis in axes)
    return call.function(x, float(count) ** max(1 / ord - 1 / 2, 0.0))


@lipschitz_rule(aten.std.correction)
def _std(
    call: Call, x: Value, dim: Sequence[int] | None = None, *, correction: float | None = None, keepdim: bool = False
) -> Value:
    """The L2 norm of n entries less their mean (a projection) over sqrt(n - correction); attained along a line."""
    axes = list(dim) if dim else list(range(len(x.shape)))
    call.keep_samples_apart(x, axes)
    divisor = math.prod(x.shape[axis] for axis in axes) - (1 if correction is None else correction)
    if not divisor > 0:
        call.refuse(f"its divisor is {divisor}, expected a positive one")
    return call.function(x, 1 / math.sqrt(divisor))


@lipschitz_rule(aten.cumsum.default)
def _cumsum(call: Call, x: Value, dim: int, *, dtype: torch.dtype | None = None) -> Value:
    """The lower triangle L of ones [n, n]: (L L^T)^-1 is a second difference with the least eigenvalue 4 sin(a)^2.

    Here a = pi / (2 (2 n + 1)), so the norm of L is 1 / (2 sin(a)), exactly.
    """
    call.keep_samples_apart(x, [dim])
    length = x.shape[dim] if x.shape else 1
    return call.function(x, 1 / (2 * math.sin(math.pi / (2 * (2 * length + 1)))))


@lipschitz_rule(aten.median.default)
def _median(call: Call, x: Value) -> Value:
    return call.function(x, 1.0)  # an order statistic: it moves by at most the largest move


@lipschitz_rule(
    aten.max.dim, aten.min.dim, aten.sort.default, aten.topk.default, aten.median.dim, aten.kthvalue.default
)
def _order(call: Call, x: Value, *arguments: Any, **options: Any) -> tuple[Value, None]:
    # Sorting is a permutation near almost every input, and continuous.
    return call.function(x, 1.0), None

"""Rules of operations that move entries, repeat them, leave them out or put values side by side."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from .registry import RULES, lipschitz_rule
from .values import Call, Copy, Value, most_copies

aten = torch.ops.aten


@lipschitz_rule(aten.cat.default)
def _cat(call: Call, tensors: list[Any], dim: int = 0) -> Value:
    return call.join([tensor for tensor in tensors if isinstance(tensor, Value)])


@lipschitz_rule(aten.where.self)
def _where(call: Call, condition: Any, a: Any, b: Any) -> Value:
    if isinstance(condition, Value):
        call.refuse("its condition depends on the network's input, so the result may jump")
    return call.join([call.broadcast(value) for value in (a, b) if isinstance(value, Value)])


@lipschitz_rule(aten.slice_scatter.default, aten.select_scatter.default)
def _scatter(call: Call, x: Any, source: Any, *place: Any) -> Value:
    return call.join([value for value in (x, source) if isinstance(value, Value)])


@lipschitz_rule(aten.copy.default)
def _copy(call: Call, x: Any, source: Any, non_blocking: bool = False) -> Value | Tensor:
    return call.broadcast(source) if isinstance(source, Value) else source.expand(call.shape)


@lipschitz_rule(aten.maximum.default, aten.minimum.default)
def _extreme(call: Call, a: Any, b: Any) -> Value:
    if not isinstance(a, Value) or not isinstance(b, Value):
        return call.function(call.broadcast(a if isinstance(a, Value) else b), 1.0)
    a, b = call.broadcast(a), call.broadcast(b)
    kind = "max" if call.target is aten.maximum.default else "min"
    # In each entry |max(a, b) - max(a', b')| <= max(|a - a'|, |b - b'|).
    return Value(call.shape, call.join([a, b]).compute, extreme=(kind, a, b))


@lipschitz_rule(aten.logaddexp.default, aten.hypot.default)
def _smooth_maximum(call: Call, a: Any, b: Any) -> Value:
    # The gradients (p, 1 - p), with p from 0 to 1, and (a, b) / hypot(a, b) have lengths of at most 1.
    return call.join([call.broadcast(value) for value in (a, b) if isinstance(value, Value)])


@lipschitz_rule(
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.t.default,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.expand.default,
    aten.repeat.default,
    aten.clone.default,
    aten.alias.default,
    aten.detach.default,
    aten.slice.Tensor,
    aten.select.int,
    aten.split.Tensor,
    aten.split_with_sizes.default,
    aten.unbind.int,
    aten.index.Tensor,
    aten.index_select.default,
    aten.gather.default,
    aten.flip.default,
    aten.roll.default,
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.channel_shuffle.default,
    aten.unfold.default,
    aten.diagonal.default,
    aten._upsample_nearest_exact1d.vec,
    aten._upsample_nearest_exact2d.vec,
    aten._upsample_nearest_exact3d.vec,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
)
def _move(call: Call, x: Any, *arguments: Any, **options: Any) -> Value | tuple[Value, ...]:
    if not isinstance(x, Value) or any(isinstance(leaf, Value) for leaf in tree_leaves((arguments, options))):
        call.refuse("its indices depend on the network's input, so the result may jump")

    def indices() -> list[Tensor]:
        # The operation is applied to numbered entries to find out where each goes; in the network's own type and on its
        # device, since torch's rounding of places in enlarged images depends on both.
        count = math.prod(x.shape) + 1
        dtype = call.evaluation.network_dtype if count < 2**24 else torch.float64
        numbers = torch.arange(1, count, dtype=dtype, device=call.evaluation.device).view(x.shape)
        moved = call.target(numbers, *arguments, **options)
        return [part.cpu().long() - 1 for part in ([moved] if isinstance(moved, Tensor) else moved)]

    parts = tuple(entries_of(call, x, number, part) for number, part in enumerate(call.compute_once(indices)))
    return parts if isinstance(call.target._schema.returns[0].type, torch.ListType) else parts[0]


@lipschitz_rule(aten.constant_pad_nd.default)
def _constant_pad(call: Call, x: Value, pad: list[int], value: float = 0) -> Value:
    return _pad(call, x, pad)


@lipschitz_rule(aten.pad.default)
def _pad(call: Call, x: Value, pad: list[int], mode: str = "constant", value: float | None = None) -> Value:
    def indices() -> Tensor:
        numbers = torch.arange(1, math.prod(x.shape) + 1, dtype=torch.float64).view(x.shape)
        return functional.pad(numbers, pad, mode=mode).long() - 1

    pairs = [(pad[2 * axis], pad[2 * axis + 1]) for axis in reversed(range(len(pad) // 2))]
    spatial = len(x.shape) - 2
    padding = None
    if min(pad, default=0) >= 0 and 1 <= len(pairs) <= spatial <= 3:
        sides = [(0, 0)] * (spatial - len(pairs)) + pairs
        padding = ("zeros" if mode == "constant" else mode, tuple(sides))
    return entries_of(call, x, 0, call.compute_once(indices), padding)


MOVES = frozenset(operation for operation, rule in RULES.items() if rule in (_move, _constant_pad, _pad))
"""Operations that move, repeat or leave out entries, and compute nothing."""


def entries_of(call: Call, x: Value, key: Hashable, indices: Tensor, padding: Any = None) -> Value:
    """The value with these entries of ``x``, -1 for a constant; ``key`` distinguishes several values of one call."""

    def compose() -> tuple[Tensor, int, bool]:
        identity = torch.arange(math.prod(x.shape)).view(x.shape)
        same = torch.equal(indices, identity)
        if isinstance(x.operator, Copy):  # entries of its root, -1 kept
            of_root = torch.cat([x.operator.indices.flatten(), torch.tensor([-1])])
            return of_root[indices], most_copies(of_root[indices]), same
        return indices, most_copies(indices), same

    of_root, copies, same = call.compute_once(compose, ("entries", key))
    if same:
        return x
    root = x.root
    operator = Copy(root, of_root, copies, padding)
    return Value(tuple(indices.shape), lambda: root.bound * math.sqrt(copies), x, operator)


@lipschitz_rule(aten._to_copy.default)
def _to_copy(call: Call, x: Value, *, dtype: torch.dtype | None = None, **options: Any) -> Value:
    if dtype not in (None, torch.float32, torch.float64):
        call.refuse(f"a conversion to {dtype} rounds, so the result may jump")
    return x


@lipschitz_rule(aten._assert_tensor_metadata.default)
def _assertion(call: Call, *arguments: Any, **options: Any) -> None:
    return None


@lipschitz_rule(aten.full_like.default)
def _full_like(call: Call, x: Value, fill: float, *, dtype: torch.dtype | None = None, **options: Any) -> Tensor:
    return torch.full(call.shape, fill, dtype=dtype or call.evaluation.network_dtype, device=call.evaluation.device)

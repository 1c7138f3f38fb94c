"""One rule for each ATen operation: from bounds of its inputs to a bound of its output.

A rule is a function of the `Call` and of the operation's own arguments, in ATen's order. Tensors that depend on the
network's input come as a `Value`; all others (weights, buffers, constants) as tensors with their present values. It
returns a `Value`, a tensor that does not depend on the input, or a tuple of these where the operation has several
outputs. What has no rule has no bound: there is no default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn, Protocol, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.nn import functional
from torch.utils._pytree import tree_leaves

from .norms import UNIT_ROUNDOFF, Convolution, Linear, Operator

aten = torch.ops.aten

Number = float | Tensor
"""A bound: a float when it is proven, a scalar tensor when it is an estimate with gradient."""

Rule = Callable[..., Any]
_T = TypeVar("_T")
_R = TypeVar("_R", bound=Rule)

SMALLEST = 1e-100
"""Bounds and constants that are smaller are refused: products of a few of them would leave float64's range."""

_PRODUCT = "a product of two activations has no global bound"

RULES: dict[OpOverload, Rule] = {}
"""The registered rules. The exported graph keeps these operations whole and decomposes all others."""


class NoLipschitzRuleError(ValueError):
    """An operation of the network has no Lipschitz bound; the message names it, its node and its module."""


def lipschitz_rule(*operations: OpOverload) -> Callable[[_R], _R]:
    """Register the decorated function as the rule of one or more ATen operations; it replaces an earlier rule.

    A rule must hold for all inputs: whoever registers one vouches for every certificate of a network that uses it.

    Raises:
        TypeError: for what is not an overload of an operation, such as ``torch.sin`` or ``torch.ops.aten.sin``.

    Example:
        >>> @lipschitz_rule(torch.ops.aten.sin.default)
        ... def _sin(call, x):
        ...     return call.function(x, 1.0)  # |sin'| <= 1
    """
    for operation in operations:
        if not isinstance(operation, OpOverload):
            raise TypeError(
                f"operations: got {operation!r}, expected an overload of an operation, as torch.ops.aten.sin.default."
            )

    def register(rule: _R) -> _R:
        for operation in operations:
            RULES[operation] = rule
        return rule

    return register


@dataclass(frozen=True)
class Scale:
    """Multiplication by constants: ``factor`` broadcasts against the value."""

    factor: Tensor


@dataclass(frozen=True)
class Copy:
    """Entries of ``root`` moved, repeated or left out: ``indices`` [*shape] into its flat entries, -1 for a constant.

    ``copies`` is how often one entry occurs, at most. ``padding`` is (mode, pairs) where spatial padding is all it is.
    """

    root: Value
    indices: Tensor
    copies: int
    padding: tuple[str, tuple[tuple[int, int], ...]] | None = None


@dataclass(frozen=True, eq=False)
class Value:
    """An intermediate tensor of one sample, as a function of the network's input, with a bound of its slope.

    ``bound`` is computed when it is first asked for: a linear operation may be merged with the next one before that.

    Attributes:
        shape: of the tensor, the batch of one included.
        compute: gives the bound.
        parent, operator: where the value is a linear function of another value (and constants), that value and the
            operator.
        extreme: ``("max", a, b)`` or ``("min", a, b)`` where the value is the maximum or minimum of two others.
    """

    shape: tuple[int, ...]
    compute: Callable[[], Number]
    parent: Value | None = None
    operator: Scale | Copy | Linear | Convolution | None = None
    extreme: tuple[str, Value, Value] | None = None

    @cached_property
    def bound(self) -> Number:
        """A Lipschitz constant (L2 to L2) of this value as a function of the network's input."""
        bound = self.compute()
        if isinstance(bound, float) and not (bound == 0 or bound >= SMALLEST):
            raise ValueError(f"network: a rule gave the bound {bound}, expected 0 or at least {SMALLEST}.")
        return bound

    @property
    def root(self) -> Value:
        return self.operator.root if isinstance(self.operator, Copy) else self


class Evaluation(Protocol):
    """What one evaluation of a graph offers to the rules; see `LipschitzGraph`."""

    static: dict[Hashable, Any]
    device: torch.device
    dtype: torch.dtype
    network_dtype: torch.dtype
    proven: bool

    def norm(self, call: Call, operator: Operator) -> Number:
        """The operator's norm: a proven bound, or an estimate with gradient."""
        ...

    def number(self, value: Tensor) -> Number:
        """A scalar tensor as this evaluation carries bounds."""
        ...

    def scale(self, call: Call, shape: tuple[int, ...], factor: Tensor) -> Number:
        """The norm of a multiplication, entry by entry, of values of this shape by a factor: its largest magnitude."""
        ...

    def variance(self, call: Call, running: Tensor) -> Tensor:
        """The variance [C] that a batch normalisation divides by."""
        ...


@dataclass(frozen=True)
class Call:
    """One operation of the graph, where it stands in the network, and what a rule can make of its arguments.

    Attributes:
        name: of the graph's node.
        target: the operation.
        module: path of the module in whose forward it is called, "" for the network itself.
        shapes: of the outputs.
    """

    name: str
    target: Any
    module: str
    shapes: tuple[tuple[int, ...], ...]
    evaluation: Evaluation = field(repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first output."""
        return self.shapes[0]

    def refuse(self, reason: str) -> NoReturn:
        """Raise `NoLipschitzRuleError` with this operation's place."""
        raise NoLipschitzRuleError(f"{self.target} (node {self.name!r}, {self.place}): {reason}.")

    @property
    def place(self) -> str:
        return f"module {self.module!r}" if self.module else "the network's own forward"

    def function(self, x: Value, slope: Number) -> Value:
        """A function of ``x`` with this Lipschitz constant."""
        return Value(self.shape, lambda: x.bound * slope)

    def linear(self, x: Value, operator: Linear | Convolution, shape: tuple[int, ...] | None = None) -> Value:
        """A linear operator applied to ``x``, plus constants: to the last dimension, or to all but the first.

        ``shape`` is that of the result, if it is not the call's output.
        """
        if operator.weight.numel():
            self.not_tiny(operator.weight.detach().abs().max())
        return Value(shape or self.shape, lambda: x.bound * self.evaluation.norm(self, operator), x, operator)

    def scaled(self, x: Value, factor: Tensor | float) -> Value:
        """``x`` times constants that broadcast; merged with a scaling, convolution or linear map before it."""
        factor = self.factor(factor)
        if torch.broadcast_shapes(x.shape, factor.shape) != x.shape:  # type: ignore[no-untyped-call]
            x = self.broadcast(x)
        if isinstance(x.operator, Scale) and x.parent is not None:
            return self._scale(x.parent, self.not_tiny(x.operator.factor * factor))
        if isinstance(x.operator, Convolution) and x.parent is not None:
            channels = _along(factor, x.shape, 1)
            if channels is not None:
                return self.linear(x.parent, scaled_outputs(x.operator, channels), x.shape)
        if isinstance(x.operator, Linear) and x.parent is not None:
            features = _along(factor, x.shape, len(x.shape) - 1)
            if features is not None:
                return self.linear(x.parent, Linear(x.operator.weight * features[:, None]), x.shape)
        return self._scale(x, factor)

    def factor(self, value: Tensor | float) -> Tensor:
        """Constants as the evaluation computes with them; a product of small integer types would overflow."""
        if not isinstance(value, Tensor):
            value = torch.tensor(value, dtype=torch.complex128 if isinstance(value, complex) else torch.float64)
        if value.is_complex():
            self.refuse("it multiplies by complex numbers, expected real ones")
        return self.not_tiny(value.to(self.evaluation.device, self.evaluation.dtype))

    def not_tiny(self, constants: Tensor) -> Tensor:
        """Refuse, in a proven bound, what products would take out of float64's range."""
        if self.evaluation.proven:
            magnitudes = constants.abs()
            if bool(((magnitudes > 0) & (magnitudes < SMALLEST)).any()):
                self.refuse(f"it multiplies by constants below {SMALLEST}, which float64 cannot bound")
        return constants

    def _scale(self, x: Value, factor: Tensor) -> Value:
        return Value(x.shape, lambda: x.bound * self.evaluation.scale(self, x.shape, factor), x, Scale(factor))

    def shifted(self, x: Value) -> Value:
        """``x`` plus constants: as linear in what is before it as ``x``, but another value."""
        if isinstance(x.operator, Copy):  # its entries are no longer those of its root
            return Value(x.shape, lambda: x.bound)
        return Value(x.shape, lambda: x.bound, x.parent, x.operator)

    def broadcast(self, x: Value) -> Value:
        """``x`` repeated to the shape of the output."""
        if x.shape == self.shape:
            return x
        return self.function(x, math.sqrt(math.prod(self.shape) / math.prod(x.shape)))

    def joint(self, values: Sequence[Value]) -> Value:
        """Several values side by side, each entry of each at most once: the root of the sum of squares.

        Parts of one tensor count as that tensor, as often as one of its entries occurs. The maximum and minimum of
        two values are these two values, in another order.
        """
        return Value(self.shape, lambda: self._joint_bound(_without_extremes(list(values))))

    def _joint_bound(self, values: list[Value]) -> Number:
        bounds: list[Number] = []
        for root in dict.fromkeys(value.root for value in values):
            parts = [value for value in values if value.root is root]

            def occurrences(root: Value = root, parts: list[Value] = parts) -> int:
                every = torch.arange(math.prod(root.shape))
                indices = [part.operator.indices.flatten() if part is not root else every for part in parts]  # type: ignore[union-attr]
                return _most_copies(torch.cat(indices))

            copies = 1 if parts == [root] else self.cached(occurrences, len(bounds))
            bounds.append(root.bound * math.sqrt(copies))
        if any(isinstance(bound, Tensor) for bound in bounds):
            like = next(bound for bound in bounds if isinstance(bound, Tensor))
            norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.as_tensor(b).to(like) for b in bounds]))
            return norm
        return math.hypot(*[float(bound) for bound in bounds])

    def cached(self, compute: Callable[[], _T], key: Hashable = None) -> _T:
        """What depends on shapes and constants alone, computed once for the graph."""
        place = (self.name, key)
        if place not in self.evaluation.static:
            self.evaluation.static[place] = compute()
        result: _T = self.evaluation.static[place]
        return result


def scaled_outputs(operator: Convolution, factor: Tensor) -> Convolution:
    """The convolution with each output channel multiplied: [outputs]."""
    return operator.with_weight(
        _scaled_channels(operator.weight, factor, operator.groups, first=not operator.transposed)
    )


def scaled_inputs(weight: Tensor, factor: Tensor, groups: int, transposed: bool) -> Tensor:
    """The weight of a convolution whose input channels are multiplied before it: [inputs]."""
    return _scaled_channels(weight, factor, groups, first=transposed)


def _scaled_channels(weight: Tensor, factor: Tensor, groups: int, *, first: bool) -> Tensor:
    """Multiply along the first axis, which holds all groups' channels, or the second, which holds one group's."""
    rest = [1] * (weight.dim() - 2)
    if first:
        return weight * factor.view(-1, 1, *rest)
    parts = weight.view(groups, -1, *weight.shape[1:]) * factor.view(groups, 1, -1, *rest)
    return parts.view(weight.shape)


def _along(factor: Tensor, shape: tuple[int, ...], axis: int) -> Tensor | None:
    """The factors [shape[axis]] where they depend on that axis alone, None where they do not."""
    full = (1,) * (len(shape) - factor.dim()) + tuple(factor.shape)
    if any(size != 1 for place, size in enumerate(full) if place != axis):
        return None
    return factor.reshape(-1).expand(shape[axis])


def _most_copies(indices: Tensor) -> int:
    """How often the most frequent index occurs; -1 stands for constants."""
    real = indices[indices >= 0]
    return int(torch.bincount(real).max()) if real.numel() else 0


def _same(a: Value, b: Value) -> bool:
    """Whether two values are equal for every input: one value, or the same entries of one, without constants."""
    if a is b:
        return True
    one, other = a.operator, b.operator
    return (
        isinstance(one, Copy)
        and isinstance(other, Copy)
        and one.root is other.root
        and torch.equal(one.indices, other.indices)
        and int(one.indices.min()) >= 0
    )


def _without_extremes(values: list[Value]) -> list[Value]:
    """The same list with each pair of a maximum and a minimum of the same two values replaced by these values."""
    for i, first in enumerate(values):
        for j, second in enumerate(values):
            if first.extreme and second.extreme and (first.extreme[0], second.extreme[0]) == ("max", "min"):
                _, a, b = first.extreme
                _, c, d = second.extreme
                if (_same(a, c) and _same(b, d)) or (_same(a, d) and _same(b, c)):
                    rest = [value for place, value in enumerate(values) if place not in (i, j)]
                    return [a, b, *_without_extremes(rest)]
    return values


# Linear layers


@lipschitz_rule(aten.convolution.default)
def _convolution(
    call: Call,
    x: Any,
    weight: Any,
    bias: Any,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Value:
    if isinstance(weight, Value) or isinstance(bias, Value):
        call.refuse("its weight depends on the network's input, and products of activations have no global bound")
    dimensions = weight.dim() - 2
    stride, padding, dilation, output_padding = (
        list(values) * dimensions if len(values) == 1 else list(values)
        for values in (stride, padding, dilation, output_padding)
    )
    pairs, mode = [(side, side) for side in padding], "zeros"
    if isinstance(x.operator, Copy) and x.operator.padding and not transposed:
        before, sides = x.operator.padding
        if before == "zeros" or not any(padding):
            mode, pairs, x = before, [(a + p, b + p) for (a, b), p in zip(sides, padding, strict=True)], x.parent
    if isinstance(x.operator, Scale):
        channels = _along(x.operator.factor, x.shape, 1)
        if channels is not None:
            weight, x = scaled_inputs(weight, channels, groups, transposed), x.parent
    operator = Convolution(
        weight,
        x.shape[2:],
        stride=stride,
        padding=pairs,
        dilation=dilation,
        groups=groups,
        transposed=transposed,
        output_padding=output_padding if transposed else 0,
        padding_mode=mode,
    )
    return call.linear(x, operator)


@lipschitz_rule(aten.linear.default)
def _linear(call: Call, x: Any, weight: Any, bias: Any = None) -> Value:
    if isinstance(weight, Value) or isinstance(bias, Value):
        call.refuse(_PRODUCT)
    if weight.dim() == 1:  # the result has no axis of features
        return Value(call.shape, lambda: x.bound * call.evaluation.norm(call, Linear(weight[None])))
    if isinstance(x.operator, Scale):
        features = _along(x.operator.factor, x.shape, len(x.shape) - 1)
        if features is not None:
            weight, x = weight * features, x.parent
    return call.linear(x, Linear(weight))


@lipschitz_rule(aten.mm.default)
def _mm(call: Call, a: Any, b: Any) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        call.refuse(_PRODUCT)
    if isinstance(a, Value):
        return _linear(call, a, b.t())
    return Value(call.shape, lambda: b.bound * call.evaluation.norm(call, Linear(a)))


@lipschitz_rule(aten.addmm.default)
def _addmm(call: Call, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Value:
    if isinstance(bias, Value):
        call.refuse("the term that it adds depends on the network's input, expected a constant bias")
    product = _mm(call, a, b)
    return product if alpha == 1 else call.scaled(product, alpha)


@lipschitz_rule(aten.bmm.default)
def _bmm(call: Call, a: Any, b: Any) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        call.refuse(f"{_PRODUCT}, as in attention")
    x, matrices = (a, b) if isinstance(a, Value) else (b, a)
    return Value(call.shape, lambda: x.bound * call.evaluation.number(torch.linalg.matrix_norm(matrices, 2).max()))


@lipschitz_rule(aten._native_batch_norm_legit_no_training.default)
def _batch_norm(
    call: Call, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float
) -> tuple[Value, None, None]:
    if any(isinstance(argument, Value) for argument in (weight, bias, mean, variance)):
        call.refuse(_PRODUCT)
    variance = call.evaluation.variance(call, variance)
    factor = torch.rsqrt(variance + eps) if weight is None else weight * torch.rsqrt(variance + eps)
    return call.scaled(x, factor.view(-1, *[1] * (len(x.shape) - 2))), None, None


# Sums, products with constants


@lipschitz_rule(aten.add.Tensor, aten.add.Scalar)
def _add(call: Call, a: Any, b: Any, alpha: float = 1) -> Value:
    if not isinstance(a, Value):
        return call.shifted(call.broadcast(b if alpha == 1 else call.scaled(b, alpha)))
    if not isinstance(b, Value):
        return call.shifted(call.broadcast(a))
    if alpha != 1:
        b = call.scaled(b, alpha)
    merged = _plus_identity(call, a, b) or _plus_identity(call, b, a)
    if merged is not None:
        return merged
    a, b = call.broadcast(a), call.broadcast(b)
    return Value(call.shape, lambda: a.bound + b.bound)


@lipschitz_rule(aten.sub.Tensor, aten.sub.Scalar)
def _sub(call: Call, a: Any, b: Any, alpha: float = 1) -> Value:
    return _add(call, a, b, alpha=-alpha)


@lipschitz_rule(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(call: Call, a: Any, b: Any, alpha: float = 1) -> Value:
    return _add(call, b, a, alpha=-alpha)


@lipschitz_rule(aten.mul.Tensor, aten.mul.Scalar)
def _mul(call: Call, a: Any, b: Any) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        call.refuse(_PRODUCT)
    return call.scaled(a, b) if isinstance(a, Value) else call.scaled(b, a)


@lipschitz_rule(aten.div.Tensor, aten.div.Scalar)
def _div(call: Call, a: Any, b: Any) -> Value:
    if isinstance(b, Value):
        call.refuse("a division by what depends on the network's input has no global bound")
    return call.scaled(a, 1 / call.factor(b))


@lipschitz_rule(aten.neg.default)
def _neg(call: Call, x: Value) -> Value:
    return call.scaled(x, -1.0)


def _plus_identity(call: Call, x: Value, convolved: Value) -> Value | None:
    """s x + conv(x) as one convolution with s on the kernel's middle, or None where that is not what they are."""
    operator, source = convolved.operator, convolved.parent
    if source is None or not isinstance(operator, Convolution):
        return None
    if operator.transposed or operator.input_shape != operator.output_shape:
        return None
    factor: Tensor | None = None
    if x is source:
        factor = operator.weight.new_ones(x.shape[1])
    elif isinstance(x.operator, Scale) and x.parent is source:
        factor = _along(x.operator.factor, x.shape, 1)
    middle = []
    for kernel, step, gap, (before, _) in zip(
        operator.kernel_size, operator.stride, operator.dilation, operator.padding, strict=True
    ):
        if step != 1 or before % gap or before // gap >= kernel:
            return None
        middle.append(before // gap)
    if factor is None:
        return None
    channels = torch.arange(len(factor), device=factor.device)
    identity = torch.zeros_like(operator.weight)
    at = [torch.full_like(channels, place) for place in middle]
    identity.index_put_((channels, channels % operator.weight.shape[1], *at), factor.to(identity))
    merged = operator.with_weight(operator.weight + identity)

    def bound() -> Number:
        # Where the sum cancels, the rounding of its terms counts: an operator with entries of at most 4 u times theirs.
        terms = operator.weight.detach().abs().sum() + factor.detach().abs().max()
        rounding = call.evaluation.number(terms * (4 * UNIT_ROUNDOFF))
        return source.bound * (call.evaluation.norm(call, merged) + rounding)

    return Value(call.shape, bound)


# Side by side


@lipschitz_rule(aten.cat.default)
def _cat(call: Call, tensors: list[Any], dim: int = 0) -> Value:
    return call.joint([tensor for tensor in tensors if isinstance(tensor, Value)])


@lipschitz_rule(aten.where.self)
def _where(call: Call, condition: Any, a: Any, b: Any) -> Value:
    if isinstance(condition, Value):
        call.refuse("its condition depends on the network's input, so the result may jump")
    return call.joint([call.broadcast(value) for value in (a, b) if isinstance(value, Value)])


@lipschitz_rule(aten.slice_scatter.default, aten.select_scatter.default)
def _scatter(call: Call, x: Any, source: Any, *place: Any) -> Value:
    return call.joint([value for value in (x, source) if isinstance(value, Value)])


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
    return Value(call.shape, call.joint([a, b]).compute, extreme=(kind, a, b))


# Entries moved, repeated, left out


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
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
    aten.upsample_nearest3d.vec,
)
def _moved(call: Call, x: Any, *arguments: Any, **options: Any) -> Value | tuple[Value, ...]:
    if not isinstance(x, Value) or any(isinstance(leaf, Value) for leaf in tree_leaves((arguments, options))):
        call.refuse("its indices depend on the network's input, so the result may jump")

    def indices() -> list[Tensor]:
        # The operation itself, on numbered entries, tells where each goes; in the network's own type and on its device,
        # by which torch rounds where it enlarges images.
        count = math.prod(x.shape) + 1
        dtype = call.evaluation.network_dtype if count < 2**24 else torch.float64
        numbers = torch.arange(1, count, dtype=dtype, device=call.evaluation.device).view(x.shape)
        moved = call.target(numbers, *arguments, **options)
        return [part.cpu().long() - 1 for part in ([moved] if isinstance(moved, Tensor) else moved)]

    parts = tuple(_part(call, x, number, part) for number, part in enumerate(call.cached(indices)))
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
    return _part(call, x, 0, call.cached(indices), padding)


def _part(call: Call, x: Value, number: int, indices: Tensor, padding: Any = None) -> Value:
    """The value with these entries of ``x``."""

    def placed() -> tuple[Tensor, int, bool]:
        identity = torch.arange(math.prod(x.shape)).view(x.shape)
        same = torch.equal(indices, identity)
        if isinstance(x.operator, Copy):  # entries of its root, -1 kept
            of_root = torch.cat([x.operator.indices.flatten(), torch.tensor([-1])])
            return of_root[indices], _most_copies(of_root[indices]), same
        return indices, _most_copies(indices), same

    of_root, copies, same = call.cached(placed, number)
    if same:
        return x
    root = x.root
    operator = Copy(root, of_root, copies, padding)
    return Value(call.shapes[number], lambda: root.bound * math.sqrt(copies), x, operator)


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


# Pooling and other reductions


def _by_axis(call: Call, *settings: Sequence[int]) -> list[tuple[int, ...]]:
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
        for axis, length, step, before, gap in _by_axis(call, kernel, stride or kernel, padding, dilation):
            size, outputs = x.shape[axis], call.shape[axis]
            read = torch.arange(outputs)[:, None] * step + torch.arange(length) * gap - before
            count *= _most_copies(torch.where(read < size, read, -1).flatten())
        return math.sqrt(count)

    # A maximum moves by at most the largest move in its window; an entry counts in each window that holds it.
    return call.function(x, call.cached(windows)), None


@lipschitz_rule(aten.adaptive_max_pool2d.default, aten.adaptive_max_pool3d.default)
def _adaptive_max_pool(call: Call, x: Value, output_size: list[int]) -> tuple[Value, None]:
    def windows() -> float:
        count = 1
        for (axis,) in _by_axis(call):
            size, outputs = x.shape[axis], call.shape[axis]
            held = [torch.arange(i * size // outputs, -(-(i + 1) * size // outputs)) for i in range(outputs)]
            count *= _most_copies(torch.cat(held))
        return math.sqrt(count)

    return call.function(x, call.cached(windows)), None


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
        for axis, length, step, before in _by_axis(call, kernel, stride or kernel, padding):
            basis = torch.eye(x.shape[axis], dtype=torch.float64)[:, None]
            pool = functional.avg_pool1d(basis, length, step, before, ceil_mode, count_include_pad)[:, 0]
            if divisor_override is not None:
                pool = (pool != 0).double()
            result *= float(torch.linalg.matrix_norm(pool, 2))
        return result / abs(divisor_override or 1)

    # Each window's divisor is a product over the axes, so the map is the Kronecker product of one for each axis.
    return call.function(x, call.cached(norm))


@lipschitz_rule(aten._adaptive_avg_pool2d.default, aten._adaptive_avg_pool3d.default)
def _adaptive_avg_pool(call: Call, x: Value, output_size: list[int]) -> Value:
    def norm() -> float:
        result = 1.0
        for (axis,) in _by_axis(call):
            basis = torch.eye(x.shape[axis], dtype=torch.float64)[:, None]
            pool = functional.adaptive_avg_pool1d(basis, call.shape[axis])[:, 0]
            result *= float(torch.linalg.matrix_norm(pool, 2))
        return result

    return call.function(x, call.cached(norm))


@lipschitz_rule(aten.mean.dim, aten.mean.default)
def _mean(call: Call, x: Value, *arguments: Any, **options: Any) -> Value:
    return call.function(x, math.sqrt(math.prod(call.shape) / math.prod(x.shape)))


@lipschitz_rule(aten.sum.dim_IntList, aten.sum.default)
def _sum(call: Call, x: Value, *arguments: Any, **options: Any) -> Value:
    return call.function(x, math.sqrt(math.prod(x.shape) / math.prod(call.shape)))


@lipschitz_rule(aten.amax.default, aten.amin.default, aten.logsumexp.default, aten.max.default, aten.min.default)
def _disjoint_maximum(call: Call, x: Value, *arguments: Any, **options: Any) -> Value:
    return call.function(x, 1.0)


@lipschitz_rule(aten.max.dim, aten.min.dim, aten.sort.default, aten.topk.default)
def _ordered(call: Call, x: Value, *arguments: Any, **options: Any) -> tuple[Value, None]:
    # Sorting is a permutation near almost every input, and continuous.
    return call.function(x, 1.0), None


# Elementwise functions: the largest slope

_FLOAT32 = 1 + 1e-6  # torch keeps some of its own constants in float32


@lipschitz_rule(
    aten.relu.default,
    aten.tanh.default,
    aten.log_sigmoid.default,
    aten.abs.default,
    aten.sin.default,
    aten.cos.default,
    aten.atan.default,
)
def _slope_one(call: Call, x: Value) -> Value:
    return call.function(x, 1.0)


@lipschitz_rule(aten.softplus.default)
def _softplus(call: Call, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    # Where beta x passes the threshold torch gives x itself: at 20 a step of 2e-9 / beta, which counts as rounding.
    if threshold < 20 or beta < 0.1:
        call.refuse(f"with beta {beta} it jumps at its threshold of {threshold}, expected at least 0.1 and 20")
    return call.function(x, 1.0)


@lipschitz_rule(aten.hardtanh.default, aten.clamp.default, aten.clamp_min.default, aten.clamp_max.default)
def _clamp(call: Call, x: Any, *limits: Any) -> Value:
    if not isinstance(x, Value) or any(isinstance(limit, Value) for limit in limits):
        call.refuse("its limits depend on the network's input, expected constants")
    return call.function(call.broadcast(x), 1.0)


@lipschitz_rule(aten.clamp.Tensor)
def _clamp_tensor(call: Call, x: Any, *limits: Any) -> Value:
    return _clamp(call, x, *limits)


@lipschitz_rule(aten.leaky_relu.default)
def _leaky_relu(call: Call, x: Value, slope: float = 0.01) -> Value:
    return call.function(x, max(1.0, abs(slope)))


@lipschitz_rule(aten.prelu.default)
def _prelu(call: Call, x: Value, weight: Tensor) -> Value:
    return Value(call.shape, lambda: x.bound * call.evaluation.number(weight.abs().max().clamp_min(1)))


@lipschitz_rule(aten.elu.default)
def _elu(call: Call, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    if input_scale < 0:
        call.refuse(f"elu with input_scale {input_scale} has no global bound, expected a positive one")
    return call.function(x, abs(scale) * max(1.0, abs(alpha * input_scale)))


@lipschitz_rule(aten.celu.default)
def _celu(call: Call, x: Value, alpha: float = 1) -> Value:
    if alpha <= 0:
        call.refuse(f"celu with alpha {alpha} has no global bound, expected a positive one")
    return call.function(x, 1.0)


@lipschitz_rule(aten.selu.default)
def _selu(call: Call, x: Value) -> Value:
    return call.function(x, 1.7581)  # scale * alpha, 1.758099...


@lipschitz_rule(aten.gelu.default)
def _gelu(call: Call, x: Value, *, approximate: str = "none") -> Value:
    return call.function(x, 1.129)  # exact: 1.128904... at sqrt(2); with tanh: 1.128993...


@lipschitz_rule(aten.silu.default)
def _silu(call: Call, x: Value) -> Value:
    return call.function(x, 1.1)  # 1.099839...


@lipschitz_rule(aten.mish.default)
def _mish(call: Call, x: Value) -> Value:
    return call.function(x, 1.089)  # 1.088498...


@lipschitz_rule(aten.hardswish.default)
def _hardswish(call: Call, x: Value) -> Value:
    return call.function(x, 1.5 * _FLOAT32)  # (2 x + 3) / 6 at 3


@lipschitz_rule(aten.hardsigmoid.default)
def _hardsigmoid(call: Call, x: Value) -> Value:
    return call.function(x, _FLOAT32 / 6)


@lipschitz_rule(aten.sigmoid.default)
def _sigmoid(call: Call, x: Value) -> Value:
    return call.function(x, 0.25)


@lipschitz_rule(aten.erf.default)
def _erf(call: Call, x: Value) -> Value:
    return call.function(x, 2 / math.sqrt(math.pi))


# What never has a bound

UNBOUNDED: dict[OpOverload, str] = {
    aten.native_layer_norm.default: "layer normalisation divides by the input's own deviation, which may be near zero",
    aten.native_group_norm.default: "group normalisation divides by the input's own deviation, which may be near zero",
    aten._native_batch_norm_legit.no_stats: "a normalisation by the batch's or the input's own statistics has no bound",
    aten._softmax.default: "softmax inside a network is attention or a probability, expected logits",
    aten.native_dropout.default: "dropout acts in evaluation mode too, so the network is random",
}
"""Why some operations have no rule."""

"""The values and calls that rules work with: values with a bound, linear operations on them, and helpers."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NoReturn, Protocol, TypeVar

import torch
from torch import Tensor

from ...moved import make_alias
from ..norms import Convolution, Linear, Operator
from .registry import NoLipschitzRuleError

Number = float | Tensor
"""A bound: a float when it is proven, a scalar tensor when it is an estimate with gradient; or several at once, as a
vector."""

_T = TypeVar("_T")

SMALLEST = 1e-100
"""Smaller bounds and constants are refused: products of a few of them would leave float64's range."""

FLOAT32 = 1 + 1e-6
"""Factor for functions whose constants torch keeps in float32."""

PRODUCT = "a product of two activations has no global bound"


@dataclass(frozen=True)
class Scale:
    """Multiplication by constants: ``factor`` broadcasts against the value."""

    factor: Tensor


@dataclass(frozen=True)
class Copy:
    """Entries of ``root`` moved, repeated or left out: ``indices`` [*shape] into its flat entries, -1 for a constant.

    ``copies`` is the largest number of times that an entry occurs. ``padding`` is (mode, pairs) for spatial padding.
    """

    root: Value
    indices: Tensor
    copies: int
    padding: tuple[str, tuple[tuple[int, int], ...]] | None = None


@dataclass(frozen=True)
class Magnitude:
    """|x| + c of a value x and constants c; ``excess`` bounds its deviation by rounding."""

    inner: Value
    constants: Tensor | float
    excess: Number = 0.0


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
        magnitude: where the value is |x| + c, with constants c.
        same_differences: for a value [1, C], another one whose entries differ from each other by the same numbers.
    """

    shape: tuple[int, ...]
    compute: Callable[[], Number]
    parent: Value | None = None
    operator: Scale | Copy | Linear | Convolution | None = None
    extreme: tuple[str, Value, Value] | None = None
    magnitude: Magnitude | None = None
    same_differences: Value | None = None

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
    """The interface that an evaluation of a graph offers to the rules; see `LipschitzGraph`."""

    static: dict[Hashable, Any]
    device: torch.device
    dtype: torch.dtype
    network_dtype: torch.dtype
    proven: bool

    def norm(self, call: Call, operator: Operator) -> Number:
        """The operator's norm: a proven bound, or an estimate with gradient."""
        ...

    def number(self, value: Tensor) -> Number:
        """A scalar tensor converted to this evaluation's type of bounds."""
        ...

    def scale(self, call: Call, shape: tuple[int, ...], factor: Tensor) -> Number:
        """The norm of a multiplication, entry by entry, of values of this shape by a factor: its largest magnitude."""
        ...

    def variance(self, call: Call, running: Tensor) -> Tensor:
        """The variance [C] that a batch normalisation divides by."""
        ...


@dataclass(frozen=True)
class Call:
    """One operation of the graph with its place in the network, and the values that a rule can make of its arguments.

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

    def refuse(self, reason: str, cause: Exception | None = None) -> NoReturn:
        """Raise `NoLipschitzRuleError` with this operation's place."""
        raise NoLipschitzRuleError(f"{self.target} (node {self.name!r}, {self.place}): {reason}.") from cause

    def keep_samples_apart(self, x: Value, axes: Iterable[int]) -> None:
        """Refuse operations along axis 0 if it is the batch axis with the one sample of the trace.

        If the batch axis is another one, the comparison of a batch with single samples finds such operations.
        """
        if x.shape and x.shape[0] == 1 and any(axis in (0, -len(x.shape)) for axis in axes):
            self.refuse("it acts along axis 0, which holds the samples of a batch, expected each sample by itself")

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

    def multiply(self, x: Value, factor: Tensor | float) -> Value:
        """``x`` times constants that broadcast; merged with a scaling, convolution or linear map before it."""
        factor = self.factor(factor)
        if torch.broadcast_shapes(x.shape, factor.shape) != x.shape:  # type: ignore[no-untyped-call]
            x = self.broadcast(x)
        if isinstance(x.operator, Scale) and x.parent is not None:
            return self._scale(x.parent, self.not_tiny(x.operator.factor * factor))
        if isinstance(x.operator, Convolution) and x.parent is not None:
            channels = along(factor, x.shape, 1)
            if channels is not None:
                return self.linear(x.parent, scale_outputs(x.operator, channels), x.shape)
        if isinstance(x.operator, Linear) and x.parent is not None:
            features = along(factor, x.shape, len(x.shape) - 1)
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
        """Refuse, in a proven bound, constants so small that products would leave float64's range."""
        if self.evaluation.proven:
            magnitudes = constants.abs()
            if bool(((magnitudes > 0) & (magnitudes < SMALLEST)).any()):
                self.refuse(f"it multiplies by constants below {SMALLEST}, which float64 cannot bound")
        return constants

    def _scale(self, x: Value, factor: Tensor) -> Value:
        return Value(x.shape, lambda: x.bound * self.evaluation.scale(self, x.shape, factor), x, Scale(factor))

    def shift(self, x: Value) -> Value:
        """``x`` plus constants: the same linear function of its parent as ``x``, but another value."""
        if isinstance(x.operator, Copy):  # its entries are no longer entries of its root
            return Value(x.shape, lambda: x.bound)
        return Value(x.shape, lambda: x.bound, x.parent, x.operator)

    def broadcast(self, x: Value) -> Value:
        """``x`` repeated to the shape of the output."""
        if x.shape == self.shape:
            return x
        return self.function(x, math.sqrt(math.prod(self.shape) / math.prod(x.shape)))

    def join(self, values: Sequence[Value]) -> Value:
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
                return most_copies(torch.cat(indices))

            copies = 1 if parts == [root] else self.compute_once(occurrences, len(bounds))
            bounds.append(root.bound * math.sqrt(copies))
        if any(isinstance(bound, Tensor) for bound in bounds):
            like = next(bound for bound in bounds if isinstance(bound, Tensor))
            every = torch.broadcast_tensors(*[torch.as_tensor(b).to(like) for b in bounds])  # type: ignore[no-untyped-call]
            norm: Tensor = torch.linalg.vector_norm(torch.stack(every), dim=0)
            return norm
        return math.hypot(*[float(bound) for bound in bounds])

    scaled = make_alias("Call.scaled", multiply)
    shifted = make_alias("Call.shifted", shift)
    joint = make_alias("Call.joint", join)

    def compute_once(self, compute: Callable[[], _T], key: Hashable = None) -> _T:
        """The result of ``compute``, which depends on shapes and constants alone, computed once for the graph."""
        place = (self.name, key)
        if place not in self.evaluation.static:
            self.evaluation.static[place] = compute()
        result: _T = self.evaluation.static[place]
        return result


def scale_outputs(operator: Convolution, factor: Tensor) -> Convolution:
    """The convolution with each output channel multiplied: [outputs]."""
    return operator.with_weight(
        _scale_channels(operator.weight, factor, operator.groups, first=not operator.transposed)
    )


def scale_inputs(weight: Tensor, factor: Tensor, groups: int, transposed: bool) -> Tensor:
    """The weight of a convolution whose input channels are multiplied before it: [inputs]."""
    return _scale_channels(weight, factor, groups, first=transposed)


def _scale_channels(weight: Tensor, factor: Tensor, groups: int, *, first: bool) -> Tensor:
    """Multiply along the first axis, which holds all groups' channels, or the second, which holds one group's."""
    rest = [1] * (weight.dim() - 2)
    if first:
        return weight * factor.view(-1, 1, *rest)
    parts = weight.view(groups, -1, *weight.shape[1:]) * factor.view(groups, 1, -1, *rest)
    return parts.view(weight.shape)


def along(factor: Tensor, shape: tuple[int, ...], axis: int) -> Tensor | None:
    """The factors [shape[axis]] where they depend on that axis alone, None where they do not."""
    full = (1,) * (len(shape) - factor.dim()) + tuple(factor.shape)
    if any(size != 1 for place, size in enumerate(full) if place != axis):
        return None
    return factor.reshape(-1).expand(shape[axis])


def most_copies(indices: Tensor) -> int:
    """The number of occurrences of the most frequent index; -1 stands for constants."""
    real = indices[indices >= 0]
    return int(torch.bincount(real).max()) if real.numel() else 0


def same(a: Value, b: Value) -> bool:
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
                if (same(a, c) and same(b, d)) or (same(a, d) and same(b, c)):
                    rest = [value for place, value in enumerate(values) if place not in (i, j)]
                    return [a, b, *_without_extremes(rest)]
    return values


scaled_inputs = make_alias("scaled_inputs", scale_inputs)
scaled_outputs = make_alias("scaled_outputs", scale_outputs)

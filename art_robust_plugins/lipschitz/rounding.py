"""How far rounding can take a network's logits: a running error analysis of its graph, in float64.

Model (Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapters 2 and 3), with u = 2**-53 and
gamma_k = k u / (1 - k u). Let y = op(v_1, v_2, ...) be one operation of the graph on computed values, and y^ what is
computed. Then

    ||y^ - y|| <= delta = gamma_k (abs(v_1, v_2, ...) + ||y^|| + c)

- Linear maps and sums, in any order of summation: k is the number of terms of one output (and some more for a bias and
  for constants that were merged), and abs() bounds || |W| |v| ||, by the root of W's largest absolute row sum times its
  largest absolute column sum.
- Functions entry by entry: their results are those of inputs and results changed by a few roundings, and of constants
  of the order 1 within them (c is the root of the number of entries). torch's and CUDA's own functions are within
  2 u.
- Other operations, those of users among them: the same with all entries of the input as terms; abs() is the rule's own
  bound. Whoever registers a rule vouches for an implementation as stable as this.
- Moving entries, maxima, minima, ReLU and the like are exact: delta is 0.

An error of a value goes on as any change of it does: by the rules themselves. With A_n the Lipschitz constant from the
value n to the logits, all logits together are off by at most sum_n A_n delta_n. As delta_n is linear in the norms of
values, that is a constant plus a weight times the norm of each value, for each sample anew.
"""

from __future__ import annotations

import math
import operator as python_operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from .norms import ROUND_UP, UNIT_ROUNDOFF, Convolution, Linear, Operator
from .rules import RULES, Call, Rule, Scale, Value, upsampling
from .rules.movement import MOVES

aten = torch.ops.aten

_FEW = 16
"""Roundings of one entry that every inexact operation is granted on top of its sums."""

_UNDERFLOW = 1e-300
"""What results below float64's normal range may lose, in norm."""

_EXACT = MOVES | {
    aten.relu.default,
    aten.abs.default,
    aten.hardtanh.default,
    aten.clamp.default,
    aten.clamp_min.default,
    aten.clamp_max.default,
    aten.clamp.Tensor,
    aten.maximum.default,
    aten.minimum.default,
    aten.amax.default,
    aten.amin.default,
    aten.max.default,
    aten.min.default,
    aten.max.dim,
    aten.min.dim,
    aten.sort.default,
    aten.topk.default,
    aten.kthvalue.default,
    aten.median.default,
    aten.median.dim,
    aten.threshold.default,  # its rule takes equal constants alone: a maximum
    aten.nan_to_num.default,  # finite numbers stay, and a value that is not finite has no finite bound of its error
    aten.max_pool2d_with_indices.default,
    aten.max_pool3d_with_indices.default,
    aten.adaptive_max_pool2d.default,
    aten.adaptive_max_pool3d.default,
    aten.cat.default,
    aten.where.self,
    aten.slice_scatter.default,
    aten.select_scatter.default,
    aten.scatter.src,
    aten.scatter.value,
    aten.copy.default,
    aten._to_copy.default,  # to float32 or float64; a graph in which anything is float32 has no certificate
    python_operator.getitem,
}

_ENTRY_BY_ENTRY = {
    aten.neg.default,
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.rsub.Tensor,
    aten.rsub.Scalar,
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.leaky_relu.default,
    aten.prelu.default,
    aten.rrelu.default,
    aten.softshrink.default,
    aten.hypot.default,
    aten.logaddexp.default,  # max(a, b) + log1p(exp(-|a - b|)): sums of inputs and of constants up to log 2
    aten.asinh.default,
    aten.tanh.default,
    aten.log_sigmoid.default,
    aten.sin.default,
    aten.cos.default,
    aten.atan.default,
    aten.softplus.default,
    aten.elu.default,
    aten.celu.default,
    aten.selu.default,
    aten.gelu.default,
    aten.silu.default,
    aten.mish.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.sigmoid.default,
    aten.erf.default,
    aten._native_batch_norm_legit_no_training.default,
}

_REDUCTIONS = {aten.mean.dim, aten.mean.default, aten.sum.dim_IntList, aten.sum.default}

_ALONG_ONE_AXIS = {aten.cumsum.default, aten._softmax.default}
"""Sums of the n entries along the axis that is their second argument.

Those of softmax sum exp(x - max), from 0 to 1. The roundings of the differences d = x - max move each of them by a
share of u d, and the mean of d under softmax is at most log n. So along one axis the result is off by at most
(n + 4 + 2 log n) u, which is less than (n + 16) u times its part of the constants, sqrt(n).
"""

_INTERPOLATIONS = {operation for operation, rule in RULES.items() if rule is upsampling.interpolate}

_INTERPOLATION = 256
"""Factor on the terms of an interpolation.

The place that an output reads is off by a few u times the image's length, so each weight, of slope at most 2, is off by
as much; a cubic weight sums constants up to 8, and its magnitudes exceed the norm that the rule gives.
"""

_LARGEST_LOGARITHM = 710
"""Of a float64 number."""

_OWN_CONSTANTS = _REDUCTIONS | {
    aten.neg.default,
    aten.convolution.default,
    aten.linear.default,
    aten.mm.default,
    aten.addmm.default,
    aten.bmm.default,
    aten.avg_pool2d.default,
    aten.avg_pool3d.default,
    aten._adaptive_avg_pool2d.default,
    aten._adaptive_avg_pool3d.default,
    aten.add.Tensor,
    aten.add.Scalar,
    aten.sub.Tensor,
    aten.sub.Scalar,
    aten.rsub.Tensor,
    aten.rsub.Scalar,
    aten.mul.Tensor,
    aten.mul.Scalar,
    aten.div.Tensor,
    aten.div.Scalar,
    aten.leaky_relu.default,
    aten.prelu.default,
    aten.rrelu.default,
    aten.softshrink.default,
    aten.hypot.default,
    aten.cumsum.default,
    aten.index_put.default,
    aten.scatter_add.default,
}
"""Operations that add, inside, no constants but their arguments."""


@dataclass(frozen=True)
class Operation:
    """One operation of a graph on what depends on the network's input.

    Attributes:
        node: its place.
        call, rule: as a rule takes it.
        arguments, options: a graph's node stands for each value that depends on the input, all else is there itself.
    """

    node: Node
    call: Call
    rule: Rule
    arguments: tuple[Any, ...]
    options: Any

    def apply(self, values: Mapping[Node, Any], evaluation: _KnownNorms) -> Any:
        """The rule's result for these values of the nodes."""
        arguments, options = torch.fx.map_arg((self.arguments, self.options), lambda node: values[node])
        return self.rule(replace(self.call, evaluation=evaluation), *arguments, **options)

    @property
    def sources(self) -> list[Node]:
        """The nodes whose values it takes."""
        return list(
            dict.fromkeys(leaf for leaf in tree_leaves((self.arguments, self.options)) if isinstance(leaf, Node))
        )

    @property
    def exact(self) -> bool:
        """Whether it moves or selects entries, and rounds nothing."""
        if self.call.target is aten.index_put.default:
            adds = self.arguments[3] if len(self.arguments) > 3 else self.options.get("accumulate", False)
            return not adds
        return self.call.target in _EXACT

    def terms(self, sizes: Mapping[Node, tuple[int, ...]]) -> float:
        """k: how many terms one entry of the result sums, with the roundings that it has besides."""
        target, shapes = self.call.target, [_shape(argument, sizes) for argument in self.arguments]
        count = float(max((math.prod(sizes[node]) for node in self.sources), default=1))
        if target in _ENTRY_BY_ENTRY:
            count = 0.0
        elif target is aten.convolution.default:
            first, second, *kernel = shapes[1]
            count = (first if self.arguments[6] else second) * math.prod(kernel)
        elif target in (aten.linear.default, aten.mm.default):
            count = shapes[0][-1]
        elif target is aten.addmm.default:
            count = shapes[1][-1]
        elif target is aten.bmm.default:  # magnitudes exceed the norms that its rule gives by this root
            count = (shapes[0][-1] + _FEW) * math.sqrt(max(*shapes[0][1:], shapes[1][-1]))
        elif target in _REDUCTIONS:
            count /= math.prod(self.call.shape)
        elif target in _ALONG_ONE_AXIS:
            count = shapes[0][self.arguments[1]] if shapes[0] else 1
        elif target in (aten.index_put.default, aten.scatter_add.default):
            count = max(count, self.additions())  # one entry may be added many times
        elif target in _INTERPOLATIONS:
            count *= _INTERPOLATION
        elif target is aten.linalg_vector_norm.default and self.order() not in (1, 2, math.inf):
            count += _LARGEST_LOGARITHM  # its exponent 1 / p is rounded, which moves y by a share of u |log y|
        return count + _FEW

    def constants(self) -> float:
        """c: the norm of the constants within, where they may exceed the inputs and the result."""
        entries = math.sqrt(sum(math.prod(shape) for shape in self.call.shapes))
        if self.call.target is aten._native_batch_norm_legit_no_training.default:
            _, weight, bias, mean, variance, _, eps = self.arguments
            scale = torch.rsqrt(variance + eps) * (1 if weight is None else weight.abs())
            largest = float((scale * mean).abs().max()) + (0.0 if bias is None else float(bias.abs().max()))
            return entries * largest
        return 0.0 if self.call.target in _OWN_CONSTANTS else entries

    def deviation(self, slope: float) -> float:
        """How far torch's own function lies, but for rounding, from the one whose slope the rule bounds."""
        if self.call.target in (aten.linalg_vector_norm.default, aten.std.correction):
            return self._lost_powers() * slope  # of a deviation it is one over the root of the divisor
        if self.call.target is not aten.softplus.default:
            return 0.0
        arguments = (*self.arguments, *(1, 20)[len(self.arguments) - 1 :])
        beta, threshold = arguments[1:]
        # Where beta x passes the threshold, torch gives x itself.
        return math.sqrt(math.prod(self.call.shape)) * math.exp(-threshold) / float(beta)

    def _lost_powers(self) -> float:
        """By how much a norm of order p may be too small: powers |x|^p below float64's normal range may be lost.

        (sum |x|^p)^(1/p) is concave in the sum, which loses at most the smallest normal number for each of N entries:
        the norm loses at most (N times that number)^(1/p).
        """
        order = self.order()
        if order in (1, math.inf):
            return 0.0
        (source,) = self.sources
        entries = math.prod(source.meta["val"].shape)
        lost = math.pow(entries * torch.finfo(torch.float64).tiny, 1 / order)
        return math.sqrt(math.prod(self.call.shape)) * lost

    def order(self) -> float:
        """The order of a vector norm; that of a standard deviation is 2."""
        given = self.call.target is aten.linalg_vector_norm.default and len(self.arguments) > 1
        return float(self.arguments[1]) if given else 2.0

    def additions(self) -> float:
        """How many entries `index_put` or `scatter_add` adds to one place, at most."""
        if self.call.target is aten.scatter_add.default:
            return float(self.arguments[2].numel())
        indices = [index for index in self.arguments[1] if index is not None]
        return float(math.prod(torch.broadcast_shapes(*(index.shape for index in indices))))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Rounding:
    """How far a sample's computed logits may lie from those of exact arithmetic: ``constant + norms @ weights``.

    Attributes:
        nodes: whose values' norms count.
        weights: one for each of them.
        constant: what does not depend on the sample.
        slope: how much more it may be for an input at distance 1.
    """

    nodes: tuple[Node, ...] = ()
    weights: tuple[float, ...] = ()
    constant: float = 0.0
    slope: float = 0.0

    def errors(self, norms: Tensor) -> Tensor:
        """[N, nodes] -> [N]: bounds of the L2 norm of the errors of a sample's logits."""
        weights = torch.tensor(self.weights, dtype=torch.float64, device=norms.device)
        return (norms @ weights + self.constant) * ROUND_UP


def analyse_rounding(
    operations: Sequence[Operation], source: tuple[Node, Value], output: Node, proven_norms: Mapping[str, float]
) -> Rounding:
    """The running error analysis of a graph, as far as it does not depend on the sample.

    Args:
        operations: in order.
        source: the graph's input, and its value with its bound per unit of the estimator's input.
        output: the logits' node.
        proven_norms: of linear operators, by the node whose rule asked for them.
    """
    start, value = source
    device = operations[0].call.evaluation.device
    known, magnitudes = _KnownNorms(device, proven_norms), _KnownNorms(device)
    slopes: dict[Node, Any] = {start: value}
    for operation in operations:
        slopes[operation.node] = operation.apply(slopes, known)
    amplified = _amplifications(operations, start, slopes, output, known, magnitudes)
    sizes = {node: held.shape for node, held in slopes.items() if isinstance(held, Value)}
    weights = dict.fromkeys(slopes, 0.0)
    constant = 0.0
    if value.parent is not None:  # the mean and standard deviation were applied to it
        weights[start] = amplified[start] * _gamma(_FEW)
    for operation in operations:
        amplification = amplified[operation.node]
        if operation.exact or amplification == 0:
            continue
        gamma = _gamma(operation.terms(sizes))
        units = torch.eye(len(operation.sources), dtype=torch.float64)
        leaves = {node: _leaf(slopes[node], unit) for node, unit in zip(operation.sources, units, strict=True)}
        through = _total(operation.apply(leaves, magnitudes), units[0])
        for node, factor in zip(operation.sources, through.tolist(), strict=True):
            weights[node] += amplification * gamma * factor
        weights[operation.node] += amplification * gamma
        constant += amplification * (
            gamma * operation.constants() + operation.deviation(float(through.sum())) + _UNDERFLOW
        )
    counted = [node for node, weight in weights.items() if weight > 0]
    zero = torch.zeros((), dtype=torch.float64)
    slope = sum(weights[node] * float(_total(slopes[node], zero)) for node in counted)
    return Rounding(tuple(counted), tuple(weights[node] for node in counted), constant, slope)


def _amplifications(
    operations: Sequence[Operation],
    start: Node,
    slopes: Mapping[Node, Any],
    output: Node,
    known: _KnownNorms,
    magnitudes: _KnownNorms,
) -> dict[Node, float]:
    """A: for each node, how much an error of norm 1 of its value moves the logits, at most.

    All at once: bounds here are vectors over the nodes, each bounding what one node's error does to a value.
    """
    places = {node: place for place, node in enumerate(slopes)}
    units = torch.eye(len(places), dtype=torch.float64)
    # A rule may merge a linear operation with those before it, and then it does not see the errors between them.
    # Each value that can be merged keeps these here; they go on through each operation for itself.
    hidden: dict[Value, Tensor] = {}
    first = slopes[start]
    before = None if first.parent is None else Value(first.shape, lambda: torch.zeros_like(units[0]))
    values: dict[Node, Any] = {start: Value(first.shape, lambda: units[places[start]], before, first.operator)}
    hidden[values[start]] = units[places[start]]

    def step(operation: Operation) -> Any:
        result = operation.apply(values, known)
        if operation.exact:
            return result
        leaves = {
            node: _leaf(values[node], hidden[values[node]] if _can_merge(values[node]) else torch.zeros_like(units[0]))
            for node in operation.sources
        }
        error = _total(operation.apply(leaves, magnitudes), units[0]) + units[places[operation.node]]
        several = result if isinstance(result, tuple) else (result,)
        moved = tuple(_with_error(part, error) if isinstance(part, Value) else part for part in several)
        hidden.update((part, error) for part in moved if isinstance(part, Value))
        return moved if isinstance(result, tuple) else moved[0]

    for operation in operations:
        values[operation.node] = step(operation)
    bound = torch.as_tensor(values[output].bound, dtype=torch.float64).expand(len(places))
    return {node: float(bound[place]) * ROUND_UP for node, place in places.items()}


def _can_merge(value: Value) -> bool:
    return isinstance(value.operator, Scale | Linear | Convolution)


def _with_error(value: Value, error: Tensor) -> Value:
    return Value(value.shape, lambda: value.bound + error, value.parent, value.operator, value.extreme)


def _leaf(value: Value, bound: Tensor) -> Value:
    return Value(value.shape, lambda: bound)


def _total(result: Any, like: Tensor) -> Tensor:
    """The bound of all outputs of an operation together."""
    parts = [part.bound for part in (result if isinstance(result, tuple) else (result,)) if isinstance(part, Value)]
    return torch.stack([torch.as_tensor(part, dtype=torch.float64).expand_as(like) for part in parts]).sum(dim=0)


def _gamma(terms: float) -> float:
    return terms * UNIT_ROUNDOFF / (1 - terms * UNIT_ROUNDOFF)


def _shape(argument: Any, sizes: Mapping[Node, tuple[int, ...]]) -> tuple[int, ...]:
    if isinstance(argument, Node):
        return sizes[argument]
    return tuple(argument.shape) if isinstance(argument, Tensor) else ()


@dataclass
class _KnownNorms:
    """An evaluation of rules that computes no norm anew: it takes proven ones, else bounds of the magnitudes."""

    device: torch.device
    proven_norms: Mapping[str, float] = field(default_factory=dict)
    static: dict[Hashable, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    network_dtype: torch.dtype = torch.float64
    proven: bool = True

    def norm(self, call: Call, operator: Operator) -> float:
        return self.proven_norms[call.name] if call.name in self.proven_norms else magnitude_norm(operator)

    def scale(self, call: Call, shape: tuple[int, ...], factor: Tensor) -> float:
        return self.number(factor.abs().max())

    def number(self, value: Tensor) -> float:
        return float(value) * ROUND_UP

    def variance(self, call: Call, running: Tensor) -> Tensor:
        return running


def magnitude_norm(operator: Operator) -> float:
    """A bound of || |W| ||, so of ||W|| too: the root of the largest row sum times the largest column sum."""
    weight = operator.weight.detach().abs().double()
    if not weight.numel():
        return 0.0
    if isinstance(operator, Linear):
        product = float(weight.sum(dim=1).max() * weight.sum(dim=0).max())
        return min(math.sqrt(product), float(torch.linalg.vector_norm(weight))) * ROUND_UP
    if not isinstance(operator, Convolution):
        raise TypeError(f"operator: got {type(operator).__name__}, expected Linear or Convolution.")
    first = float(weight.flatten(1).sum(dim=1).max())
    second = float(weight.view(operator.groups, -1, *weight.shape[1:]).transpose(1, 2).flatten(2).sum(dim=2).max())
    # Padding that repeats entries reads some of them at several places.
    repeated = 1 if operator.padding_mode == "zeros" else math.prod(1 + a + b for a, b in operator.padding)
    return math.sqrt(first * second * repeated) * ROUND_UP

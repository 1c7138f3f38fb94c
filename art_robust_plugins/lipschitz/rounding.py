"""A bound of the rounding errors in a network's logits: a running error analysis of its graph, in float64.

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
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from .norms import ROUND_UP, Convolution, Linear, Operator
from .norms.bounds import bound_rounding
from .operation_rounding import FEW, Operation
from .rules import Call, Magnitude, Scale, Value, same

_UNDERFLOW = 1e-300
"""The largest loss, in norm, of results below float64's normal range."""


@dataclass(frozen=True)
class Rounding:
    """A bound of the error of a sample's computed logits: ``constant + norms @ weights``.

    Attributes:
        nodes: the nodes whose values' norms enter the bound.
        weights: one for each node.
        constant: the part that does not depend on the sample.
        slope: the growth of the bound for an input at distance 1.
        underflow: the part for each unit that a product or a result may lose below the normal range.
    """

    nodes: tuple[Node, ...] = ()
    weights: tuple[float, ...] = ()
    constant: float = 0.0
    slope: float = 0.0
    underflow: float = 0.0

    def errors(self, norms: Tensor) -> Tensor:
        """[N, nodes] -> [N]: bounds of the L2 norm of the errors of a sample's logits."""
        weights = torch.tensor(self.weights, dtype=torch.float64, device=norms.device)
        return (norms @ weights + self.constant) * ROUND_UP


def analyse_rounding(
    operations: Sequence[Operation], source: tuple[Node, Value], output: Node, proven_norms: Mapping[str, float]
) -> Rounding:
    """Analyse the rounding errors of a graph, as far as they do not depend on the sample.

    Args:
        operations: in order.
        source: the graph's input, and its value with its bound per unit of the estimator's input.
        output: the logits' node.
        proven_norms: of linear operators, by the node whose rule asked for them.
    """
    start, value = source
    device = operations[0].call.evaluation.device if operations else torch.device("cpu")  # the input may be the logits
    known, magnitudes = _KnownNorms(device, proven_norms), _KnownNorms(device)
    slopes: dict[Node, Any] = {start: value}
    for operation in operations:
        slopes[operation.node] = operation.apply(slopes, known)
    amplified = _amplifications(operations, start, slopes, output, known, magnitudes)
    sizes = {node: held.shape for node, held in slopes.items() if isinstance(held, Value)}
    weights = dict.fromkeys(slopes, 0.0)
    constant = underflow = 0.0
    if value.parent is not None:  # the mean and standard deviation were applied to it
        weights[start] = amplified[start] * bound_rounding(FEW)
    for operation in operations:
        amplification = amplified[operation.node]
        if operation.exact or amplification == 0:
            continue
        terms = operation.terms(sizes)
        gamma = bound_rounding(terms)
        entries = sum(math.prod(shape) for shape in operation.call.shapes)
        underflow += amplification * terms * math.sqrt(entries) * ROUND_UP
        units = torch.eye(len(operation.sources), dtype=torch.float64)
        leaves = _make_leaves(slopes, dict(zip(operation.sources, units, strict=True)))
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
    return Rounding(tuple(counted), tuple(weights[node] for node in counted), constant, slope, underflow)


def _amplifications(
    operations: Sequence[Operation],
    start: Node,
    slopes: Mapping[Node, Any],
    output: Node,
    known: _KnownNorms,
    magnitudes: _KnownNorms,
) -> dict[Node, float]:
    """A: for each node, the largest change of the logits by an error of norm 1 in its value.

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
        behind = {
            node: hidden[values[node]] if _can_merge(values[node]) else torch.zeros_like(units[0])
            for node in operation.sources
        }
        leaves = _make_leaves(values, behind)
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
    magnitude = value.magnitude and replace(value.magnitude, excess=value.magnitude.excess + error)
    return Value(value.shape, lambda: value.bound + error, value.parent, value.operator, value.extreme, magnitude)


def _make_leaves(values: Mapping[Node, Any], bounds: Mapping[Node, Tensor]) -> dict[Node, Any]:
    """New values with these bounds and no parents; a value that was the magnitude of another still is."""
    leaves: dict[Node, Any] = {}
    for node, bound in bounds.items():
        leaves[node] = Value(values[node].shape, partial(_give, bound))
    for node, bound in bounds.items():
        magnitude = values[node].magnitude
        inner = magnitude and next((other for other in bounds if same(values[other], magnitude.inner)), None)
        if magnitude and inner is not None:
            moved = Magnitude(leaves[inner], magnitude.constants, bound)
            leaves[node] = Value(values[node].shape, partial(_give, bound), magnitude=moved)
    return leaves


def _give(bound: Tensor) -> Tensor:
    return bound


def _total(result: Any, like: Tensor) -> Tensor:
    """The bound of all outputs of an operation together."""
    parts = [part.bound for part in (result if isinstance(result, tuple) else (result,)) if isinstance(part, Value)]
    return torch.stack([torch.as_tensor(part, dtype=torch.float64).expand_as(like) for part in parts]).sum(dim=0)


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

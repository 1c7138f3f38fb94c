"""The rounding of float64 in one operation of a graph: its terms, its constants, and torch's approximations.

Operations that are in none of the sets below are granted as many terms as their inputs have entries, and constants of
the order 1; so are normalisations by their input's own size, for which that is enough: their mean and variance round by
a share of n u of the input's size, which the rule's own bound takes further. See `rounding` for the model.
"""

from __future__ import annotations

import math
import operator as python_operator
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from .rules import RULES, Call, Evaluation, Rule, upsampling
from .rules.movement import MOVES

aten = torch.ops.aten

FEW = 16
"""Roundings of one entry that every inexact operation is assumed to have in addition to its sums."""

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
    aten.threshold.default,  # its rule accepts only equal constants, which make it a maximum
    aten.nan_to_num.default,  # finite numbers stay the same, and other values have no finite error bound
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

_ARITHMETIC = {
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
}
"""Operations entry by entry that add, inside, no constants but their arguments."""

_ENTRY_BY_ENTRY = {
    aten.neg.default,
    *_ARITHMETIC,
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
"""The largest logarithm of a float64 number."""

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
    *_ARITHMETIC,
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

    def apply(self, values: Mapping[Node, Any], evaluation: Evaluation) -> Any:
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
            count = (shapes[0][-1] + FEW) * math.sqrt(max(*shapes[0][1:], shapes[1][-1]))
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
        return count + FEW

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
        """The distance, beside rounding, of torch's own function from the one whose slope the rule bounds."""
        if self.call.target in (aten.linalg_vector_norm.default, aten.std.correction):
            return self._lost_powers() * slope  # of a deviation it is one over the root of the divisor
        if self.call.target is not aten.softplus.default:
            return 0.0
        arguments = (*self.arguments, *(1, 20)[len(self.arguments) - 1 :])
        beta, threshold = arguments[1:]
        # Where beta x passes the threshold, torch gives x itself.
        return math.sqrt(math.prod(self.call.shape)) * math.exp(-threshold) / float(beta)

    def _lost_powers(self) -> float:
        """The most by which a norm of order p may be too small: powers |x|^p below float64's normal range may be lost.

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
        """The largest number of entries that `index_put` or `scatter_add` adds to one place."""
        if self.call.target is aten.scatter_add.default:
            return float(self.arguments[2].numel())
        indices = [index for index in self.arguments[1] if index is not None]
        return float(math.prod(torch.broadcast_shapes(*(index.shape for index in indices))))  # type: ignore[no-untyped-call]


def _shape(argument: Any, sizes: Mapping[Node, tuple[int, ...]]) -> tuple[int, ...]:
    if isinstance(argument, Node):
        return sizes[argument]
    return tuple(argument.shape) if isinstance(argument, Tensor) else ()

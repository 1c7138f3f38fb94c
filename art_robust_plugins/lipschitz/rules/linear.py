"""Rules of layers with weights, which are linear: their norms are those of the operators."""

from __future__ import annotations

from typing import Any

import torch

from ..norms import Convolution, Linear
from .registry import lipschitz_rule
from .values import PRODUCT, Call, Copy, Scale, Value, along, scale_inputs

aten = torch.ops.aten


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
        channels = along(x.operator.factor, x.shape, 1)
        if channels is not None:
            weight, x = scale_inputs(weight, channels, groups, transposed), x.parent
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
        call.refuse(PRODUCT)
    if weight.dim() == 1:  # the result has no axis of features
        return Value(call.shape, lambda: x.bound * call.evaluation.norm(call, Linear(weight[None])))
    if isinstance(x.operator, Scale):
        features = along(x.operator.factor, x.shape, len(x.shape) - 1)
        if features is not None:
            weight, x = weight * features, x.parent
    return call.linear(x, Linear(weight))


@lipschitz_rule(aten.mm.default)
def _mm(call: Call, a: Any, b: Any) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        call.refuse(PRODUCT)
    if isinstance(a, Value):
        return _linear(call, a, b.t())
    return Value(call.shape, lambda: b.bound * call.evaluation.norm(call, Linear(a)))


@lipschitz_rule(aten.addmm.default)
def _addmm(call: Call, bias: Any, a: Any, b: Any, *, beta: float = 1, alpha: float = 1) -> Value:
    if isinstance(bias, Value):
        call.refuse("the term that it adds depends on the network's input, expected a constant bias")
    product = _mm(call, a, b)
    return product if alpha == 1 else call.multiply(product, alpha)


@lipschitz_rule(aten.bmm.default)
def _bmm(call: Call, a: Any, b: Any) -> Value:
    if isinstance(a, Value) and isinstance(b, Value):
        call.refuse(f"{PRODUCT}, as in attention")
    x, matrices = (a, b) if isinstance(a, Value) else (b, a)
    return Value(call.shape, lambda: x.bound * call.evaluation.number(torch.linalg.matrix_norm(matrices, 2).max()))

"""Rules of elementwise functions: the largest slope of each."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .registry import lipschitz_rule
from .values import FLOAT32, Call, Magnitude, Value

aten = torch.ops.aten


@lipschitz_rule(
    aten.relu.default,
    aten.tanh.default,
    aten.log_sigmoid.default,
    aten.sin.default,
    aten.cos.default,
    aten.atan.default,
    aten.asinh.default,
    aten.nan_to_num.default,
)
def _slope_one(call: Call, x: Value, *settings: Any) -> Value:
    return call.function(x, 1.0)


@lipschitz_rule(aten.abs.default)
def _abs(call: Call, x: Value) -> Value:
    return Value(call.shape, lambda: x.bound, magnitude=Magnitude(x, 0.0))


@lipschitz_rule(aten.softshrink.default)
def _softshrink(call: Call, x: Value, limit: float = 0.5) -> Value:
    """x less its projection on [-limit, limit]: the slope is 0 between the limits and 1 elsewhere."""
    return call.function(x, 1.0)


@lipschitz_rule(aten.threshold.default)
def _threshold(call: Call, x: Value, threshold: float, value: float) -> Value:
    """x above the threshold and a constant below: the maximum of both where they are equal, a jump elsewhere."""
    if threshold != value:
        call.refuse(f"it jumps at its threshold of {threshold} to {value}, expected equal numbers")
    return call.function(x, 1.0)


@lipschitz_rule(aten.rrelu.default)
def _rrelu(
    call: Call, x: Value, lower: float = 1 / 8, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> Value:
    """It is leaky ReLU with the mean of both slopes in evaluation mode, and random in training mode."""
    if training:
        call.refuse("it draws random slopes, expected a deterministic network")
    return call.function(x, max(1.0, abs(lower + upper) / 2))


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
    return call.function(x, 1.5 * FLOAT32)  # (2 x + 3) / 6 at 3


@lipschitz_rule(aten.hardsigmoid.default)
def _hardsigmoid(call: Call, x: Value) -> Value:
    return call.function(x, FLOAT32 / 6)


@lipschitz_rule(aten.sigmoid.default)
def _sigmoid(call: Call, x: Value) -> Value:
    return call.function(x, 0.25)


@lipschitz_rule(aten.erf.default)
def _erf(call: Call, x: Value) -> Value:
    return call.function(x, 2 / math.sqrt(math.pi))

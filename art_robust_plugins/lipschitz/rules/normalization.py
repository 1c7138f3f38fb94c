"""Rules of normalisation: batch normalisation, which is affine, and those by the input's own size.

Let z = x, or z = x less its mean (a projection P), with n entries. The others compute y = w z / s + b, where
s^2 = |z|^2 / n + eps. The Jacobian of z / s, (I - z z^T / (n s^2)) / s behind P, is symmetric with eigenvalues of 0 to
at most 1 / sqrt(eps), which is attained at z = 0. So y is w / sqrt(eps), a multiplication entry by entry, of a function
of slope 1; with equal weights max|w| / sqrt(eps) is the Lipschitz constant itself.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .registry import lipschitz_rule
from .values import PRODUCT, SMALLEST, Call, Value

aten = torch.ops.aten


@lipschitz_rule(aten._native_batch_norm_legit_no_training.default)
def _batch_norm(
    call: Call, x: Value, weight: Any, bias: Any, mean: Any, variance: Any, momentum: float, eps: float
) -> tuple[Value, None, None]:
    _refuse_values(call, weight, bias, mean, variance)
    return _by_statistics(call, x, weight, call.evaluation.variance(call, variance), eps), None, None


@lipschitz_rule(aten.native_layer_norm.default)
def _layer_norm(
    call: Call, x: Any, normalized_shape: list[int], weight: Any, bias: Any, eps: float
) -> tuple[Value, None, None]:
    _refuse_values(call, weight, bias)
    call.keep_samples_apart(x, range(-len(normalized_shape), 0))
    return _by_own_size(call, x, weight, eps, deviations=math.prod(normalized_shape)), None, None


@lipschitz_rule(aten.native_group_norm.default)
def _group_norm(
    call: Call, x: Any, weight: Any, bias: Any, samples: int, channels: int, places: int, groups: int, eps: float
) -> tuple[Value, None, None]:
    _refuse_values(call, weight, bias)
    return _by_own_size(call, x, _of_channels(weight, x), eps, deviations=channels // groups * places), None, None


@lipschitz_rule(aten.instance_norm.default)
def _instance_norm(
    call: Call,
    x: Any,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Value:
    _refuse_values(call, weight, bias, mean, variance)
    if not use_input_stats:
        return _by_statistics(call, x, weight, variance, eps)
    return _by_own_size(call, x, _of_channels(weight, x), eps, deviations=math.prod(x.shape[2:]))


@lipschitz_rule(aten.rms_norm.default)
def _rms_norm(call: Call, x: Any, normalized_shape: list[int], weight: Any = None, eps: float | None = None) -> Value:
    _refuse_values(call, weight)
    call.keep_samples_apart(x, range(-len(normalized_shape), 0))
    if eps is None:
        call.refuse("its eps is None, which float32 and float64 take as different numbers, expected a number")
    return _by_own_size(call, x, weight, eps)


def _refuse_values(call: Call, *constants: Any) -> None:
    if any(isinstance(constant, Value) for constant in constants):
        call.refuse(PRODUCT)


def _of_channels(weight: Tensor | None, x: Value) -> Tensor | None:
    return None if weight is None else weight.view(-1, *[1] * (len(x.shape) - 2))


def _by_statistics(call: Call, x: Value, weight: Tensor | None, variance: Tensor, eps: float) -> Value:
    """(x - mean) / sqrt(variance + eps) * weight, with constants for each channel."""
    factor = torch.rsqrt(variance + eps)
    return call.multiply(x, (factor if weight is None else weight * factor).view(-1, *[1] * (len(x.shape) - 2)))


def _by_own_size(call: Call, x: Value, weight: Tensor | None, eps: float, deviations: int | None = None) -> Value:
    """See the module; ``deviations`` is how many entries are taken together less their mean, None for no mean."""
    if not eps >= SMALLEST:  # squares of deviations that count beside it are then within float64's range
        call.refuse(f"with eps {eps} it has no global bound, expected at least {SMALLEST}")
    inner = call.function(x, 0.0 if deviations == 1 else 1.0)  # one number less its mean is 0
    return call.multiply(inner, 1 / math.sqrt(eps) if weight is None else weight / math.sqrt(eps))

"""Rules of softmax and its logarithm. With p = softmax(x) along an axis of n entries:"""

from __future__ import annotations

import math

import torch

from .registry import lipschitz_rule
from .values import Call, Value

aten = torch.ops.aten


@lipschitz_rule(aten._softmax.default)
def _softmax(call: Call, x: Value, dim: int, half_to_float: bool) -> Value:
    """The Jacobian diag(p) - p p^T is symmetric and the magnitudes of row i sum to 2 p_i (1 - p_i) <= 1/2.

    By Gershgorin that bounds its norm. It is attained at p = (1/2, 1/2): for two entries, and in the limit for more.
    """
    call.keep_samples_apart(x, [dim])
    return call.function(x, 0.0 if _length(x, dim) == 1 else 0.5)


@lipschitz_rule(aten._log_softmax.default)
def _log_softmax(call: Call, x: Value, dim: int, half_to_float: bool) -> Value:
    """The Jacobian is J = I - 1 p^T, with J p' = p' for p' orthogonal to p, and the norm sqrt(n) |p|, at most sqrt(n).

    J J^T is the identity but for span(1, p), where with p = 1/n + q, q orthogonal to 1, its eigenvalues are 0 and
    1 + n |q|^2 = n |p|^2. It is approached where one p_i comes near 1. Differences of entries are those of x.
    """
    call.keep_samples_apart(x, [dim])
    length = _length(x, dim)
    slope = 0.0 if length == 1 else math.sqrt(length)
    logits = x if len(x.shape) == 2 and dim in (1, -1) else None
    return Value(call.shape, lambda: x.bound * slope, same_differences=logits)


def _length(x: Value, dim: int) -> int:
    return x.shape[dim] if x.shape else 1

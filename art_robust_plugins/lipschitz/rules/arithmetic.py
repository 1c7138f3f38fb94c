"""Rules of sums, and of products and quotients with constants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..norms import UNIT_ROUNDOFF, Convolution
from .registry import lipschitz_rule
from .values import PRODUCT, Call, Number, Scale, Value, along, same

aten = torch.ops.aten


@lipschitz_rule(aten.add.Tensor, aten.add.Scalar)
def _add(call: Call, a: Any, b: Any, alpha: float = 1) -> Value:
    if not isinstance(a, Value):
        if alpha != 1:
            b = call.multiply(b, alpha)
        return _shifted_magnitude(call, b, a) or call.shift(call.broadcast(b))
    if not isinstance(b, Value):
        return _shifted_magnitude(call, a, b, alpha) or call.shift(call.broadcast(a))
    if alpha != 1:
        b = call.multiply(b, alpha)
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
        call.refuse(PRODUCT)
    return call.multiply(a, b) if isinstance(a, Value) else call.multiply(b, a)


@lipschitz_rule(aten.div.Tensor, aten.div.Scalar)
def _div(call: Call, a: Any, b: Any) -> Value:
    return _softsign(call, a, b) if isinstance(b, Value) else call.multiply(a, 1 / call.factor(b))


def _softsign(call: Call, a: Any, b: Value) -> Value:
    """x / (|x| + c) = 1 / c times a function of slope c^2 / (|x| + c)^2, which is 1 at x = 0; no other quotient.

    A denominator that is off by d from |x| + c moves it by at most |x| d / ((|x| + c) (|x| + c - d)), which is less
    than d / c for all d up to c / 2.
    """
    no_bound = "a division by what depends on the network's input has no global bound"
    if not isinstance(a, Value) or b.magnitude is None or not same(a, b.magnitude.inner):
        call.refuse(no_bound)
    shift, excess = call.factor(b.magnitude.constants), b.magnitude.excess
    if bool((shift <= 0).any()):
        call.refuse(no_bound)
    return call.multiply(Value(call.shape, lambda: a.bound + excess), 1 / shift)


def _shifted_magnitude(call: Call, x: Value, shift: Any, alpha: float = 1) -> Value | None:
    """|x| plus constants that do not enlarge its shape, or None for another value."""
    if x.magnitude is None or call.shape != x.shape:
        return None
    constants = x.magnitude.constants + alpha * shift
    return Value(call.shape, lambda: x.bound, magnitude=replace(x.magnitude, constants=constants))


@lipschitz_rule(aten.neg.default)
def _neg(call: Call, x: Value) -> Value:
    return call.multiply(x, -1.0)


def _plus_identity(call: Call, x: Value, convolved: Value) -> Value | None:
    """s x + conv(x) as one convolution with s added to the kernel's middle; None for any other sum."""
    operator, source = convolved.operator, convolved.parent
    if source is None or not isinstance(operator, Convolution):
        return None
    if operator.transposed or operator.input_shape != operator.output_shape:
        return None
    factor: Tensor | None = None
    if x is source:
        factor = operator.weight.new_ones(x.shape[1])
    elif isinstance(x.operator, Scale) and x.parent is source:
        factor = along(x.operator.factor, x.shape, 1)
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

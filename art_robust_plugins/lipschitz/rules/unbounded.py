"""Operations that have no rule, with the reason that the error gives when a network uses them."""

from __future__ import annotations

import torch

from .registry import UNBOUNDED
from .values import PRODUCT

aten = torch.ops.aten

_JUMPS = "its result may jump where the input changes little, so it has no bound"
_GROWS = "its slope grows with its input, so it has no global bound"
_STEEP = "its slope is infinite where its input is near 0, so it has no global bound"

UNBOUNDED.update(
    {
        aten._native_batch_norm_legit.no_stats: (
            "it divides by the statistics of the batch itself, so it mixes the samples, expected running statistics"
        ),
        aten.native_dropout.default: "dropout acts in evaluation mode too, so the network is random",
    }
    | dict.fromkeys(
        (
            aten.hardshrink.default,
            aten.round.default,
            aten.floor.default,
            aten.ceil.default,
            aten.trunc.default,
            aten.frac.default,
            aten.sign.default,
            aten.heaviside.default,
            aten.argmax.default,
            aten.argmin.default,
            aten.argsort.default,
            aten.gt.Scalar,
            aten.gt.Tensor,
            aten.ge.Scalar,
            aten.ge.Tensor,
            aten.lt.Scalar,
            aten.lt.Tensor,
            aten.le.Scalar,
            aten.le.Tensor,
            aten.eq.Scalar,
            aten.eq.Tensor,
            aten.ne.Scalar,
            aten.ne.Tensor,
            aten.remainder.Scalar,
            aten.fmod.Scalar,
        ),
        _JUMPS,
    )
    | dict.fromkeys(
        (
            aten.exp.default,
            aten.expm1.default,
            aten.exp2.default,
            aten.sinh.default,
            aten.cosh.default,
            aten.pow.Tensor_Scalar,
            aten.var.correction,
            aten.tan.default,
        ),
        _GROWS,
    )
    | dict.fromkeys(
        (
            aten.sqrt.default,
            aten.rsqrt.default,
            aten.reciprocal.default,
            aten.log.default,
            aten.log2.default,
            aten.log10.default,
            aten.log1p.default,
        ),
        _STEEP,
    )
    | dict.fromkeys(
        (
            aten.prod.default,
            aten.prod.dim_int,
            aten.cumprod.default,
            aten.pow.Tensor_Tensor,
            aten.glu.default,
            aten.dot.default,
        ),
        PRODUCT,
    )
)

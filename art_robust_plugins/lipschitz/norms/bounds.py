"""Proven norm bounds, and the operators that have one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

ROUND_UP = 1 + 1e-9
"""Factor on every proven bound. It exceeds by far the relative rounding of float64 in an SVD, a symmetric eigenvalue
problem, a discrete Fourier transform (each a modest multiple of n * 2**-53), or a million additions."""

UNIT_ROUNDOFF = 2.0**-53
"""u: one float64 operation is exact to this factor."""


@dataclass(frozen=True)
class NormBound:
    """A proven upper bound of an operator's norm, and the method that gave it.

    ``method`` is ``"svd"``, ``"grid"`` (convolution on a frequency grid), ``"cholesky"`` (verified by a factorisation)
    or ``"exact"`` (a formula).
    """

    value: float
    method: str


class LinearMap(Protocol):
    """A linear map of one sample, of ``input_shape`` to ``output_shape``, given by a weight."""

    weight: Tensor
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        """[N, *input_shape] -> [N, *output_shape], differentiable in the weight."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """[N, *output_shape] -> [N, *input_shape]; no gradient is needed."""
        ...


class Operator(LinearMap, Protocol):
    """A linear map whose norm has a proven bound."""

    def upper_bound(self) -> NormBound:
        """A proven upper bound of the norm."""
        ...


def round_up(value: float) -> float:
    """A proven bound times a factor that covers its rounding; among denormal numbers, at least one step up."""
    return math.nextafter(value * ROUND_UP, math.inf) if value else 0.0


def scale_weight(weight: Tensor) -> tuple[Tensor, float]:
    """The weight in float64 over a power of two, its largest entry in [1, 2), so that squares do not underflow."""
    weight = weight.detach().double()
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if not math.isfinite(largest):
        raise ValueError("weight: got NaN or infinity, expected finite numbers.")
    scale = 2.0 ** (math.frexp(largest)[1] - 1)
    return weight / scale, scale


def check_weight(weight: object) -> None:
    """Refuse what is not a dense tensor of real floating-point numbers."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: got {type(weight).__name__}, expected a tensor.")
    if not weight.is_floating_point() or weight.element_size() < 2:  # float8 has no arithmetic
        raise ValueError(f"weight: got values of type {weight.dtype}, expected real floating point of 16 bits or more.")
    if weight.layout is not torch.strided or weight.is_meta:
        raise ValueError(f"weight: got {weight.layout} on {weight.device}, expected a dense tensor with values.")


def fixed_direction(shape: Sequence[int]) -> Tensor:
    """A fixed direction, float64 on the CPU, from a separate generator that leaves the caller's random state alone."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def bound_rounding(terms: float) -> float:
    """The relative error of a sum of products with this many roundings (Higham's gamma)."""
    return terms * UNIT_ROUNDOFF / (1 - terms * UNIT_ROUNDOFF)

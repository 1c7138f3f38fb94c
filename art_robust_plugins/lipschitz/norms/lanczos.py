"""The largest eigenvalue of a large symmetric matrix: an estimate, which proves nothing by itself."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .bounds import fixed_direction

STEPS = 300
"""Lanczos vectors, at most."""

_ACCURACY = 1e-8


def largest_eigenvalue(multiply: Callable[[Tensor], Tensor], like: Tensor) -> tuple[float, float]:
    """An estimate (from below) of the largest eigenvalue of a symmetric matrix >= 0 by Lanczos, and of its error.

    Args:
        multiply: the matrix times a vector.
        like: a vector [n] of its type and on its device.
    """
    vector = fixed_direction(like.shape).to(like)
    basis = like.new_zeros(min(STEPS, len(like)), len(like))
    basis[0] = vector / torch.linalg.vector_norm(vector)
    diagonal: list[float] = []
    side: list[float] = []
    value = error = 0.0
    for step in range(1, len(basis) + 1):
        vector = multiply(basis[step - 1])
        diagonal.append(float(vector @ basis[step - 1]))
        for _ in range(2):  # once is not enough against rounding
            vector = vector - basis[:step].t() @ (basis[:step] @ vector)
        rest = float(torch.linalg.vector_norm(vector))
        last = step == len(basis) or rest <= 1e-12 * diagonal[0]
        if last or step % 10 == 0:
            small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
            values, vectors = torch.linalg.eigh(small + _off_diagonal(side))
            value = float(values[-1])
            residual = rest * abs(float(vectors[-1, -1]))
            # An eigenvalue lies within residual, and within residual^2 / gap if the others stay below the gap.
            gap = value - float(values[-2]) if step > 1 else 0.0
            error = min(residual, residual**2 / gap) if gap > 0 else residual
            if last or error <= _ACCURACY * value:
                break
        side.append(rest)
        basis[step] = vector / rest
    return value, error


def _off_diagonal(side: list[float]) -> Tensor:
    values = torch.tensor(side, dtype=torch.float64)
    return torch.diag(values, 1) + torch.diag(values, -1)

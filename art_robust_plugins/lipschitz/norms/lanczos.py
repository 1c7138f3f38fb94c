"""The largest eigenvalue of a large symmetric matrix: an estimate, which proves nothing by itself."""

from __future__ import annotations

import torch
from torch import Tensor

from .bounds import fixed_direction


def largest_eigenvalue(matrix: Tensor, steps: int = 300) -> float:
    """A close estimate (from below) of the largest eigenvalue of a symmetric matrix, by Lanczos if it is large."""
    n = len(matrix)
    if n <= 256:
        return float(torch.linalg.eigvalsh(matrix)[-1])
    vector = fixed_direction((n,)).to(matrix)
    basis = matrix.new_zeros(min(steps, n), n)
    basis[0] = vector / torch.linalg.vector_norm(vector)
    diagonal: list[float] = []
    side: list[float] = []
    value = 0.0
    for step in range(1, len(basis) + 1):
        vector = matrix @ basis[step - 1]
        diagonal.append(float(vector @ basis[step - 1]))
        for _ in range(2):  # once is not enough against rounding
            vector = vector - basis[:step].t() @ (basis[:step] @ vector)
        rest = float(torch.linalg.vector_norm(vector))
        last = step == len(basis) or rest <= 1e-12 * diagonal[0]
        if last or step % 10 == 0:
            small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
            values, vectors = torch.linalg.eigh(small + _off_diagonal(side))
            value = float(values[-1])
            if last or rest * abs(float(vectors[-1, -1])) <= 1e-8 * value:
                break
        side.append(rest)
        basis[step] = vector / rest
    return value


def _off_diagonal(side: list[float]) -> Tensor:
    values = torch.tensor(side, dtype=torch.float64)
    return torch.diag(values, 1) + torch.diag(values, -1)

"""A Cholesky factorisation of a large block-banded matrix, with a proven bound of what it leaves out.

Only a window of the matrix is in memory: the block rows that one block column touches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor

from .bounds import ROUND_UP, UNIT_ROUNDOFF, bound_rounding

PANEL = 128
"""Columns that LAPACK factors at a time; everything else is products of matrices."""

TINY = 2.0**-500
"""Far above all that underflow can lose, for entries of moderate size."""

STRIP = 512
"""Columns of a block on the diagonal that are updated at a time, since half of it is not needed."""


class BlockMatrix(Protocol):
    """A symmetric matrix in blocks."""

    def count_unknowns(self) -> list[int]:
        """Unknowns of each block row."""
        ...

    def make_block(self, row: int, column: int) -> Tensor:
        """A block on the diagonal (its lower triangle) or below it, as a tensor that may be changed."""
        ...


def prove_level(
    matrix: BlockMatrix, bandwidth: int, level: float, advance: Callable[[], object] = lambda: None
) -> float | None:
    """A c for which level I - G + c I is positive semidefinite, G being ``matrix``; None where the factorisation fails.

    Let M = level I - G as computed, and L the lower triangular matrix of floats that comes out, whatever computes it.
    Then M = L L^T + E, and since L L^T >= 0, M + ||E|| I >= 0. This bounds E entry by entry, for i >= j:

    1. What earlier panels contribute is subtracted by products of matrices. That leaves v_ij, which is
       M_ij - sum_{k before j's panel} L_ik L_jk in some order of summation, so that

           |M_ij - sum_{k before} L_ik L_jk - v_ij| <= gamma_K (|v_ij| + sum_{k before} |L_ik| |L_jk|),

       gamma_K = K u / (1 - K u), with u = 2^-53, for at most K - 2 products (Higham: Accuracy and Stability of
       Numerical Algorithms, 2nd edition, lemma 8.4, which holds for any order). Terms with a factor of zero are exact
       and add no rounding, so K - 2 is the number of columns within the band.
    2. LAPACK factors v on the diagonal block of the panel, and solves for the rows below. Neither is trusted: BLAS may
       invert small triangles instead of substituting. Their residual r_ij = v_ij - sum_{k in panel} L_ik L_jk is
       computed as a product of matrices, with an error of at most gamma_P (|r_ij| + sum_{k in panel} |L_ik| |L_jk|),
       P - 2 being the width of the panel.
    3. By 2, |v_ij| <= (1 + gamma_P) (|r_ij| + sum_{k in panel} |L_ik| |L_jk|). With 1,

           |E_ij| <= (gamma_K (1 + gamma_P) + gamma_P) (|L| |L|^T)_ij + 2 |r_ij|.

    The norm of |L| |L|^T is at most ||L||_F^2 (which is nearly the trace of M), that of r, as a symmetric matrix, at
    most its Frobenius norm. So

        c = (gamma_K (1 + gamma_P) + gamma_P) ||L||_F^2 + 2 ||r||_F + 2 u (level + max_j G_jj) + TINY,

    where the third term is the rounding of level - G_jj, and TINY covers underflow. With r = 0 this is the criterion of
    Rump (Verification of positive definiteness, BIT 46, 2006, theorem 2.3) but for the number of terms, which here
    is that of the band. Fused multiply-adds round less often. BLAS is trusted to sum products of float64
    numbers in float64, in any order (no Strassen, no emulation); sums of squares are rounded up by `ROUND_UP`.

    Args:
        matrix: G; the caller adds the error of its entries.
        bandwidth: block rows that each one is coupled with, before and behind it.
        level: what is to be proven for its largest eigenvalue.
        advance: called for each block column.
    """
    sizes = matrix.count_unknowns()
    window: dict[tuple[int, int], Tensor] = {}
    largest = -math.inf  # of G's diagonal

    def take(row: int, column: int) -> Tensor:
        """A block of what is left to factor, from the window or fresh."""
        nonlocal largest
        if (row, column) not in window:
            block = matrix.make_block(row, column).neg_()
            if row == column:
                largest = max(largest, -float(block.diagonal().min()))
                block.diagonal().add_(level)
            window[row, column] = block
        return window[row, column]

    squares, residuals = 0.0, 0.0
    for index, width in enumerate(sizes):
        rows = range(index, min(index + bandwidth + 1, len(sizes)))
        column = torch.cat([take(row, index) for row in rows]) if len(rows) > 1 else take(index, index)
        for row in rows:
            del window[row, index]
        sums = _factor_column(column, width)
        if sums is None:
            return None
        squares, residuals = squares + sums[0], residuals + sums[1]
        stops = list(accumulate(sizes[row] for row in rows))
        below = {row: column[stop - sizes[row] : stop] for row, stop in zip(rows[1:], stops[1:], strict=True)}
        for other, right in below.items():
            _update_diagonal(take(other, other), right)
            for row in range(other + 1, rows.stop):
                take(row, other).addmm_(below[row], right.t(), alpha=-1)
        advance()
    if not math.isfinite(squares + residuals):
        return None
    summed = max(sum(sizes[index : index + bandwidth + 1]) for index in range(len(sizes)))
    band, panel = bound_rounding(min(summed, sum(sizes)) + 2), bound_rounding(min(PANEL, max(sizes)) + 2)
    slack = (band * (1 + panel) + panel) * squares + 2 * math.sqrt(residuals)
    return (slack + 2 * UNIT_ROUNDOFF * (level + largest)) * ROUND_UP + TINY


def _factor_column(column: Tensor, width: int) -> tuple[float, float] | None:
    """Factor a block column [rows, width] in place: the sums of squares of L's entries and of the residuals'.

    The residuals below the diagonal count twice. None where a pivot is not positive.
    """
    squares, residuals = column.new_zeros(()), column.new_zeros(())
    for start in range(0, width, PANEL):
        stop = min(start + PANEL, width)
        panel = column[start:, start:stop]
        if start:
            panel.addmm_(column[start:, :start], column[start:stop, :start].t(), alpha=-1)
        top, below = panel[: stop - start], panel[stop - start :]
        lower = top.tril()
        symmetric = lower + lower.tril(-1).t()
        factor, failed = torch.linalg.cholesky_ex(symmetric)
        if bool(failed):
            return None
        squares += factor.square().sum()
        residuals += (symmetric - factor @ factor.t()).square().sum()
        if len(below):
            solved = torch.linalg.solve_triangular(factor.t(), below, upper=True, left=False)
            squares += solved.square().sum()
            residuals += 2 * torch.addmm(below, solved, factor.t(), alpha=-1).square().sum()
            below.copy_(solved)
        top.copy_(factor)
    return float(squares), float(residuals)


def _update_diagonal(block: Tensor, left: Tensor) -> None:
    """block -= left left^T, in its lower triangle."""
    for start in range(0, len(block), STRIP):
        part = block[start:, start : start + STRIP]
        part.addmm_(left[start:], left[start : start + STRIP].t(), alpha=-1)

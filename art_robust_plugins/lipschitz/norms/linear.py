"""Linear layers: the norm of a matrix, by a float64 singular value decomposition."""

from __future__ import annotations

import torch
from torch import Tensor

from .bounds import NormBound, check_weight, round_up, scale_weight


class Linear:
    """The map x -> W x of vectors.

    Args:
        weight: W, [outputs, inputs].

    Raises:
        TypeError: for a weight that is no tensor.
        ValueError: for a weight of another rank, or one that is not real floating point.

    Example:
        >>> Linear(torch.tensor([[3.0, 0.0], [0.0, 4.0]])).upper_bound().value
        4.000000004000001
    """

    def __init__(self, weight: Tensor) -> None:
        check_weight(weight)
        if weight.dim() != 2:
            raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected [outputs, inputs].")
        self.weight = weight
        self.input_shape: tuple[int, ...] = (weight.shape[1],)
        self.output_shape: tuple[int, ...] = (weight.shape[0],)

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.weight

    @torch.no_grad()
    def upper_bound(self) -> NormBound:
        """The largest singular value, from a float64 SVD.

        Raises:
            ValueError: for a weight with NaN or infinity.
        """
        weight, scale = scale_weight(self.weight)
        return NormBound(round_up(float(torch.linalg.matrix_norm(weight, 2)) * scale), "svd")

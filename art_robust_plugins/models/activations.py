"""Activations that keep the norm of gradients."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MinMax(nn.Module):
    """Sorts pairs of channels: the larger one goes to the first half of the channels, the smaller one to the second.

    GroupSort with groups of two (Anil, Lucas, Grosse, arXiv 1811.05381, ICML 2019). A permutation for each input, so it
    keeps the norm of every gradient, where ReLU drops part of it: Lipschitz bounds come closer to the truth.

    Raises:
        ValueError: for an odd number of channels (axis 1).

    Example:
        >>> MinMax()(torch.tensor([[1.0, 5.0, 3.0, 2.0]]))
        tensor([[3., 5., 1., 2.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        # A trace would take the number that it compares for data.
        if not torch.jit.is_tracing() and x.shape[1] % 2:  # type: ignore[attr-defined, no-untyped-call]
            raise ValueError(f"x: got {x.shape[1]} channels, expected an even number.")
        a, b = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)

"""The difference between the outputs of two passes, and the threshold above which it is more than rounding."""

from __future__ import annotations

import torch
from torch import Tensor

# A network is randomised if two passes differ by more than this share of the outputs' length.
RANDOM_DIFFERENCE = 1e-4


def measure_differences(one: Tensor, another: Tensor) -> Tensor:
    """The distance between the rows of two passes' outputs [N, classes], as a share of their length, [N].

    NaN is equal to NaN and infinity to itself; either is infinitely far from any other number.
    """
    same = (one == another) | (one.isnan() & another.isnan())
    apart = torch.where(same, 0.0, (one - another).nan_to_num(torch.inf, torch.inf, -torch.inf))
    length = torch.linalg.vector_norm(one.nan_to_num(0.0, 0.0, 0.0), dim=1)
    shares: Tensor = torch.linalg.vector_norm(apart, dim=1) / length.clamp_min(1e-10)
    return shares


def measure_difference(one: Tensor, another: Tensor) -> float:
    """The largest of the `measure_differences` between the outputs [N, classes] of two passes."""
    return float(measure_differences(one, another).max())

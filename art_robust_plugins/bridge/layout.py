"""Images in channels_last, the memory format in which most convolutions are fastest."""

from __future__ import annotations

import torch
from torch import Tensor


def to_channels_last(x: Tensor) -> Tensor:
    """Images [N, C, H, W] with the channels of a pixel side by side; differentiable, without a copy where C is 1.

    With one channel both formats are the same memory, and ``contiguous(memory_format=...)`` keeps the strides as they
    are: those of the other format, by which convolutions choose their algorithm.
    """
    n, channels, height, width = x.shape
    if channels == 1:
        return x.contiguous().reshape(n, height, width, 1).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)

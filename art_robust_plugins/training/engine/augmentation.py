"""Random crops and flips: each image of a batch is changed independently, on the batch's device."""

from __future__ import annotations

import torch
from torch import Tensor

from ...threat import Bound


def crop_and_flip(x: Tensor, padding: int, fill: Bound = 0.0) -> Tensor:
    """Move each image by up to ``padding`` pixels along both axes, then mirror every second one, by chance.

    Args:
        x: images [N, C, H, W].
        padding: p; each of the (2 p + 1)^2 crops of an image with p pixels around it is equally likely. 0 flips only.
        fill: what those pixels hold: a number, or a tensor that broadcasts against an image [C, H, W].

    Returns:
        images [N, C, H, W], which share no memory with ``x``. Random numbers come from torch's global generator of the
        device.

    Example:
        >>> x = torch.arange(1.0, 5).view(1, 1, 2, 2)
        >>> crop_and_flip(x, 0).sort().values
        tensor([[[[1., 2.],
                  [3., 4.]]]])
    """
    samples, channels, height, width = x.shape
    across = torch.arange(width, device=x.device).expand(samples, width)
    mirrored = torch.rand(samples, 1, device=x.device) < 0.5
    rows = torch.arange(height, device=x.device).expand(samples, height)
    columns = torch.where(mirrored, across.flip(1), across)
    if padding:
        moves = torch.randint(-padding, padding + 1, (2, samples, 1), device=x.device)
        rows, columns = rows + moves[0], columns + moves[1]
    pixels = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    index = pixels.view(samples, 1, -1).expand(-1, channels, -1)
    moved = x.flatten(2).gather(2, index).view(x.shape)
    if not padding:
        return moved
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    return torch.where(inside, moved, fill)

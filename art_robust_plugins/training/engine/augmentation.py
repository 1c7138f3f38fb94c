"""Random crops and flips: each image of a batch is changed independently, on the batch's device."""

from __future__ import annotations

from dataclasses import dataclass

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
    return Placement.draw(len(x), padding, x.device).move(x, fill)


@dataclass(frozen=True)
class Placement:
    """The crop and flip of each image of a batch, so that what belongs to it can follow it, and be moved back.

    Args:
        mirrored: bool [N, 1].
        moves: int64 [2, N, 1], the row and the column of the image where its crop begins; None for flips alone.
        channels_first: whether images are [N, C, H, W] rather than [N, H, W, C].

    Example:
        >>> placement = Placement(torch.tensor([[True]]), torch.tensor([[[1]], [[0]]]))
        >>> x = torch.arange(1.0, 5).view(1, 1, 2, 2)
        >>> moved = placement.move(x, 0.0)
        >>> moved
        tensor([[[[4., 3.],
                  [0., 0.]]]])
        >>> placement.move_back(moved, torch.full_like(x, 9))
        tensor([[[[9., 9.],
                  [3., 4.]]]])
    """

    mirrored: Tensor
    moves: Tensor | None
    channels_first: bool = True

    @staticmethod
    def draw(samples: int, padding: int, device: torch.device, *, channels_first: bool = True) -> Placement:
        """A placement by chance; see `crop_and_flip`."""
        mirrored = torch.rand(samples, 1, device=device) < 0.5
        moves = torch.randint(-padding, padding + 1, (2, samples, 1), device=device) if padding else None
        return Placement(mirrored, moves, channels_first)

    def select(self, rows: slice) -> Placement:
        """The placement of some images of the batch."""
        moves = None if self.moves is None else self.moves[:, rows]
        return Placement(self.mirrored[rows], moves, self.channels_first)

    def move(self, x: Tensor, fill: Bound) -> Tensor:
        """The crops of images [N, ...]; pixels beyond an image hold ``fill``, which broadcasts against [C, H, W]."""
        if not self.channels_first:
            return self._move(x.movedim(-1, 1), fill).movedim(1, -1)
        return self._move(x, fill)

    def move_back(self, x: Tensor, beneath: Tensor) -> Tensor:
        """The pixels of crops [N, ...] where they were in the images; those that are in no crop are ``beneath``'s."""
        if not self.channels_first:
            return self._move_back(x.movedim(-1, 1), beneath.movedim(-1, 1)).movedim(1, -1)
        return self._move_back(x, beneath)

    def _move(self, x: Tensor, fill: Bound) -> Tensor:
        rows, across = self._coordinates(x)
        columns = torch.where(self.mirrored, across.flip(1), across)
        if self.moves is None:
            return _take(x, rows, columns, None)
        return _take(x, rows + self.moves[0], columns + self.moves[1], fill)

    def _move_back(self, x: Tensor, beneath: Tensor) -> Tensor:
        rows, across = self._coordinates(x)
        if self.moves is not None:
            rows, across = rows - self.moves[0], across - self.moves[1]
        columns = torch.where(self.mirrored, x.shape[3] - 1 - across, across)
        return _take(x, rows, columns, None if self.moves is None else beneath)

    def _coordinates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The rows [N, H] and columns [N, W] of the images."""
        samples, _, height, width = x.shape
        rows = torch.arange(height, device=x.device).expand(samples, height)
        return rows, torch.arange(width, device=x.device).expand(samples, width)


def _take(x: Tensor, rows: Tensor, columns: Tensor, outside: Bound | None) -> Tensor:
    """The pixels of images [N, C, H, W] at these rows and columns; None if all of them lie in the images."""
    samples, channels, height, width = x.shape
    pixels = rows.clamp(0, height - 1)[:, :, None] * width + columns.clamp(0, width - 1)[:, None, :]
    index = pixels.view(samples, 1, -1).expand(-1, channels, -1)
    taken = x.flatten(2).gather(2, index).view(x.shape)
    if outside is None:
        return taken
    inside = ((rows >= 0) & (rows < height))[:, None, :, None] & ((columns >= 0) & (columns < width))[:, None, None, :]
    return torch.where(inside, taken, outside)

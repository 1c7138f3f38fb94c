"""Signs of tensors in two bits each, and their addition to other tensors.

Of a sample's R numbers, in their order in memory, byte i keeps the numbers i, w + i, 2 w + i and 3 w + i, where w is
R / 4 rounded up: number k w + i as its sign + 1 in the bits 2 k and 2 k + 1. A byte's four numbers lie so far apart
that bytes are made and read by whole rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

ALL_ONE = 1 + 4 + 16 + 64
"""Added to a byte, it adds 1 to each of the four numbers in it."""


@dataclass(frozen=True)
class PackedSigns:
    """The signs -1, 0 and 1 of a tensor [N, ...]; that of NaN is 0.

    Attributes:
        packed: int8 [N, w].
        shape: of one sample.
        layout: the order of a sample's numbers.
    """

    packed: Tensor
    shape: torch.Size
    layout: torch.memory_format

    @classmethod
    def of(cls, tensor: Tensor, layout: torch.memory_format) -> PackedSigns:
        """The signs of a tensor [N, ...] of any dtype, kept in the order of ``layout``."""
        signs = as_rows(tensor.contiguous(memory_format=layout)).sign().to(torch.int8)
        if missing := -signs.shape[1] % 4:
            signs = functional.pad(signs, (0, missing))
        # Of quarters a, b, c, d first a + 16 c and b + 16 d, then a + 4 b + 16 c + 64 d.
        for weight in (16, 4):
            first, second = signs.chunk(2, dim=1)
            signs = torch.add(first, second, alpha=weight)
        return cls(signs.add_(ALL_ONE), tensor.shape[1:], layout)

    def __len__(self) -> int:
        return len(self.packed)

    def unpacked(self) -> Tensor:
        """The signs themselves, int8 [N, ...]."""
        size = (len(self), *self.shape)
        signs = torch.empty(size, dtype=torch.int8, device=self.packed.device, memory_format=self.layout)
        rows = as_rows(signs)
        rows.copy_(_unpacked(self.packed, rows.shape[1]))
        return signs

    def add_to(self, tensor: Tensor, slots: Tensor, factors: Tensor, eps: float) -> None:
        """``tensor[n] += eps * factors[n] * signs[slots[n]]`` in place, with slots [M] and factors [M, 1].

        The tensor [M, ...] is dense in the layout that `layout_of` tells.
        """
        signs, layout = self, layout_of(tensor)
        if layout != self.layout:
            signs = PackedSigns.of(self.unpacked(), layout)
        rows = as_rows(tensor)
        chosen = signs.packed.to(tensor.device).index_select(0, slots)
        rows.addcmul_(_unpacked(chosen, rows.shape[1]).to(rows.dtype), factors, value=eps)


def layout_of(tensor: Tensor) -> torch.memory_format:
    """The order in which a tensor's numbers lie: channels_last in four or five dimensions, or else contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim(), torch.contiguous_format)
    return last if tensor.is_contiguous(memory_format=last) else torch.contiguous_format


def as_rows(tensor: Tensor) -> Tensor:
    """The samples of a dense tensor as they lie in memory, one after the other: [N, numbers of each]."""
    samples = len(tensor)
    numbers = tensor.numel() // samples
    return tensor.as_strided((samples, numbers), (numbers, 1))


def _unpacked(packed: Tensor, numbers: int) -> Tensor:
    """Bytes [n, w] as signs, int8 [n, numbers]."""
    signs = packed[:, None].bitwise_right_shift(_places(packed.device)).bitwise_and_(3).sub_(1)
    return signs.as_strided((len(packed), numbers), (4 * packed.shape[1], 1))


@cache
def _places(device: torch.device) -> Tensor:
    """Where in a byte its four numbers begin."""
    return torch.arange(0, 8, 2, dtype=torch.int8, device=device)[:, None]

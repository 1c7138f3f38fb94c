"""Signs of tensors in two bits each.

Of a sample's R numbers, in the order of a layout, byte i keeps the numbers i, w + i, 2 w + i and 3 w + i, where w is
R / 4 rounded up: number k w + i as its sign + 1 in the bits 2 k and 2 k + 1. Numbers of one byte lie w apart, so that
packing and unpacking work on whole rows. The padding of the last bytes is never read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

_ALL_ONE = 1 + 4 + 16 + 64
"""Added to a sum of s_k 4^k, it gives that of (s_k + 1) 4^k; int8 may overflow, which keeps the bits."""


@dataclass(frozen=True, eq=False)
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
        signs = tensor.sign().to(torch.int8)
        if layout != torch.contiguous_format:
            signs = signs.movedim(1, -1)
        signs = signs.reshape(len(signs), -1)
        if missing := -signs.shape[1] % 4:
            signs = functional.pad(signs, (0, missing))
        # Of quarters a, b, c, d first a + 16 c and b + 16 d, then a + 4 b + 16 c + 64 d.
        for weight in (16, 4):
            first, second = signs.chunk(2, dim=1)
            signs = torch.add(first, second, alpha=weight)
        return cls(signs.add_(_ALL_ONE), tensor.shape[1:], layout)

    def __len__(self) -> int:
        return len(self.packed)

    def unpack(self, slots: Tensor | None = None) -> Tensor:
        """The signs of all samples, or of those at ``slots`` [M]: int8 [M, ...], laid out in ``layout``."""
        packed = self.packed if slots is None else self.packed.to(slots.device).index_select(0, slots)
        places = torch.arange(0, 8, 2, dtype=torch.int8, device=packed.device)[:, None]
        rows = packed[:, None].bitwise_right_shift(places).bitwise_and_(3).sub_(1).flatten(1)
        rows = rows[:, : self.shape.numel()]
        if self.layout == torch.contiguous_format:
            return rows.view(len(rows), *self.shape)
        return rows.view(len(rows), *self.shape[1:], self.shape[0]).movedim(-1, 1)

    def check_shape(self, name: str, output: Tensor) -> None:
        """Refuse an output [N, ...] of the layer ``name`` whose samples have another shape.

        Raises:
            RuntimeError: for such an output.
        """
        if self.shape != output.shape[1:]:
            raise RuntimeError(
                f"layers: the output of {name!r} has the shape {tuple(output.shape)}, expected (N, "
                f"{', '.join(map(str, self.shape))}) as in the step before, or in the state that was loaded."
            )

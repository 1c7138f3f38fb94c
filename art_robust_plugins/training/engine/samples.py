"""The numbers of the samples that a batch holds, for methods that keep something for each sample."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .augmentation import Placement


@dataclass(frozen=True)
class Samples:
    """The samples of a batch, the same in all processes that share it.

    Args:
        rows: their indices in the arrays that ``fit`` was given, int64 [N] on the device.
        placement: how augmentation cropped and flipped them; None for not at all.
    """

    rows: Tensor
    placement: Placement | None = None

    def select(self, rows: slice) -> Samples:
        """Some samples of the batch."""
        return Samples(self.rows[rows], None if self.placement is None else self.placement.select(rows))

"""The change of each training sample's latest adversary, from which the next ascent starts.

    Linf:    kept = round(127 (xa - x) / eps), int8
    L2, L1:  kept = (xa - x) / eps, float16

A share of eps is stored, so that a change grows with eps. In L2 and L1 the shares of single coordinates are about
1 / sqrt(d) and smaller, too small for steps of 1 / 127. Changes lie in the image's own frame: they move with it under
augmentation, and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..threat import Norm
from .engine.samples import Samples
from .processes import Share

LEVELS = 127
"""The int8 of a change as large as eps."""


class ChangeStore:
    """The changes xa - x of a run's samples, as shares of eps; all processes hold those of all samples.

    Args:
        norm: of the threat.
        samples: how many there are.
        shape: of a sample.
        device: of the network.

    Attributes:
        changes: int8 or float16 [samples, *shape]; 0 where no adversary has been.
        known: bool [samples], whether a sample has had an adversary.
        complete: whether all had one when the latest epoch ended. (Reading ``known`` would wait for the GPU.)
    """

    def __init__(self, norm: Norm, samples: int, shape: Sequence[int], device: torch.device) -> None:
        self.scale = LEVELS if norm == "Linf" else 1
        dtype = torch.int8 if norm == "Linf" else torch.float16
        self.changes = torch.zeros((samples, *shape), dtype=dtype, device=device)
        self.known = torch.zeros(samples, dtype=torch.bool, device=device)
        self.complete = False

    def read(self, samples: Samples, like: Tensor) -> Tensor:
        """The changes of a batch's samples [N, ...], as shares of eps; 0 on pixels beside an image."""
        changes = self.changes[samples.rows]
        if samples.placement is not None:
            changes = samples.placement.move(changes, 0)
        return changes.to(like.dtype) / self.scale

    def write(self, samples: Samples, changes: Tensor, share: Share | None) -> None:
        """Keep the changes of a batch's samples; pixels that its crop cut off keep what they had.

        Args:
            samples: of the whole batch.
            changes: of this process's share of it, as shares of eps.
            share: the share, or None for the whole batch; all processes must call this.
        """
        kept = self._encode(changes)
        kept = kept if share is None else share.gather(kept)
        if samples.placement is not None:
            kept = samples.placement.move_back(kept, self.changes[samples.rows])
        self.changes[samples.rows] = kept
        self.known[samples.rows] = True

    def end_epoch(self) -> None:
        """Look whether all samples have had an adversary; with ``drop_last``, some may not."""
        self.complete = self.complete or bool(self.known.all())

    def state_dict(self) -> dict[str, Tensor]:
        """The changes, and which of them are known."""
        return {"changes": self.changes, "known": self.known}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load the state of an earlier run, as `state_dict` returned it.

        Raises:
            ValueError: entries are missing, or are of another type or shape.
        """
        for name, own in self.state_dict().items():
            saved = state.get(name)
            if saved is None or saved.dtype != own.dtype or saved.shape != own.shape:
                got = "none" if saved is None else f"{saved.dtype} of shape {tuple(saved.shape)}"
                raise ValueError(f"state: got {got} for {name!r}, expected {own.dtype} of shape {tuple(own.shape)}.")
            own.copy_(saved)
        self.complete = bool(self.known.all())

    def _encode(self, changes: Tensor) -> Tensor:
        if self.changes.dtype == torch.int8:
            changes = (LEVELS * changes).round().clamp(-LEVELS, LEVELS)
        return changes.to(self.changes.dtype).contiguous()

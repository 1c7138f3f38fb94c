"""The signs of one mini-batch's gradients at the outputs of layers, kept for the next mini-batch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..memory_format import layout_of
from ..processes import Share
from .pairing import other_class_slots
from .signs import PackedSigns

GOLDEN = (5**0.5 - 1) / 2
"""The multiples of this number, modulo 1, cover [0, 1) evenly: successive steps get different pairings."""


@dataclass
class GradientStore:
    """One mini-batch: its labels, each layer's number of calls so far, and the signs of the gradients at each call."""

    labels: Tensor  # of the whole batch
    number: int = 0
    signs: dict[tuple[str, int], PackedSigns] = field(default_factory=dict)  # of m * N samples for N labels
    share: Share | None = None  # the share of the process that recorded these signs
    passes: int = 0
    calls: Counter[str] = field(default_factory=Counter)  # of each layer in the current pass
    recorded: dict[tuple[str, int], int] = field(default_factory=dict)  # the pass that the signs are from
    measured: set[str] = field(default_factory=set)  # layers whose running mean of |h_l| was updated
    pairings: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """The number of samples of the batch that pass through the network in this process."""
        return len(self.labels) if self.share is None else self.share.rows.stop - self.share.rows.start

    def gather(self) -> None:
        """Gather the signs from all processes that share this batch."""
        if self.share is not None:
            for call, signs in self.signs.items():
                self.signs[call] = replace(signs, packed=self.share.gather(signs.packed))
            self.share = None

    def state_dict(self) -> dict[str, Tensor]:
        """``labels``, int64 [N]; ``number`` of the step; ``sign:k:name``, of call k of a layer, int8 [m * N, ...]."""
        signs = {f"sign:{call}:{name}": signs.unpack().contiguous() for (name, call), signs in self.signs.items()}
        return {"labels": self.labels.clone(), "number": torch.tensor(self.number), **signs}

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> GradientStore:
        """The mini-batch that `state_dict` described; for an empty state, one without signs.

        Raises:
            ValueError: unknown entries, or entries that do not fit together.
        """
        signs = {}
        for key, tensor in state.items():
            if parts := re.fullmatch(r"sign:(\d+):(.*)", key):
                signs[parts[2], int(parts[1])] = tensor
            elif key not in ("labels", "number"):
                raise ValueError(f"state: got the entry {key!r}, expected those of Layerwise.state_dict.")
        labels, number = state.get("labels", torch.empty(0)), state.get("number", torch.tensor(0))
        for (name, _), tensor in signs.items():
            if tensor.dtype != torch.int8 or not len(labels) or not len(tensor) or len(tensor) % len(labels):
                raise ValueError(
                    f"state: got {tensor.dtype} of shape {tuple(tensor.shape)} for the layer {name!r} and "
                    f"{len(labels)} labels, expected int8 signs of as many samples or a multiple."
                )
        packed = {call: PackedSigns.of(tensor, layout_of(tensor)) for call, tensor in signs.items()}
        return cls(labels.clone(), int(number), packed)

    def pairing(self, previous: GradientStore, stored: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """For m * N samples and m' * N' slots: the slot of each sample, and its weight, 1 or 0."""
        samples = len(h)
        if (samples, stored) not in self.pairings:
            whole = samples // self.samples * len(self.labels)
            labels = _repeat_labels(self.labels, whole, h.device)
            earlier = _repeat_labels(previous.labels, stored, h.device)
            slots, found = other_class_slots(labels, earlier, turn=self.number * GOLDEN % 1)
            if self.share is not None:
                slots, found = self.share.select(slots), self.share.select(found)
            self.pairings[samples, stored] = slots, found.to(h.dtype)
        slots, found = self.pairings[samples, stored]
        return slots, found.to(h.dtype)

    def record(self, call: tuple[str, int], number: int, layout: torch.memory_format, gradient: Tensor) -> None:
        """Store the signs of the gradient of a layer's output, in this memory format, from pass ``number``."""
        if number <= self.recorded.get(call, number):
            self.recorded[call] = number
            self.signs[call] = PackedSigns.of(gradient, layout)


def _repeat_labels(labels: Tensor, samples: int, device: torch.device) -> Tensor:
    """The labels of m * N samples, from those of N."""
    labels = labels.to(device)
    return labels if len(labels) == samples else labels.repeat(samples // len(labels))

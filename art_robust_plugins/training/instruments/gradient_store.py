"""The signs of one mini-batch's gradients at the outputs of layers, kept for the next mini-batch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..engine.processes import Share
from .pairing import other_class_slots
from .signs import PackedSigns

GOLDEN = (5**0.5 - 1) / 2
"""Its multiples, modulo 1, visit the interval evenly: so the pairings of successive steps vary, without chance."""


@dataclass
class GradientStore:
    """One mini-batch: its labels, the calls of each layer so far, and the signs of the gradients at each call."""

    labels: Tensor  # of the whole batch
    number: int = 0
    signs: dict[tuple[str, int], PackedSigns] = field(default_factory=dict)  # of m * N samples for N labels
    share: Share | None = None  # of the process whose signs these are
    passes: int = 0
    calls: Counter[str] = field(default_factory=Counter)  # of each layer in the present pass
    recorded: dict[tuple[str, int], int] = field(default_factory=dict)  # the pass that the signs are from
    measured: set[str] = field(default_factory=set)  # layers whose |h_l| was taken up
    pairings: dict[tuple[int, int], tuple[Tensor, Tensor]] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        """How many samples of the batch pass through the network in this process."""
        return len(self.labels) if self.share is None else self.share.rows.stop - self.share.rows.start

    def gather(self) -> None:
        """Take up the signs of all processes that share this batch."""
        if self.share is not None:
            for call, signs in self.signs.items():
                self.signs[call] = replace(signs, packed=self.share.gathered(signs.packed))
            self.share = None

    def pairing(self, previous: GradientStore, stored: int, h: Tensor) -> tuple[Tensor, Tensor]:
        """For an output of m * N samples and slots of m' * N': each sample's slot, and 1 where it counts, else 0."""
        samples = len(h)
        if (samples, stored) not in self.pairings:
            whole = samples // self.samples * len(self.labels)
            labels = _repeat_labels(self.labels, whole, h.device)
            earlier = _repeat_labels(previous.labels, stored, h.device)
            slots, found = other_class_slots(labels, earlier, turn=self.number * GOLDEN % 1)
            if self.share is not None:
                slots, found = self.share.of_copies(slots), self.share.of_copies(found)
            self.pairings[samples, stored] = slots, found.to(h.dtype)
        slots, found = self.pairings[samples, stored]
        return slots, found.to(h.dtype)

    def record(self, call: tuple[str, int], number: int, layout: torch.memory_format, gradient: Tensor) -> None:
        """Keep the signs of the gradient of a layer's output, of this layout, in pass ``number`` of the step."""
        if number <= self.recorded.get(call, number):
            self.recorded[call] = number
            self.signs[call] = PackedSigns.of(gradient, layout)


def _repeat_labels(labels: Tensor, samples: int, device: torch.device) -> Tensor:
    """The labels of m * N samples, from those of N."""
    labels = labels.to(device)
    return labels if len(labels) == samples else labels.repeat(samples // len(labels))

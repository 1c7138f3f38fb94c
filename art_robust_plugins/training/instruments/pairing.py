"""Pairing samples with stored slots of another class."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_NOBODY = 2**31
"""The label of padding in the smaller of two batches: a class of its own, after all others."""


def other_class_slots(labels: Tensor, stored: Tensor, turn: float) -> tuple[Tensor, Tensor]:
    """Assign stored slots of another class to samples, no slot twice, and to as many samples as possible.

    Both sides are sorted by class, and the slots are rotated against the samples. Let class c begin at A_c among the
    sorted samples and at B_c among the slots, each side padded to length K. A rotation by r gives no sample of class c
    a slot of class c if A_c+1 - B_c <= r <= K - (B_c+1 - A_c). For c != d the lower bound of c is at most the upper
    bound of d, as both orders are the same; for c = d this holds if c has at most K members on both sides together. So
    either some r serves all classes, and the smaller side is served completely; or one class has more than K members,
    and then every r between its bounds separates all samples from their own class but the surplus, which no assignment
    could serve.

    Args:
        labels: classes of the samples, int64 [N], not negative.
        stored: classes of the slots, int64 [M].
        turn: a number in [0, 1], which chooses among the rotations that serve all.

    Returns:
        the slot of each sample, int64 [N], from 0 to M - 1, and whether it counts: bool [N].

    Example:
        >>> other_class_slots(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 0, 2, 2]), 0.0)
        (tensor([2, 3, 1, 0]), tensor([True, True, True, True]))
    """
    here, there, size = len(labels), len(stored), max(len(labels), len(stored))
    if here != there:
        labels = functional.pad(labels, (0, size - here), value=_NOBODY)
        stored = functional.pad(stored, (0, size - there), value=_NOBODY)
    ys, samples = labels.sort(stable=True)
    zs, slots = stored.sort(stable=True)
    position = torch.arange(size, device=labels.device, dtype=torch.float32)
    # The last sample of class c stands at A_c+1 - 1, the first one at A_c: among positions they give the extremes.
    lowest = (position - torch.searchsorted(zs, ys)).max()  # less 1
    highest = (position - torch.searchsorted(zs, ys, right=True)).min()  # less K
    turns = torch.lerp(lowest, highest, turn).add_(1 + turn * (size - 1)).round_()
    slots = samples.scatter(0, samples, slots[(position - turns).remainder_(size).long()])
    met = stored[slots]
    if here == there:
        return slots, met != labels
    return slots[:here].clamp_max(there - 1), ((met != labels) & (met != _NOBODY))[:here]

"""The losses that Auto-PGD ascends: one number for each point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Loss = Literal["ce", "dlr", "dlr-targeted"]

# Up to so many classes a sort is as fast as a selection.
FEW_CLASSES = 64


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy of each point."""
    return functional.cross_entropy(logits, y, reduction="none")


def dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The difference of logits ratio: invariant to shifts and scales of the logits."""
    values, order = find_largest(logits, 3)
    other = torch.where(order[:, -1] == y, values[:, -2], values[:, -1])
    return -(_at(logits, y) - other) / (values[:, -1] - values[:, -3] + 1e-12)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The same towards one class."""
    values = find_largest(logits, 4)[0]
    scale = values[:, -1] - 0.5 * (values[:, -3] + values[:, -4]) + 1e-12
    return -(_at(logits, y) - _at(logits, target)) / scale


def find_largest(logits: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The largest logits of each row [N, number], ascending, and their classes: the last columns of a sort.

    Which of equal logits comes first counts, as the gradient goes to its class. There we sort as the reference does,
    whose sort is not stable; on a GPU we do not, since that would have to wait for it.
    """
    if logits.shape[1] > FEW_CLASSES:
        values, order = logits.topk(number + 1, dim=1)
        if logits.device.type != "cpu" or not bool((values[:, 1:] == values[:, :-1]).any()):
            return values[:, :number].flip(1), order[:, :number].flip(1)
    values, order = logits.sort(dim=1)
    return values[:, -number:], order[:, -number:]


LOSSES: dict[Loss, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "dlr-targeted": dlr_targeted,
}


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]

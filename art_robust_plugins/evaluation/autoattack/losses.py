"""The losses that Auto-PGD ascends: one number for each point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Loss = Literal["ce", "dlr", "dlr-targeted"]


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy of each point."""
    return functional.cross_entropy(logits, y, reduction="none")


def dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The difference of logits ratio: invariant to shifts and scales of the logits."""
    values, order = logits.sort(dim=1)
    other = torch.where(order[:, -1] == y, values[:, -2], values[:, -1])
    return -(_at(logits, y) - other) / (values[:, -1] - values[:, -3] + 1e-12)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The same towards one class."""
    values = logits.sort(dim=1).values
    scale = values[:, -1] - 0.5 * (values[:, -3] + values[:, -4]) + 1e-12
    return -(_at(logits, y) - _at(logits, target)) / scale


LOSSES: dict[Loss, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "dlr-targeted": dlr_targeted,
}


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]

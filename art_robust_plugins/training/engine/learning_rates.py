"""Learning rates that follow a formula over the whole training, step by step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ..options import TrainingOptions

RISE, FIRST, LAST = 0.3, 1 / 25, 1 / 250_000
"""One cycle: the share of its steps in which the rate rises, and its first and last factor (torch's defaults)."""


_RATES = ("lr", "initial_lr")


def cosine(steps: int, warmup: int) -> Callable[[int], float]:
    """Rise linearly to 1 in ``warmup`` steps, (t + 1) / (warmup + 1), then fall along half a cosine to 0 at ``steps``.

    Example:
        >>> [round(cosine(8, 2)(t), 3) for t in range(9)]
        [0.333, 0.667, 1.0, 0.933, 0.75, 0.5, 0.25, 0.067, 0.0]
    """

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return _half_cosine(1, 0, (step - warmup) / max(steps - warmup, 1))

    return factor


def one_cycle(steps: int) -> Callable[[int], float]:
    """Rise along half a cosine from 1/25 to 1 in the first 30 % of ``steps``, then fall to 1/250,000 at the last step.

    Smith, Topin: Super-convergence, arXiv 1708.07120, as torch's ``OneCycleLR`` does; momentum is not changed.
    """
    top, end = RISE * steps - 1, steps - 1

    def factor(step: int) -> float:
        if step <= top:
            return _half_cosine(FIRST, 1, step / top)
        return _half_cosine(1, LAST, (step - top) / (end - top))

    return factor


def piecewise(milestones: Sequence[int], decay: float) -> Callable[[int], float]:
    """Multiply by ``decay`` at each step of ``milestones``, which increase."""
    return lambda step: decay ** bisect_right(milestones, step)


def schedule_factor(options: TrainingOptions, steps: int, epochs: int) -> Callable[[int], float]:
    """The factor of the learning rate at step t of a training of ``epochs`` with ``steps`` each, by ``options``.

    Raises:
        ValueError: a training too short for the schedule.
    """
    if options.warmup_epochs and options.warmup_epochs >= epochs:
        raise ValueError(f"warmup_epochs: got {options.warmup_epochs} of {epochs} epochs, expected fewer.")
    if options.schedule == "cosine":
        return cosine(epochs * steps, round(options.warmup_epochs * steps))
    if options.schedule == "one-cycle":
        if epochs * steps < 4:
            raise ValueError(f"schedule: got 'one-cycle' for {epochs * steps} steps, expected at least 4.")
        return one_cycle(epochs * steps)
    return piecewise([round(epoch * steps) for epoch in options.milestones], options.milestone_decay)


@contextmanager
def follow_schedule(optimizer: Optimizer, factor: Callable[[int], float]) -> Iterator[LambdaLR]:
    """A context with a scheduler, to be stepped after each optimizer step; it restores the initial rates at its end."""
    # A learning rate that is a tensor is changed in place.
    before = [
        {name: value.clone() if isinstance(value, Tensor) else value for name, value in group.items() if name in _RATES}
        for group in optimizer.param_groups
    ]
    for group in optimizer.param_groups:
        group.pop("initial_lr", None)  # left by an earlier scheduler; some versions of torch would start from it
    try:
        yield LambdaLR(optimizer, factor)
    finally:
        for group, old in zip(optimizer.param_groups, before, strict=True):
            group.pop("initial_lr", None)
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(old.pop("lr"))
            group.update(old)


def _half_cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1))) / 2

"""Consecutive runs of Auto-PGD, tried speculatively with the random numbers that they have one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .batches import Streams


class PlannedTurn(NamedTuple):
    """A planned run of a logical batch: its target's rank, its points, their noise, and the stream's state after it."""

    batch: int
    turn: int
    rank: int
    points: Tensor
    noise: Tensor
    state: Tensor


class Turns:
    """The order in which the runs of each logical batch draw random numbers.

    The random numbers of a run depend on how many points the runs before it have left. Several consecutive runs are
    tried at once, on the assumption that none breaks a point: one run first, and more as long as that holds. If a run
    does break a point, the runs after it are void, and the stream returns to its state after that run.
    """

    def __init__(self, streams: Streams, ranks: list[int]) -> None:
        self.streams, self.ranks = streams, ranks
        self.next, self.ahead = ([value] * len(streams.generators) for value in (0, 1))

    def plan_next(self, left: Tensor, room: int, noise: Callable[[int, torch.Generator], Tensor]) -> list[PlannedTurn]:
        """Plan the next runs for the remaining points [N], enough for about ``room`` rows."""
        plan = []
        most = max(room // max(int(left.sum()), 1), 1)
        for batch, generator in enumerate(self.streams.generators):
            points = (left & (self.streams.batch == batch)).nonzero().flatten()
            if len(points):
                first = self.next[batch]
                for turn in range(first, min(first + min(self.ahead[batch], most), len(self.ranks))):
                    drawn = noise(len(points), generator)
                    plan.append(PlannedTurn(batch, turn, self.ranks[turn], points, drawn, generator.get_state()))
        return plan

    def select_valid(self, plan: list[PlannedTurn], broken: Tensor) -> Tensor:
        """Which rows of a plan count, bool [n], given which were broken."""
        parts, void = [], set()
        for part, hits in zip(plan, torch.split(broken, [len(part.points) for part in plan]), strict=True):
            valid = part.batch not in void
            parts.append(torch.full_like(hits, valid))
            if valid:
                self.next[part.batch] = part.turn + 1
                self.ahead[part.batch] = 2 * self.ahead[part.batch]
                if bool(hits.any()):
                    self.ahead[part.batch] = 1
                    self.streams.generators[part.batch].set_state(part.state)
                    void.add(part.batch)
        return torch.cat(parts)

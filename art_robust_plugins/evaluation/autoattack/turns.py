"""Consecutive runs of Auto-PGD, tried speculatively and with unchanged random numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .batches import Streams


class Plan(NamedTuple):
    """A run of a logical batch: its target's rank, its points and their noise, and its stream's state after it."""

    batch: int
    turn: int
    rank: int
    points: Tensor
    noise: Tensor
    state: Tensor


class Turns:
    """The order in which the runs of each logical batch draw random numbers.

    What a run draws depends on how many points those before it have left. Several that follow each other are tried at
    once, as if none of them broke a point: one first, and more while that holds. If one does break a point, those after
    it are void, and the stream goes back to where that one left it.
    """

    def __init__(self, streams: Streams, ranks: list[int]) -> None:
        self.streams, self.ranks = streams, ranks
        self.next, self.ahead = ([value] * len(streams.generators) for value in (0, 1))

    def plan_next(self, left: Tensor, room: int, noise: Callable[[int, torch.Generator], Tensor]) -> list[Plan]:
        """The next runs, for the points that are left [N], which fill about ``room`` rows."""
        plan = []
        most = max(room // max(int(left.sum()), 1), 1)
        for batch, generator in enumerate(self.streams.generators):
            points = (left & (self.streams.batch == batch)).nonzero().flatten()
            if len(points):
                first = self.next[batch]
                for turn in range(first, min(first + min(self.ahead[batch], most), len(self.ranks))):
                    drawn = noise(len(points), generator)
                    plan.append(Plan(batch, turn, self.ranks[turn], points, drawn, generator.get_state()))
        return plan

    def select_valid(self, plan: list[Plan], broken: Tensor) -> Tensor:
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

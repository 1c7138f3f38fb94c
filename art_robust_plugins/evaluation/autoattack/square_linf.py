"""The square attack's search in Linf: a square moves by +-2 eps a channel and is clipped to the ball."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .square_points import Pace, SquarePoints, take_signs, update_mean

# If at least this share of the proposals changes its image, all of them are queried: the pass keeps its size.
FEW_SPARED = 0.9
# Proposals of each point that are examined at once.
AHEAD = 256


class Proposals(NamedTuple):
    """Proposals for some points: the point, its logical batch and the query of each [m], on the CPU."""

    point: Tensor
    batch: Tensor
    query: Tensor

    def select(self, rows: slice | Tensor) -> Proposals:
        return Proposals(self.point[rows], self.batch[rows], self.query[rows])


class LinfSearch:
    """A search in Linf.

    Proposals do not depend on how many points are left, so that each point goes through them at its own pace.
    """

    def __init__(self, points: SquarePoints) -> None:
        self.points = points
        c, w = points.x.shape[1], points.x.shape[3]
        stripes = points.send(points.streams.draw(torch.rand, points.index, (c, 1, w)))
        self.best = (points.x + points.eps * take_signs(stripes)).clamp_(0, 1)
        self.margin = points.compute_first_margin(self.best)
        self.corners, self.signs, self.identity, self.batch = _draw_proposals(points)
        # The share of the proposals that change their image, lately.
        self.changing = 1.0
        # The images of the latest proposals, if they were made together.
        self.made: Tensor | None = None

    def run(self) -> tuple[Tensor, Tensor]:
        """Which points were broken, bool [n] on the CPU, and the best image of each."""
        points, queries, margin = self.points, self.points.queries, self.margin
        n = len(points.x)
        # Proposals that change nothing or are known to be worse than the best image, until that image changes.
        known = torch.zeros(n, int(self.identity.max()) + 1, dtype=torch.bool, device="cpu")
        reached = torch.where(points.searched, 0, queries)
        pace = Pace(points.passes.suggest_rows(points.x))
        while len(left := ((margin > 0) & (reached < queries)).nonzero().flatten()):
            tries = pace.choose_tries(len(left))
            looks = min(math.ceil(tries / self.changing), max(points.at_once // len(left), tries))
            query = reached[left, None] + torch.arange(AHEAD, device="cpu")
            there, query = query < queries, query.clamp_max(queries - 1)
            name = self.identity[self.batch[left, None], query]
            new = there & ~known[left[:, None], name]
            order = new.cumsum(dim=1)
            row, column = (new & (order <= looks)).nonzero(as_tuple=True)
            proposals = Proposals(left[row], self.batch[left[row]], query[row, column])
            found = torch.full(new.shape, torch.inf, device="cpu")
            found[row, column], asked = self._ask_all(proposals)
            better = (found < margin[left, None]) | (found <= 0)
            accepted, first = better.any(dim=1), better.byte().argmax(dim=1)
            known[left[row], name[row, column]] = True
            took, chosen = left[accepted], first[accepted]
            if len(took):
                known[took] = False
                index = torch.zeros(new.shape, dtype=torch.long, device="cpu")
                index[row, column] = torch.arange(len(row), device="cpu")
                self._take(proposals, index[accepted, chosen])
                margin[took] = found[accepted, chosen]
            reached[left] += torch.where(accepted, first + 1, (order <= looks).sum(dim=1))
            pace.note(len(took), asked)
        return margin <= 0, self.best

    def _ask_all(self, proposals: Proposals) -> tuple[Tensor, int]:
        """The margins [m] of proposals, infinite for those that need no pass; and the number of those that had one."""
        count = len(proposals.point)
        if count == 0:
            return torch.zeros(0, device="cpu"), 0
        margins, asked, changed = self.points.passes.run_over(count, partial(self._ask, proposals), self.points.at_once)
        self.changing = update_mean(self.changing, int(changed.sum()) / count, at_least=0.1)
        return margins, int(asked.sum())

    def _ask(self, proposals: Proposals, part: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The margins of some proposals; which of them had a pass, on the CPU; and which change their image."""
        self.made = None  # frees the earlier ones first
        point, at, proposed = self._make_images(proposals.select(part))
        self.made = proposed if len(point) == len(proposals.point) else None
        changed = (proposed != at).flatten(1).any(dim=1)
        # Where nearly all proposals change an image, a GPU is not waited for here.
        asked = changed.cpu() if self.changing < FEW_SPARED else torch.ones(len(point), dtype=torch.bool, device="cpu")
        if int(asked.sum()) >= FEW_SPARED * len(asked):
            # A pass of a size that was met before takes less time than one with a few images less.
            return self.points.compute_margin(proposed, point).cpu(), torch.ones_like(asked), changed
        margins = torch.full((len(point),), torch.inf, device="cpu")
        if bool(asked.any()):
            rows = self.points.send(asked.nonzero().flatten())
            margins[asked] = self.points.compute_margin(proposed[rows], point[rows]).cpu()
        return margins, asked, changed

    def _take(self, proposals: Proposals, rows: Tensor) -> None:
        """Make the images of some of the proposals, one for a point, the best ones."""
        send = self.points.send
        if self.made is not None:
            self.best[send(proposals.point[rows])] = self.made[send(rows)]
            return

        def take(part: slice) -> tuple[Tensor, ...]:
            point, _, proposed = self._make_images(proposals.select(rows[part]))
            self.best[point] = proposed
            return ()

        self.points.passes.run_over(len(rows), take, self.points.at_once)

    def _make_images(self, proposals: Proposals) -> tuple[Tensor, Tensor, Tensor]:
        """The points [m] of these proposals, their best images [m, C, H, W], and what the proposals make of them."""
        send, which = self.points.send, (proposals.batch, proposals.query)
        point = send(proposals.point)
        at, corners, signs = self.best[point], send(self.corners[which]), send(self.signs[which])
        return point, at, _move_squares(self.points.x[point], at, corners, signs, self.points.eps)


def _draw_proposals(points: SquarePoints) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All proposals of each logical batch, whose points share them, on the CPU.

    Corners (top, bottom, left, right) [batches, queries, 4], signs [batches, queries, C], a number that only equal
    proposals of a batch have in common [batches, queries], and the batch of each point [n].
    """
    c, h, w = points.x.shape[1:]
    sides = torch.tensor([min(points.compute_side(query, 1), h, w) for query in range(points.queries)], device="cpu")
    batch = torch.empty(len(points.x), dtype=torch.long, device="cpu")
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for generator, rows in points.streams.split_by_batch(points.index):
        batch[rows] = len(parts)
        numbers = torch.rand(points.queries, 2 + c, generator=generator, device="cpu")
        top, start = ((h - sides) * numbers[:, 0]).long(), ((w - sides) * numbers[:, 1]).long()
        corners, signs = torch.stack([top, top + sides, start, start + sides], dim=1), take_signs(numbers[:, 2:])
        same: Tensor = torch.unique(torch.cat([corners, signs.long()], dim=1), dim=0, return_inverse=True)[1]
        parts.append((corners, signs, same))
    corners, signs, identity = (torch.stack(each) for each in zip(*parts, strict=True))
    return corners, signs, identity, batch


def _move_squares(x: Tensor, best: Tensor, corners: Tensor, signs: Tensor, eps: float) -> Tensor:
    """The images [m, C, H, W] that these proposals make of ``best``."""
    h, w = x.shape[-2:]
    top, bottom, start, end = corners[..., None].unbind(dim=1)
    rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
    tall, wide = (rows >= top) & (rows < bottom), (columns >= start) & (columns < end)
    inside = (tall[:, :, None] & wide[:, None, :])[:, None]
    moved = best + 2.0 * eps * signs[..., None, None] * inside
    return torch.minimum(torch.maximum(moved, x - eps), x + eps).clamp(0, 1)

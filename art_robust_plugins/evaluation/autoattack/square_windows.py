"""The square attack's search in L2 and L1: the change within two windows is merged into one of them.

The merged change has the shape of a fixed tile, added to the change that the window held. Its length is that of both
windows' changes together with the unused part of the radius.

A query's random numbers depend on how many points are left before it. They are drawn for a block of consecutive
queries, on the assumption that none of these breaks a point. Within a block each point goes through the proposals at
its own pace. Where a query does break a point, the queries after it are void: what they changed is undone, and the
streams return to their state after that query.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...threat import Norm
from .projections import correct_to_l1_ball
from .square_points import HALVINGS, Pace, SquarePoints, take_signs

LONGEST_BLOCK = 128
# Numbers in all images times the queries of a block: what may have to be undone.
LARGEST_BLOCK = 2**25


@dataclass(frozen=True)
class Block:
    """The proposals of consecutive queries with windows of the same side.

    Attributes:
        states: of each logical batch: its generator, its state before the block, and how many numbers a query draws.
        batch: the logical batch of each point that is left [m].
        first, second: the pixels of both windows [batches, queries, side^2].
        inside: 1 within a window and 0 elsewhere [batches, queries, H W].
        tiles: the tile and the tile turned [2, side^2].
        turned: 1 where a query takes the second tile [batches, queries].
        signs: of each point, query and channel [m, queries, C].
    """

    states: list[tuple[torch.Generator, Tensor, int]]
    batch: Tensor
    first: Tensor
    second: Tensor
    inside: Tensor
    tiles: Tensor
    turned: Tensor
    signs: Tensor

    def return_streams(self, queries: int) -> None:
        """Set the streams to their states after so many queries of the block."""
        for generator, state, count in self.states:
            generator.set_state(state)
            torch.rand(queries * count, generator=generator, device="cpu")


class Change(NamedTuple):
    """Points that took a proposal: the query of each in its block, the points, and what they were before."""

    query: Tensor
    point: Tensor
    best: Tensor
    margin: Tensor


class WindowSearch:
    """A search in L2 or L1.

    Args:
        points: the points to search, with their labels, the network and the random streams.
        norm: "L2" or "L1".
    """

    def __init__(self, points: SquarePoints, norm: Norm) -> None:
        self.points, self.norm = points, norm
        n, c, h, w = points.x.shape
        self.x = points.x.reshape(n, c, h * w)
        tiles = self._draw_tiles().flatten(2)

        def fill(part: slice) -> tuple[Tensor]:
            # A copy, as a part that does not fit into memory is filled again.
            return (self._fill_ball(self.x[part], tiles[part].clone()),)

        self.best = points.passes.run_over(n, fill, points.at_once)[0]
        self.longest = max(1, min(LONGEST_BLOCK, LARGEST_BLOCK // self.x.numel()))
        self.margin = points.compute_first_margin(self.best)
        self.delta = self.best - self.x
        self.unused_radius = self._measure_unused_radius(self.delta)
        self.pace = Pace(points.passes.suggest_rows(points.x))

    def run(self) -> tuple[Tensor, Tensor]:
        """Which points were broken, bool [n] on the CPU, and the best image of each."""
        query, length, before = 0, 1, len(self.x)
        passes, searched = self.points.passes, self.points.searched
        nowhere = passes.merge(~searched)
        while query < self.points.queries:
            remaining = passes.merge(self.margin > 0).nonzero().flatten()
            if bool(nowhere[remaining].all()):
                break
            length = max(length // 2, 1) if len(remaining) < before else min(2 * length, self.longest)
            length, before = min(length, self._count_equal_sides(query)), len(remaining)
            block = self._draw_block(remaining, query, length)
            done, changes = self._search_block(block, remaining[searched[remaining]], length)
            done = passes.find_least(done)
            if done < length:
                self._undo(changes, done)
                block.return_streams(done)
            query += done
        return self.margin <= 0, self.best

    def _search_block(self, block: Block, left: Tensor, length: int) -> tuple[int, list[Change]]:
        """Search the points that are left: the number of queries up to the first that breaks a point, and all changes.

        Some changes may be of later queries.
        """
        reached = torch.zeros_like(left)
        changes: list[Change] = []
        while len(rows := ((self.margin[left] > 0) & (reached < length)).nonzero().flatten()):
            tries = self.pace.choose_tries(len(rows))
            query = reached[rows, None] + torch.arange(tries, device="cpu")
            row, column = (query < length).nonzero(as_tuple=True)
            proposals = (left[rows[row]], rows[row], query[row, column])
            found = torch.full(query.shape, torch.inf, device="cpu")
            ask = partial(self._ask, block, *proposals)
            found[row, column] = self.points.passes.run_over(len(row), ask, self.points.at_once)[0]
            better = (found < self.margin[left[rows], None]) | (found <= 0)
            accepted, first = better.any(dim=1), better.byte().argmax(dim=1)
            if bool(accepted.any()):
                accepted_points, chosen = left[rows[accepted]], first[accepted]
                index = torch.zeros(query.shape, dtype=torch.long, device="cpu")
                index[row, column] = torch.arange(len(row), device="cpu")
                taken = index[accepted, chosen]
                point, place, queries = (each[taken] for each in proposals)
                make = partial(self._make_images, block, point, place, queries)
                images = self.points.passes.run_over(len(taken), make, self.points.at_once)[0]
                changes.append(self._record_change(query[accepted, chosen], accepted_points))
                self._put(accepted_points, images, found[accepted, chosen])
                broken = self.margin[accepted_points] <= 0
                length = min([length, *(changes[-1].query[broken] + 1).tolist()])
            reached[rows] = torch.where(accepted, query[:, 0] + first + 1, query[:, -1] + 1)
            self.pace.note(int(accepted.sum()), len(row))
        return length, changes

    def _ask(self, block: Block, point: Tensor, place: Tensor, query: Tensor, part: slice) -> tuple[Tensor]:
        """The margins of some proposals, on the CPU."""
        (images,) = self._make_images(block, point, place, query, part)
        return (self.points.compute_margin(images, self.points.send(point[part])).cpu(),)

    def _make_images(self, block: Block, point: Tensor, place: Tensor, query: Tensor, part: slice) -> tuple[Tensor]:
        """The images that some proposals make; all are given on the CPU, as `_propose` takes them."""
        return (self._propose(block, *(self.points.send(each[part]) for each in (point, place, query))),)

    def _record_change(self, query: Tensor, point: Tensor) -> Change:
        """The images of points [m] before they take the proposals of these queries [m]; both are given on the CPU."""
        return Change(query, point, self.best[self.points.send(point)], self.margin[point])

    def _undo(self, changes: list[Change], done: int) -> None:
        """Undo the changes of all but the first ``done`` queries of a block."""
        for change in reversed(changes):
            void = change.query >= done
            if bool(void.any()):
                self._put(change.point[void], change.best[self.points.send(void)], change.margin[void])

    def _put(self, point: Tensor, best: Tensor, margin: Tensor) -> None:
        """Set the best images of some points, whose indices and margins are on the CPU."""
        on_device = self.points.send(point)
        delta = best - self.x[on_device]
        self.best[on_device], self.margin[point], self.delta[on_device] = best, margin, delta
        self.unused_radius[on_device] = self._measure_unused_radius(delta)

    def _count_equal_sides(self, query: int) -> int:
        """The number of queries from this one on that have windows of its side."""
        halving = bisect_left(HALVINGS, query)
        end = HALVINGS[halving] + 1 if halving < len(HALVINGS) else self.points.queries
        return min(end, self.points.queries) - query

    def _draw_block(self, remaining: Tensor, query: int, length: int) -> Block:
        """Draw the proposals of these queries, as if all remaining points [m] were left in each of them."""
        points, device = self.points, self.x.device
        c, h, w = points.x.shape[1:]
        side = points.compute_side(query, 3)
        side = min(side + (side % 2 == 0), h, w)
        room = torch.tensor([h - side, w - side] * 2, device="cpu")
        states: list[tuple[torch.Generator, Tensor, int]] = []
        batch: list[Tensor] = []
        places: list[Tensor] = []
        turned: list[Tensor] = []
        signs: list[Tensor] = []
        for generator, rows in points.streams.split_by_batch(points.index[remaining]):
            searched = points.searched[remaining[rows]]
            # Of each query: places of the windows, whether the tile is turned, signs of all points.
            count = 5 + len(searched) * c
            states.append((generator, generator.get_state(), count))
            numbers = torch.rand(length, count, generator=generator, device="cpu")
            batch.append(torch.full((int(searched.sum()),), len(places), device="cpu"))
            places.append((numbers[:, :4] * room).long())
            turned.append((numbers[:, 4] > 0.5).long())
            signs.append(take_signs(numbers[:, 5:]).view(length, -1, c).transpose(0, 1)[searched])
        top, start, other_top, other_start = points.send(torch.stack(places)).unbind(dim=2)
        within = torch.arange(side, device=device)
        pixels = (within[:, None] * w + within).flatten()
        first, second = ((each[..., None] + pixels) for each in (top * w + start, other_top * w + other_start))
        inside = torch.zeros(*top.shape, h * w, device=device)
        inside.scatter_(2, first, 1.0).scatter_(2, second, 1.0)
        tile = build_tile(side, self.norm)
        return Block(
            states,
            points.send(torch.cat(batch)),
            first,
            second,
            inside,
            points.send(torch.stack([tile.flatten(), tile.T.flatten()])),
            points.send(torch.stack(turned)),
            points.send(torch.cat(signs)),
        )

    def _propose(self, block: Block, point: Tensor, place: Tensor, query: Tensor) -> Tensor:
        """The images [m, C, H W] that queries of a block make of the best images of points, at places of the block."""
        c, which = self.x.shape[1], (block.batch[place], query)
        first, second = (each[which][:, None].expand(-1, c, -1) for each in (block.first, block.second))
        delta = self.delta.index_select(0, point)
        inside = block.inside.flatten(0, 1).index_select(0, which[0] * block.inside.shape[1] + query)[:, None]
        windows = _measure_length(self.norm, delta * inside, 2)
        part = delta.gather(2, first)
        shape = block.tiles[block.turned[which]][:, None] * block.signs[place, query][..., None]
        shape = shape + part / (1e-12 + _measure_length(self.norm, part, 2))
        shape = shape / (1e-12 + _measure_length(self.norm, shape, 2))
        if self.norm == "L2":
            size = (self.unused_radius[point] / c + windows**2).sqrt()
        else:
            size = (self.unused_radius[point] / c + windows) * c
        delta.scatter_(2, second, 0.0).scatter_(2, first, shape * size)
        return self._fill_ball(self.x.index_select(0, point), delta)

    def _measure_unused_radius(self, delta: Tensor) -> Tensor:
        """The rest of the radius [m, 1, 1] after these changes; in L2, of its square."""
        image = _measure_length(self.norm, delta, (1, 2))
        radius = torch.full_like(image, self.points.eps)
        return ((radius**2 - image**2) if self.norm == "L2" else (radius - image)).clamp_min(0)

    def _fill_ball(self, x: Tensor, delta: Tensor) -> Tensor:
        """The image x + delta in [0, 1], with the change scaled to fill the ball, in place."""
        if self.norm == "L2":
            length = _measure_length(self.norm, delta, (1, 2))
            return delta.div_(length + 1e-12).mul_(self.points.eps).add_(x).clamp_(0, 1)
        return x + delta + correct_to_l1_ball(x, delta, self.points.eps * (1 - 1e-6))

    def _draw_tiles(self) -> Tensor:
        """Initial changes [n, C, H, W]: tiles of random signs side by side."""
        points = self.points
        c, h, w = points.x.shape[1:]
        side = max(h // 5, 1)
        first = max((h - 5 * side) // 2, 0)
        delta = torch.zeros_like(points.x, device="cpu")
        for generator, rows in points.streams.split_by_batch(points.index):
            for top in range(first, first + side * (h // side), side):
                for start in range(first, first + side * (w // side), side):
                    tile = build_tile(side, self.norm)
                    if torch.rand(1, generator=generator, device="cpu") > 0.5:
                        tile = tile.T
                    signs = take_signs(torch.rand(rows.stop - rows.start, c, 1, 1, generator=generator, device="cpu"))
                    # The last row and the last column of tiles may reach beyond the image.
                    change = (tile * signs)[:, :, : max(h - top, 0), : max(w - start, 0)]
                    delta[rows, :, top : top + side, start : start + side] += change
        return points.send(delta)


@lru_cache(maxsize=64)
def build_tile(side: int, norm: Norm) -> Tensor:
    """The square [side, side] of length 1: a positive half over a negative one, each falling off from its middle."""
    half = side // 2
    pattern = torch.cat([_build_hill(half, side, norm), -_build_hill(side - half, side, norm)])
    return pattern / _measure_length(norm, pattern, (0, 1))


def _build_hill(height: int, width: int, norm: Norm) -> Tensor:
    if height == 0:
        return torch.zeros(0, width, device="cpu")
    middle, centre = height // 2, width // 2
    rows, columns = (
        (torch.arange(size, device="cpu") - half).abs() for size, half in ((height, middle), (width, centre))
    )
    ring = torch.maximum(rows[:, None], columns)
    hill = torch.zeros(height, width, device="cpu")
    for size in range(max(middle, centre) + 1):
        hill += (ring <= size) / torch.tensor(size + 1.0, device="cpu") ** (2 if norm == "L2" else 4)
    return hill / _measure_length(norm, hill, (0, 1))


def _measure_length(norm: Norm, delta: Tensor, dims: int | tuple[int, ...]) -> Tensor:
    """The length over some axes, which stay with size 1."""
    if norm == "L2":
        # The same number as by a power of 2, in less time.
        return (delta * delta).sum(dim=dims, keepdim=True).sqrt()
    return delta.abs().sum(dim=dims, keepdim=True)

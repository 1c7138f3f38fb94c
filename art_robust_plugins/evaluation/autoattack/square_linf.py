"""The square attack's search in Linf: a square moves by +-2 eps a channel and is clipped to the ball."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .square_points import Pace, SquarePoints, take_signs, update_mean

# If at least this share of the proposals changes its image, all of them are queried: the pass keeps its size.
FEW_SPARED = 0.9
# Proposals of each point that are examined at once, and numbers in the images that are made of them.
AHEAD = 256
LARGEST_LOOK = 2**21


def search_linf(points: SquarePoints) -> tuple[Tensor, Tensor]:
    """Which points were broken, bool [n] on the CPU, and the best image of each.

    Proposals do not depend on how many points are left, so that each point goes through them at its own pace.
    """
    x, queries = points.x, points.queries
    n, c, _, w = x.shape
    stripes = points.send(points.streams.draw(torch.rand, points.index, (c, 1, w)))
    best = (x + points.eps * take_signs(stripes)).clamp(0, 1)
    margin = points.compute_first_margin(best)
    corners, signs, identity, batch = _draw_proposals(points)
    # Proposals that change nothing or are known to be worse than the best image, until that image changes.
    known = torch.zeros(n, int(identity.max()) + 1, dtype=torch.bool, device="cpu")
    reached = torch.where(points.searched, 0, queries)
    changing, pace = 1.0, Pace(points.passes.suggest_rows(x))
    while len(left := ((margin > 0) & (reached < queries)).nonzero().flatten()):
        tries = pace.choose_tries(len(left))
        looks = min(math.ceil(tries / changing), max(LARGEST_LOOK // (len(left) * x[0].numel()), tries))
        query = reached[left, None] + torch.arange(AHEAD, device="cpu")
        there, query = query < queries, query.clamp_max(queries - 1)
        which_batch = batch[left, None]
        name = identity[which_batch, query]
        new = there & ~known[left[:, None], name]
        order = new.cumsum(dim=1)
        row, column = (new & (order <= looks)).nonzero(as_tuple=True)
        point, place = points.send(left[row]), (which_batch[row, 0], query[row, column])
        at = best[point]
        proposed = _move_squares(x[point], at, points.send(corners[place]), points.send(signs[place]), points.eps)
        changed = (proposed != at).flatten(1).any(dim=1)
        found = torch.full(new.shape, torch.inf, device="cpu")
        # Where nearly all proposals change an image, a GPU is not waited for here.
        asked = changed.nonzero().flatten().cpu() if changing < FEW_SPARED else torch.arange(len(row), device="cpu")
        if 0 < FEW_SPARED * len(row) <= len(asked):
            # A pass of a size that was met before takes less time than one with a few images less.
            found[row, column] = points.compute_margin(proposed, point).cpu()
            asked = torch.arange(len(row), device="cpu")
        elif len(asked):
            some = points.send(asked)
            found[row[asked], column[asked]] = points.compute_margin(proposed[some], point[some]).cpu()
        better = (found < margin[left, None]) | (found <= 0)
        accepted, first = better.any(dim=1), better.byte().argmax(dim=1)
        known[left[row], name[row, column]] = True
        took, chosen = left[accepted], first[accepted]
        if len(took):
            known[took] = False
            index = torch.zeros(new.shape, dtype=torch.long, device="cpu")
            index[row, column] = torch.arange(len(row), device="cpu")
            best[points.send(took)] = proposed[points.send(index[accepted, chosen])]
            margin[took] = found[accepted, chosen]
        reached[left] += torch.where(accepted, first + 1, (order <= looks).sum(dim=1))
        changing = update_mean(changing, int(changed.sum()) / max(len(row), 1), at_least=0.1)
        pace.note(len(took), len(asked))
    return margin <= 0, best


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

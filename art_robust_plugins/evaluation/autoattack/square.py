"""The square attack (Andriushchenko et al., ECCV 2020, arXiv 1912.00049): random search, without gradients.

From an image with random stripes (Linf) or tiles (L2, L1) on the sphere of radius eps, query k proposes to change one
square of side s_k at a random place, and the change is kept where it lowers the margin

    z_y - max_{i != y} z_i

Linf: the square moves by +-2 eps a channel and is clipped to the ball. L2, L1: the change within two windows is brought
together in one of them, in the shape of a fixed tile. s_k^2 is a share p of the image, p_init at first, halved after
10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 queries.

Status: exact. The random numbers are the reference's, so a point's verdict is too. Linf proposals do not depend on how
many points are left: each point goes through them at its own pace. Proposals that do not change an image, or that it
has already rejected, cost no query. Several consecutive proposals are tried at once; the first one that is accepted
makes the others void.

Ours: flat inputs are treated as images with sides as equal as possible, and any side may be smaller than five.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ...threat import Norm, ThreatModel
from .batches import BatchedPasses, Streams, classify_clean
from .projections import correct_to_l1_ball

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Expected number of accepted proposals per speculative batch. About half of it is the share of queries that are wasted.
WASTE = 0.2
# If at least this share of the proposals changes its image, all of them are queried: the pass keeps its size.
FEW_SPARED = 0.9
# Decay of the running means of two shares: of proposals that change an image, and of proposals that are accepted.
MEMORY = 0.9
# Proposals of each point that are examined at once, and numbers in the images that are made of them.
AHEAD = 256
LARGEST_LOOK = 2**21


class Square:
    """The square attack on any number of points, which may be several logical batches.

    Args:
        model: images in [0, 1] -> logits.
        threat: in units of [0, 1].
        queries: proposals for each point.
        p_init: the share of the image in the first square.
        seed: of each logical batch.
        batch_size: of a logical batch.
        physical_batch_size: the most images in a pass.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        >>> attack = Square(network, ThreatModel("L2", 0.1), queries=5)
        >>> attack(torch.rand(5, 3, 2, 2), torch.zeros(5, dtype=torch.long)).shape
        torch.Size([5, 3, 2, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        threat: ThreatModel,
        *,
        queries: int = 5000,
        p_init: float = 0.8,
        seed: int = 0,
        batch_size: int = 250,
        physical_batch_size: int = 250,
    ) -> None:
        self.passes = BatchedPasses(model, physical_batch_size)
        self.threat, self.queries, self.p_init = threat, queries, p_init
        self.seed, self.batch_size = seed, batch_size

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters that determine the result, for a report."""
        return {"queries": self.queries, "p_init": self.p_init, "loss": "margin", "rescaled_schedule": False}

    @torch.no_grad()
    def __call__(self, x: Tensor, y: Tensor, spared: Tensor | None = None) -> Tensor:
        """Images [N, ...] in [0, 1] with labels [N] -> misclassified images in the ball; x where none was found.

        Points that are ``spared``, bool [N], are known to be robust: they count where random numbers are drawn, and
        take part in no pass.
        """
        images, labels, found = x.detach().float(), y.long(), x.detach().float().clone()
        if spared is not None and bool(spared.all()):
            return found
        streams = Streams(len(x), self.batch_size, self.seed)
        # This compares classes, not margins: if logits tie, the first one's class counts.
        points = classify_clean(self.passes, images, labels, spared)[1].nonzero().flatten()
        searched = torch.ones_like(points, dtype=torch.bool) if spared is None else ~spared[points]
        if not bool(self.passes.merge(~searched).all()):
            search = _Search(self, images[points], labels[points], points, searched, streams)
            broken, best = search.run_linf() if self.threat.norm == "Linf" else search.run_sparse(self.threat.norm)
            found[points[broken]] = best[broken].view(-1, *x.shape[1:])
        return found

    def compute_side(self, query: int, area: int, smallest: int) -> int:
        """The side of the square of a query, in an image of this area."""
        share = self.p_init / 2 ** bisect_left(HALVINGS, query)
        return max(round(math.sqrt(share * area)), smallest)

    def compute_margin(self, x: Tensor, y: Tensor) -> Tensor:
        logits = self.passes.logits(x).float()
        others = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
        margin = logits.gather(1, y[:, None])[:, 0] - others
        # Logits with NaN belong to no class.
        return torch.where(logits.isnan().any(dim=1), -torch.inf, margin)


class _Search:
    """One run on points whose images are x [n, ...]; those that are not ``searched``, bool [n], only count in draws."""

    def __init__(self, attack: Square, x: Tensor, y: Tensor, index: Tensor, searched: Tensor, streams: Streams) -> None:
        self.attack, self.y, self.index, self.searched, self.streams = attack, y, index, searched, streams
        self.shape = tuple(x.shape[1:])
        self.x = x.reshape(len(x), *find_image_shape(self.shape))
        self.eps = attack.threat.eps

    def _compute_margin(self, x: Tensor, y: Tensor) -> Tensor:
        return self.attack.compute_margin(x.reshape(-1, *self.shape), y)

    def _compute_first_margin(self, best: Tensor) -> Tensor:
        """The margin [n] of the first images; infinite for points that are not searched."""
        margin = torch.full((len(best),), torch.inf, device=best.device)
        if bool(self.searched.any()):
            margin[self.searched] = self._compute_margin(best[self.searched], self.y[self.searched])
        return margin

    def run_linf(self) -> tuple[Tensor, Tensor]:
        """Search in Linf: which points were broken, and the best image of each."""
        x, y, queries = self.x, self.y, self.attack.queries
        n, c, _, w = x.shape
        stripes = self.streams.draw(torch.rand, self.index, (c, 1, w)).to(x.device)
        best = (x + self.eps * _take_signs(stripes)).clamp(0, 1)
        margin = self._compute_first_margin(best)
        corners, signs, identity, batch = self._draw_proposals()
        # Proposals that change nothing or are known to be worse than the best image, until that image changes.
        known = torch.zeros(n, int(identity.max()) + 1, dtype=torch.bool, device=x.device)
        reached = torch.where(self.searched, 0, queries)
        changing, accepting = 1.0, 1.0
        room = self.attack.passes.suggest_rows(x)
        while len(left := ((margin > 0) & (reached < queries)).nonzero().flatten()):
            # Powers of two, so that passes have few different sizes.
            wanted = 2 ** max(round(math.log2(WASTE / accepting)), 0)
            tries = min(wanted, max(room // len(left), 1))
            looks = min(math.ceil(tries / changing), max(LARGEST_LOOK // (len(left) * x[0].numel()), tries))
            query = reached[left, None] + torch.arange(AHEAD, device=x.device)
            there, query = query < queries, query.clamp_max(queries - 1)
            which_batch = batch[left, None]
            name = identity[which_batch, query]
            new = there & ~known[left[:, None], name]
            order = new.cumsum(dim=1)
            row, column = (new & (order <= looks)).nonzero(as_tuple=True)
            point, place = left[row], (which_batch[row, 0], query[row, column])
            proposed = self._move_squares(x[point], best[point], corners[place], signs[place])
            changed = (proposed != best[point]).flatten(1).any(dim=1)
            asked = changed.nonzero().flatten()
            if len(asked) >= FEW_SPARED * len(changed):
                # A pass of a size that was met before takes less time than one with a few images less.
                asked = torch.arange(len(changed), device=x.device)
            found = torch.full(new.shape, torch.inf, device=x.device)
            if len(asked):
                found[row[asked], column[asked]] = self._compute_margin(proposed[asked], y[point[asked]])
            better = (found < margin[left, None]) | (found <= 0)
            accepted, first = better.any(dim=1), better.byte().argmax(dim=1)
            known[point, name[row, column]] = True
            took, chosen = left[accepted], first[accepted]
            known[took] = False
            index = torch.zeros(new.shape, dtype=torch.long, device=x.device)
            index[row, column] = torch.arange(len(row), device=x.device)
            best[took] = proposed[index[accepted, chosen]]
            margin[took] = found[accepted, chosen]
            reached[left] += torch.where(accepted, first + 1, (order <= looks).sum(dim=1))
            changing = _update_mean(changing, len(asked) / max(len(row), 1), at_least=0.1)
            accepting = _update_mean(accepting, len(took) / max(len(asked), 1), at_least=0.002)
        return margin <= 0, best

    def _draw_proposals(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All proposals of each logical batch, whose points share them.

        Corners (top, bottom, left, right) [batches, queries, 4], signs [batches, queries, C], a number that only equal
        proposals of a batch have in common [batches, queries], and the batch of each point [n].
        """
        c, h, w = self.x.shape[1:]
        queries, device = self.attack.queries, self.x.device
        sides = torch.tensor(
            [min(self.attack.compute_side(query, h * w, 1), h, w) for query in range(queries)], device="cpu"
        )
        batch = torch.empty(len(self.x), dtype=torch.long, device="cpu")
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for generator, rows in self.streams.split_by_batch(self.index):
            batch[rows] = len(parts)
            numbers = torch.rand(queries, 2 + c, generator=generator, device="cpu")
            top, start = ((h - sides) * numbers[:, 0]).long(), ((w - sides) * numbers[:, 1]).long()
            corners, signs = torch.stack([top, top + sides, start, start + sides], dim=1), _take_signs(numbers[:, 2:])
            same: Tensor = torch.unique(torch.cat([corners, signs.long()], dim=1), dim=0, return_inverse=True)[1]
            parts.append((corners, signs, same))
        corners, signs, identity = (torch.stack(each).to(device) for each in zip(*parts, strict=True))
        return corners, signs, identity, batch.to(device)

    def _move_squares(self, x: Tensor, best: Tensor, corners: Tensor, signs: Tensor) -> Tensor:
        """The images [m, C, H, W] that these proposals make of ``best``."""
        h, w = x.shape[-2:]
        top, bottom, start, end = corners[..., None].unbind(dim=1)
        rows, columns = torch.arange(h, device=x.device), torch.arange(w, device=x.device)
        tall, wide = (rows >= top) & (rows < bottom), (columns >= start) & (columns < end)
        inside = (tall[:, :, None] & wide[:, None, :])[:, None]
        moved = best + 2.0 * self.eps * signs[..., None, None] * inside
        return torch.minimum(torch.maximum(moved, x - self.eps), x + self.eps).clamp(0, 1)

    def run_sparse(self, norm: Norm) -> tuple[Tensor, Tensor]:
        """As `run_linf`, for L2 and L1, where a query's random numbers depend on how many points are left before it."""
        best = self._fill_ball(norm, self.x, self._draw_tiles(norm))
        margin = self._compute_first_margin(best)
        h, w = self.x.shape[-2:]
        merge = self.attack.passes.merge
        nowhere = merge(~self.searched)
        for query in range(self.attack.queries):
            remaining = merge(margin > 0).nonzero().flatten()
            searched = self.searched[remaining]
            left = remaining[searched]
            if bool(nowhere[remaining].all()):
                break
            if not len(left):  # other processes go on
                continue
            side = self.attack.compute_side(query, h * w, 3)
            side = min(side + (side % 2 == 0), h, w)
            x, at = self.x[left], best[left]
            delta = at - x
            done = 0
            for generator, drawn in self.streams.split_by_batch(self.index[remaining]):
                rows = slice(done, done + int(searched[drawn].sum()))
                delta[rows] = self._merge_windows(norm, delta[rows], side, generator, searched[drawn])
                done = rows.stop
            proposed = self._fill_ball(norm, x, delta)
            found = self._compute_margin(proposed, self.y[left])
            better = (found < margin[left]) | (found <= 0)
            margin[left] = torch.where(better, found, margin[left])
            best[left] = torch.where(better.view(-1, 1, 1, 1), proposed, at)
        return margin <= 0, best

    def _draw_tiles(self, norm: Norm) -> Tensor:
        """Initial changes: tiles of random signs side by side."""
        h, w = self.x.shape[2:]
        side = max(h // 5, 1)
        first = max((h - 5 * side) // 2, 0)
        delta = torch.zeros_like(self.x)
        for generator, rows in self.streams.split_by_batch(self.index):
            for top in range(first, first + side * (h // side), side):
                for start in range(first, first + side * (w // side), side):
                    change = self._draw_tile(norm, side, rows.stop - rows.start, generator)
                    # The last row and the last column of tiles may reach beyond the image.
                    change = change[:, :, : max(h - top, 0), : max(w - start, 0)]
                    delta[rows, :, top : top + side, start : start + side] += change
        return delta

    def _merge_windows(
        self, norm: Norm, delta: Tensor, side: int, generator: torch.Generator, searched: Tensor
    ) -> Tensor:
        """Changes [n, C, H, W], those within two windows merged into the first window.

        The n points are those that are ``searched``, bool, among all that random numbers are drawn for.
        """
        c, h, w = delta.shape[1:]
        room = torch.tensor([h - side, w - side] * 2, device="cpu")
        places = torch.rand(4, generator=generator, device="cpu") * room
        top, start, other_top, other_start = places.long().tolist()
        window = (..., slice(top, top + side), slice(start, start + side))
        other = (..., slice(other_top, other_top + side), slice(other_start, other_start + side))
        inside = torch.zeros(h, w, dtype=delta.dtype, device=delta.device)
        inside[window[1:]] = 1
        inside[other[1:]] = 1
        image = _measure_length(norm, delta, (1, 2, 3))
        windows = _measure_length(norm, delta * inside, (2, 3))
        shape = self._draw_tile(norm, side, len(searched), generator)[searched]
        shape = shape + delta[window] / (1e-12 + _measure_length(norm, delta[window], (2, 3)))
        shape = shape / (1e-12 + _measure_length(norm, shape, (2, 3)))
        radius = torch.full_like(image, self.eps)
        if norm == "L2":
            size = ((radius**2 - image**2).clamp_min(0) / c + windows**2).sqrt()
        else:
            size = ((radius - image).clamp_min(0) / c + windows) * c
        delta = delta.clone()
        delta[other] = 0
        delta[window] = shape * size
        return delta

    def _draw_tile(self, norm: Norm, side: int, count: int, generator: torch.Generator) -> Tensor:
        """Tiles [n, C, side, side], turned or not, with a random sign for each point and channel."""
        pattern = build_tile(side, norm)
        if torch.rand(1, generator=generator, device="cpu") > 0.5:
            pattern = pattern.T
        signs = _take_signs(torch.rand(count, self.x.shape[1], 1, 1, generator=generator, device="cpu"))
        return (pattern * signs).to(self.x.device)

    def _fill_ball(self, norm: Norm, x: Tensor, delta: Tensor) -> Tensor:
        """The image x + delta in [0, 1], with the change scaled to fill the ball."""
        if norm == "L2":
            return (x + delta / (_measure_length(norm, delta, (1, 2, 3)) + 1e-12) * self.eps).clamp(0, 1)
        return x + delta + correct_to_l1_ball(x, delta, self.eps * (1 - 1e-6))


def find_image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The image (C, H, W) as which an input is searched; flat ones have sides as equal as possible."""
    if len(shape) == 3:
        return tuple(shape)
    size = math.prod(shape)
    height = next(side for side in range(math.isqrt(size), 0, -1) if size % side == 0)
    return 1, height, size // height


@lru_cache(maxsize=64)
def build_tile(side: int, norm: Norm) -> Tensor:
    """The square [side, side] of length 1: a positive half over a negative one, each falling off from its middle."""
    half = side // 2
    pattern = torch.cat([_build_hill(half, side, norm), -_build_hill(side - half, side, norm)])
    return pattern / _measure(norm, pattern)


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
    return hill / _measure(norm, hill)


def _measure(norm: Norm, pattern: Tensor) -> Tensor:
    return (pattern**2).sum().sqrt() if norm == "L2" else pattern.abs().sum()


def _measure_length(norm: Norm, delta: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The length over some axes, which stay with size 1."""
    if norm == "L2":
        return (delta**2).sum(dim=dims, keepdim=True).sqrt()
    return delta.abs().sum(dim=dims, keepdim=True)


def _take_signs(uniform: Tensor) -> Tensor:
    return (2 * uniform - 1).sign()


def _update_mean(before: float, now: float, *, at_least: float) -> float:
    return max(MEMORY * before + (1 - MEMORY) * now, at_least)

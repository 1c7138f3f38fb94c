"""Shared parts of the square attack's searches: the points, their margins, and how many proposals are tried at once."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from .batches import BatchedPasses, Streams

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
# Expected number of accepted proposals per speculative batch. About half of it is the share of queries that are wasted.
WASTE = 0.2
# Decay of the running mean of a share.
MEMORY = 0.9
# Numbers in the images that are made of proposals at once.
LARGEST_LOOK = 2**21


@dataclass(frozen=True)
class SquarePoints:
    """The points of one search.

    Which points are left and which proposals they try is decided on the CPU: a GPU is waited for once a pass, when the
    margins are read.

    Attributes:
        passes: of the network.
        shape: of an image, as the network takes it.
        x: the images [n, C, H, W].
        y: the labels [n].
        index: the place of each point in the streams [n], ascending, on the CPU.
        searched: bool [n], on the CPU; the other points only count where random numbers are drawn.
        streams: the random numbers.
        eps: the radius.
        queries: proposals for each point.
        p_init: the share of the image in the first square.
    """

    passes: BatchedPasses
    shape: tuple[int, ...]
    x: Tensor
    y: Tensor
    index: Tensor
    searched: Tensor
    streams: Streams
    eps: float
    queries: int
    p_init: float

    @property
    def at_once(self) -> int:
        """Proposals that are made together; those of large images in no more memory than a pass takes."""
        return LARGEST_LOOK // self.x[0].numel()

    def send(self, values: Tensor) -> Tensor:
        """Copy these numbers to the images' device, without waiting for it."""
        return values.to(self.x.device, non_blocking=True)

    def compute_side(self, query: int, smallest: int) -> int:
        """The side of the square of a query, even where the image is narrower."""
        height, width = self.x.shape[2:]
        share = self.p_init / 2 ** bisect_left(HALVINGS, query)
        return max(round(math.sqrt(share * height * width)), smallest)

    def compute_margin(self, images: Tensor, point: Tensor) -> Tensor:
        """z_y - max_{i != y} z_i of images [m, ...] of some points [m], given on the device."""
        y = self.y[point]
        logits = self.passes.logits(images.reshape(-1, *self.shape)).float()
        others = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
        margin = logits.gather(1, y[:, None])[:, 0] - others
        # Logits with NaN belong to no class.
        return torch.where(logits.isnan().any(dim=1), -torch.inf, margin)

    def compute_first_margin(self, best: Tensor) -> Tensor:
        """The margin [n] of the first images, on the CPU; infinite for points that are not searched."""
        margin = torch.full((len(best),), torch.inf, device="cpu")
        rows = self.searched.nonzero().flatten()
        if len(rows):
            point = self.send(rows)
            margin[rows] = self.compute_margin(best[point], point).cpu()
        return margin


class Pace:
    """How many consecutive proposals of each point are tried at once; the first one that is accepted voids the others.

    Args:
        room: the most images in a pass.
    """

    def __init__(self, room: int) -> None:
        self.room, self.accepting = room, 1.0

    def choose_tries(self, points: int) -> int:
        """The number of proposals of each of so many points."""
        # Powers of two, so that passes have few different sizes.
        wanted: int = 2 ** max(round(math.log2(WASTE / self.accepting)), 0)
        return min(wanted, max(self.room // points, 1))

    def note(self, accepted: int, asked: int) -> None:
        """Learn from a pass how many proposals were accepted."""
        self.accepting = update_mean(self.accepting, accepted / max(asked, 1), at_least=0.002)


def take_signs(uniform: Tensor) -> Tensor:
    """Numbers in [0, 1) -> -1 below the middle, 1 above it."""
    return (2 * uniform - 1).sign()


def update_mean(before: float, now: float, *, at_least: float) -> float:
    """The running mean of a share."""
    return max(MEMORY * before + (1 - MEMORY) * now, at_least)

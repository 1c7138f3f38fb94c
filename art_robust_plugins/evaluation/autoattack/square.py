"""The square attack (Andriushchenko et al., ECCV 2020, arXiv 1912.00049): random search, without gradients.

From an image with random stripes (Linf) or tiles (L2, L1) on the sphere of radius eps, query k proposes to change one
square of side s_k at a random place, and the change is kept where it lowers the margin

    z_y - max_{i != y} z_i

Linf: the square moves by +-2 eps a channel and is clipped to the ball. L2, L1: the change within two windows is brought
together in one of them, in the shape of a fixed tile. s_k^2 is a share p of the image, p_init at first, halved after
10, 50, 200, 500, 1000, 2000, 4000, 6000 and 8000 queries.

Status: exact. The random numbers are the reference's, so a point's verdict is too. Each point goes through proposals at
its own pace: several consecutive ones are tried at once, and the first one that is accepted makes the others void. In
Linf, proposals that do not change an image, or that it has already rejected, cost no query. In L2 and L1 the proposals
depend on how many points are left: they are drawn for some queries ahead, and drawn again after a point is broken.

Ours: flat inputs are treated as images with sides as equal as possible, and any side may be smaller than five.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...choices import BATCH_SIZE
from ...threat import ThreatModel
from .batches import BatchedPasses, Streams, classify_clean
from .square_linf import LinfSearch
from .square_points import SquarePoints
from .square_windows import WindowSearch


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
        batch_size: int = BATCH_SIZE,
        physical_batch_size: int = BATCH_SIZE,
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
        # This compares classes, not margins: if logits tie, the first one's class counts.
        rows = classify_clean(self.passes, images, labels, spared)[1].nonzero().flatten()
        index = rows.cpu()
        searched = torch.ones_like(index, dtype=torch.bool) if spared is None else ~spared.cpu()[index]
        if not bool(self.passes.merge(~searched).all()):
            shape = tuple(x.shape[1:])
            points = SquarePoints(
                self.passes,
                shape,
                images[rows].reshape(len(rows), *find_image_shape(shape)),
                labels[rows],
                index,
                searched,
                Streams(len(x), self.batch_size, self.seed),
                self.threat.eps,
                self.queries,
                self.p_init,
            )
            norm = self.threat.norm
            search = LinfSearch(points) if norm == "Linf" else WindowSearch(points, norm)
            broken, best = search.run()
            some = broken.nonzero().flatten()
            found[rows[points.send(some)]] = best[points.send(some)].view(-1, *shape)
        return found


def find_image_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """The image (C, H, W) as which an input is searched; flat ones have sides as equal as possible."""
    if len(shape) == 3:
        return tuple(shape)
    size = math.prod(shape)
    height = next(side for side in range(math.isqrt(size), 0, -1) if size % side == 0)
    return 1, height, size // height

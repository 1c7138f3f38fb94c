"""Projections within the box [0, 1] that the attacks use: onto an L1 ball, and onto a hyperplane.

Both are exact: their solution depends on one number (a threshold, or a multiplier) in a piecewise linear way. The
kinks are sorted, the piece that holds the solution is found, and there the equation is linear.
"""

from __future__ import annotations

import torch
from torch import Tensor


def l1_ball_correction(x: Tensor, delta: Tensor, radius: float) -> Tensor:
    """What to add to ``delta`` so that x + delta is the nearest point of the L1 ball around x and of [0, 1].

    Algorithm of Croce and Hein (arXiv 2103.01208, section 3): with m = |delta| and r the room of each coordinate up to
    the box, the size of the solution is clamp(m - t, 0, r), where the threshold t >= 0 is the smallest for which the
    sizes sum to at most ``radius``.

    Args:
        x: centres [N, ...] in [0, 1].
        delta: changes like x.
        radius: of the ball.
    """
    centre, change = x.flatten(1), delta.flatten(1)
    size = change.abs()
    # Reductions, not sizes: 0 or negative. The box alone asks for `least`, and a coordinate at 0 allows no more.
    least = torch.minimum(1 - centre - change, centre + change).clamp_max(0)
    most = -size
    kinks, order = torch.cat([-least, size], dim=1).sort(dim=1)
    following = torch.cat([kinks[:, 1:], torch.zeros_like(kinks[:, :1])], dim=1)
    # How many coordinates shrink just after each kink.
    slope = (2 * (order < least.shape[1]).to(size.dtype) - 1).cumsum(dim=1)
    box = -least.sum(dim=1, keepdim=True)
    missing = radius - size.sum(dim=1, keepdim=True)
    # Reduced in total at the kink that follows.
    total = box + ((following - kinks) * slope).cumsum(dim=1)
    piece = ((total + missing < 0).sum(dim=1, keepdim=True) - 1).clamp_min(0)
    at = piece.clamp_max(kinks.shape[1] - 2)
    threshold = (-total.gather(1, at) - missing) / slope.gather(1, at + 1) + following.gather(1, at)
    reduced = -torch.minimum(torch.maximum(-least, threshold), -most)
    reduction = torch.where(box + missing < 0, reduced, least)
    return (change.sign() * reduction).view_as(delta)

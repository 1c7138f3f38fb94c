"""Projections within the box [0, 1] that the attacks use: onto an L1 ball, and onto a hyperplane.

Both are exact: their solution depends on one number (a threshold, or a multiplier) in a piecewise linear way. The
kinks are sorted, the piece that holds the solution is found, and there the equation is linear.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ...threat import Norm


def correct_to_l1_ball(x: Tensor, delta: Tensor, radius: float) -> Tensor:
    """The correction of ``delta`` with which x + delta is the nearest point of the L1 ball around x and of [0, 1].

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
    # Reduced in total at the kink that follows, and at each kink itself.
    total = box + ((following - kinks) * slope).cumsum(dim=1)
    so_far = torch.cat([box, total[:, :-1]], dim=1)
    piece = (total + missing < 0).sum(dim=1, keepdim=True).clamp_max(kinks.shape[1] - 1)
    threshold = (-so_far.gather(1, piece) - missing) / slope.gather(1, piece) + kinks.gather(1, piece)
    reduced = -torch.minimum(torch.maximum(-least, threshold), -most)
    reduction = torch.where(box + missing < 0, reduced, least)
    return (change.sign() * reduction).view_as(delta)


def project_onto_hyperplane(x: Tensor, normal: Tensor, offset: Tensor, norm: Norm) -> Tensor:
    """The smallest change d in this norm with <normal, x + d> = offset and x + d in [0, 1].

    Where the box does not reach the hyperplane: the change to the corner of the box that is next to it.

    Args:
        x: points [N, F] in [0, 1].
        normal: of each hyperplane, [N, F].
        offset: of each, [N].
        norm: of the change.
    """
    # The signs are chosen so that the product must decrease: each coordinate has room in one direction.
    excess = (normal * x).sum(dim=1, keepdim=True) - offset[:, None]
    side = 2 * (excess >= 0).to(x.dtype) - 1
    return _PROJECTIONS[norm](x, normal * side, excess * side)


def _project_linf(x: Tensor, w: Tensor, excess: Tensor) -> Tensor:
    """All coordinates move by the same amount, or as far as they can."""
    upward = (w < 0).to(x.dtype)
    farthest = (upward - x) * (w != 0)
    room = upward - x * (2 * upward - 1)
    ordered, order = room.sort(dim=1, descending=True)
    weights = w.abs().gather(1, order)
    # The product changes by `reached - slope * amount` if coordinates with more room move by `amount`, others fully.
    full = (w * farthest).sum(dim=1, keepdim=True)
    slope = weights.cumsum(dim=1)
    reached = full + (weights * farthest.abs().gather(1, order)).cumsum(dim=1)
    least = reached - slope * ordered
    piece = ((-excess > least).sum(dim=1, keepdim=True) - 1).clamp_min(0)
    amount = ((-excess - reached.gather(1, piece)) / -slope.gather(1, piece)).clamp_min(0)
    moved = torch.minimum(torch.maximum(farthest, -amount), amount)
    return torch.where(-excess > full, moved, farthest) * (w != 0)


def _project_l2(x: Tensor, w: Tensor, excess: Tensor) -> Tensor:
    """Coordinate i moves by the multiplier times w_i, or as far as it can."""
    usable = w.abs() > _SMALL
    # The multiplier at which a coordinate stops.
    last = torch.where(usable, torch.maximum(x / w, (x - 1) / w), _NEVER).clamp_max(_NEVER)
    farthest = torch.where(usable, -last * w, 0)
    ordered, order = last.sort(dim=1)
    squares = (w**2).gather(1, order)
    total = squares.sum(dim=1, keepdim=True)
    slope = total - squares.cumsum(dim=1)
    finite = torch.where(ordered == _NEVER, 0, ordered)
    following = torch.cat([finite[:, 1:], torch.zeros_like(finite[:, :1])], dim=1)
    # What is left of the excess at each kink.
    first = excess - total * finite[:, :1]
    left = torch.cat([first, first - ((following - finite) * slope).cumsum(dim=1)[:, :-1]], dim=1)
    piece = ((left > 0).cumprod(dim=1).sum(dim=1, keepdim=True) - 1).clamp_min(0)
    steepness = slope.gather(1, piece)
    multiplier = torch.where(steepness == 0, 0, left.gather(1, piece) / steepness + finite.gather(1, piece))
    moved = torch.where(multiplier > last, farthest, -multiplier * w)
    moved = torch.where(first < 0, -excess / total * w, moved)
    unreachable = (farthest * w).sum(dim=1, keepdim=True) + excess > 0
    return torch.where(unreachable & (first >= 0), farthest, moved) * usable


def _project_l1(x: Tensor, w: Tensor, excess: Tensor) -> Tensor:
    """One coordinate after the other moves as far as it can, those of the largest weights first."""
    farthest = ((w < 0).to(x.dtype) - x) * (w != 0)
    order = (1 / w).abs().clamp_max(_NEVER).argsort(dim=1)
    gains = torch.minimum(-w * x, w * (1 - x)).gather(1, order)
    left = torch.cat([excess, gains], dim=1).cumsum(dim=1)
    last = ((left > 0).sum(dim=1, keepdim=True) - 1).clamp(0, w.shape[1] - 1)
    coordinate = order.gather(1, last)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(w.shape[1], device=w.device).expand_as(order))
    moved = farthest * (rank < last)
    moved = moved.scatter(1, coordinate, -left.gather(1, last) / w.gather(1, coordinate))
    return torch.where(left[:, -1:] < 0, moved, farthest) * (w.abs() > _SMALL)


# Smaller weights count as 0 in L2 and L1: a hyperplane that needs them is practically out of reach.
_SMALL, _NEVER = 1e-8, 1e12
_PROJECTIONS: dict[Norm, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "Linf": _project_linf,
    "L2": _project_l2,
    "L1": _project_l1,
}

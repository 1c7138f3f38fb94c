"""Projections within the box [0, 1] that the attacks use: onto an L1 ball, and onto a hyperplane.

Both are exact: their solution depends on one number (a threshold, or a multiplier) in a piecewise linear way. The piece
that holds the solution is found, by sorting the kinks or by Newton's method, and there the equation is linear.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

import torch
from torch import Tensor

from ...threat import Norm

# On a GPU, reading whether Newton's method is done synchronises with the host; further iterations change nothing.
ITERATIONS_BETWEEN_CHECKS = 4


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
    used = w != 0
    farthest = ((w < 0).to(x.dtype) - x) * used
    amount = _solve_piecewise(w.abs(), farthest.abs(), excess)
    moved = torch.minimum(torch.maximum(farthest, -amount), amount)
    # What the product loses if all coordinates move as far as they can.
    most = -(w * farthest).sum(dim=1, keepdim=True)
    return torch.where(excess < most, moved, farthest) * used


def _project_l2(x: Tensor, w: Tensor, excess: Tensor) -> Tensor:
    """Coordinate i moves by the multiplier times w_i, or as far as it can."""
    usable = w.abs() > _SMALL
    # The multiplier at which a coordinate stops.
    last = torch.where(usable, torch.maximum(x / w, (x - 1) / w), _NEVER).clamp_max(_NEVER)
    farthest = torch.where(usable, -last * w, 0)
    multiplier = _solve_piecewise(torch.where(usable, w**2, 0), last, excess)
    moved = torch.where(multiplier < last, -multiplier * w, farthest)
    unreachable = (farthest * w).sum(dim=1, keepdim=True) + excess > 0
    return torch.where(unreachable, farthest, moved) * usable


def _solve_piecewise(slopes: Tensor, kinks: Tensor, total: Tensor) -> Tensor:
    """The t >= 0 [N, 1] with sum_i slopes_i min(t, kinks_i) = total, for slopes and kinks [N, F] that are not negative.

    Newton from t = 0: the sum is concave and increasing, so that each step lands on the solution or before it, and the
    coordinates beyond their kinks only become more. When a step adds none, the piece is found, and t solves its linear
    equation. Where the total is out of reach, t is at the last kink that matters, or beyond.
    """
    t = torch.zeros_like(total)
    reached = torch.zeros_like(total)
    steepness = slopes.sum(dim=1, keepdim=True)
    passed = torch.full_like(total, -1)
    between = ITERATIONS_BETWEEN_CHECKS if total.device.type == "cuda" else 1
    for iteration in count(1):
        step = (total - reached) / steepness
        # A step back is rounding.
        t = torch.where(steepness > 0, torch.maximum(step, t), t)
        beyond = kinks <= t
        now = beyond.sum(dim=1, keepdim=True)
        if iteration % between == 0 and bool((now <= passed).all()):
            break
        passed = now
        reached = (slopes * kinks * beyond).sum(dim=1, keepdim=True)
        steepness = (slopes * ~beyond).sum(dim=1, keepdim=True)
    return t


def _project_l1(x: Tensor, w: Tensor, excess: Tensor) -> Tensor:
    """One coordinate after the other moves as far as it can, those of the largest weights first."""
    farthest = ((w < 0).to(x.dtype) - x) * (w != 0)
    rank = (1 / w).abs().clamp_max(_NEVER)
    gains = torch.minimum(-w * x, w * (1 - x))
    moved = torch.empty_like(x)
    # A GPU sorts fast, and would have to be waited for in each turn.
    few = w.shape[1] >= 8 * _FEW and w.device.type != "cuda"
    rows, most = torch.arange(len(x), device=x.device), _FEW if few else w.shape[1]
    while len(rows):
        ordered, order = _find_smallest(rank[rows], most)
        left = torch.cat([excess[rows], gains[rows].gather(1, order)], dim=1).cumsum(dim=1)
        last = ((left > 0).sum(dim=1, keepdim=True) - 1).clamp(0, most - 1)
        coordinate = order.gather(1, last)
        before = torch.arange(most, device=x.device) < last
        change = torch.zeros_like(x[rows]).scatter_(1, order, farthest[rows].gather(1, order) * before)
        change.scatter_(1, coordinate, -left.gather(1, last) / w[rows].gather(1, coordinate))
        change = torch.where(left[:, -1:] < 0, change, farthest[rows])
        # Of coordinates with the last one's weight, others may belong before it.
        complete = (left[:, -1] < 0) & (ordered.gather(1, last) < ordered[:, -1:])[:, 0]
        if most == w.shape[1]:
            complete = torch.ones_like(complete)
        moved[rows[complete]] = change[complete]
        rows, most = rows[~complete], min(8 * most, w.shape[1])
    return moved * (w.abs() > _SMALL)


def _find_smallest(values: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The smallest values of each row in ascending order, equal ones in the order of their indices, and the indices."""
    if number == values.shape[1]:
        return values.sort(dim=1, stable=True)
    order = values.topk(number, dim=1, largest=False).indices.sort(dim=1).values
    ordered, again = values.gather(1, order).sort(dim=1, stable=True)
    return ordered, order.gather(1, again)


# Smaller weights count as 0 in L2 and L1: a hyperplane that needs them is practically out of reach.
_SMALL, _NEVER = 1e-8, 1e12
# So many coordinates are looked at first in L1; most changes need fewer.
_FEW = 48
_PROJECTIONS: dict[Norm, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "Linf": _project_linf,
    "L2": _project_l2,
    "L1": _project_l1,
}

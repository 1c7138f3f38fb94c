"""One ascent of Auto-PGD: the points' positions, their moves, and the changes at a checkpoint, by norm."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from ...threat import Norm
from .batches import widen
from .projections import correct_to_l1_ball

Part = TypeVar("Part", bound="PointRows")


class PointRows:
    """An object whose tensors have one row for each point."""

    def select(self: Part, rows: Tensor) -> Part:
        """Only these rows, given as bool [n] or as indices."""
        smaller = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(smaller, name, value[rows])
            elif isinstance(value, PointRows):
                setattr(smaller, name, value.select(rows))
        return smaller


@dataclass
class RunRows(PointRows):
    """Runs of points: image, label, target class, logical batch, and the run's number within its batch."""

    x: Tensor
    y: Tensor
    target: Tensor
    batch: Tensor
    turn: Tensor


@dataclass
class PlannedRows(PointRows):
    """Runs as in `RunRows`, with the index of each point in place of its image."""

    index: Tensor
    y: Tensor
    target: Tensor
    batch: Tensor
    turn: Tensor

    def load(self, x: Tensor) -> RunRows:
        """The runs with their images, which are among these."""
        return RunRows(x[self.index], self.y, self.target, self.batch, self.turn)


class Ascent(PointRows):
    """The positions of the points in one ascent; a subclass for each norm.

    Args:
        rows: the points.
        start: where they begin [n, ...].
        loss: their loss there [n].
        gradient: its gradient.
        radius: of the ball.
        steps: iterations of this run.
        rho: the share of steps in which the loss must grow.
        whole: the starts may differ from x in all coordinates.
    """

    first_step: ClassVar[float] = 2.0

    def __init__(
        self,
        rows: RunRows,
        start: Tensor,
        loss: Tensor,
        gradient: Tensor,
        *,
        radius: float,
        steps: int,
        rho: float,
        whole: bool,
    ) -> None:
        self.rows, self.radius = rows, radius
        self.at = self.before = self.best = self.found = start
        self.gradient = self.best_gradient = gradient
        self.best_loss = loss
        self.done = torch.zeros_like(loss, dtype=torch.bool)
        self.step = widen(torch.full_like(loss, self.first_step * radius), start)
        self.until_check = 0

    @staticmethod
    def normalise(delta: Tensor) -> Tensor:
        """Scale changes to length 1 in this norm."""
        raise NotImplementedError

    def note(self, wrong: Tensor, *, again: bool) -> None:
        """Keep the first misclassified image of each row, or with ``again`` the last one."""
        wrong = wrong & self.at.flatten(1).isfinite().all(dim=1)
        self.found = torch.where(widen(wrong if again else wrong & ~self.done, self.at), self.at, self.found)
        self.done = self.done | wrong

    def move(self, *, first: bool) -> None:
        """The next iterate."""
        raise NotImplementedError

    def learn(self, loss: Tensor, gradient: Tensor) -> None:
        """Record the loss and the gradient at the new iterate; call `check` at a checkpoint."""
        self.gradient = gradient
        better = loss > self.best_loss
        self.best = torch.where(widen(better, self.at), self.at, self.best)
        self.best_gradient = torch.where(widen(better, self.at), gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.until_check -= 1
        if self.until_check == 0:
            self.check()

    def check(self) -> None:
        """Adapt the ascent at a checkpoint."""
        raise NotImplementedError

    def _return_to_best(self, rows: Tensor) -> None:
        self.at = torch.where(widen(rows, self.at), self.best, self.at)
        self.gradient = torch.where(widen(rows, self.at), self.best_gradient, self.gradient)


class HalvingAscent(Ascent):
    """Linf and L2: the step size is halved where the loss does not grow enough."""

    def __init__(
        self, rows: RunRows, start: Tensor, loss: Tensor, gradient: Tensor, *, steps: int, rho: float, **others: Any
    ) -> None:
        super().__init__(rows, start, loss, gradient, steps=steps, rho=rho, **others)
        self.rho = rho
        self.window, self.shortest, self.shortening = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
        self.until_check = self.window
        # The reference compares the first loss with 0 rather than with the loss at the start.
        self.rises = self.last_loss = torch.zeros_like(loss)
        self.checked_loss = loss
        self.halved = torch.ones_like(loss, dtype=torch.bool)

    def move(self, *, first: bool) -> None:
        ahead = self.project(self.at + self.step * self.direction())
        momentum = 0.0 if first else 0.25
        moved = self.at + (ahead - self.at) * (1 - momentum) + (self.at - self.before) * momentum
        self.before, self.at = self.at, self.project(moved)

    def direction(self) -> Tensor:
        """The direction of ascent."""
        return self.normalise(self.gradient)

    def project(self, z: Tensor) -> Tensor:
        """Project into the ball and the range."""
        raise NotImplementedError

    def learn(self, loss: Tensor, gradient: Tensor) -> None:
        self.rises = self.rises + (loss > self.last_loss)
        self.last_loss = loss
        super().learn(loss, gradient)

    def check(self) -> None:
        stuck = ~self.halved & (self.checked_loss >= self.best_loss)
        halve = (self.rises <= self.window * self.rho) | stuck
        self.halved, self.checked_loss = halve, self.best_loss
        self.step = torch.where(widen(halve, self.step), self.step / 2, self.step)
        self._return_to_best(halve)
        self.window = self.until_check = max(self.window - self.shortening, self.shortest)
        self.rises = torch.zeros_like(self.rises)


class LinfAscent(HalvingAscent):
    """Linf: steps along the sign of the gradient."""

    @staticmethod
    def normalise(delta: Tensor) -> Tensor:
        return delta / (widen(delta.flatten(1).abs().amax(dim=1), delta) + 1e-12)

    def direction(self) -> Tensor:
        return self.gradient.sign()

    def project(self, z: Tensor) -> Tensor:
        near = torch.minimum(torch.maximum(z, self.rows.x - self.radius), self.rows.x + self.radius)
        return near.clamp(0, 1)


class L2Ascent(HalvingAscent):
    """L2: steps along the gradient, normalised."""

    @staticmethod
    def normalise(delta: Tensor) -> Tensor:
        return delta / (_measure_length(delta) + 1e-12)

    def project(self, z: Tensor) -> Tensor:
        delta = z - self.rows.x
        return (self.rows.x + self.normalise(delta) * _measure_length(delta).clamp_max(self.radius)).clamp(0, 1)


class L1Ascent(Ascent):
    """L1: steps along the largest coordinates of the gradient, whose share follows the best change's sparsity."""

    first_step: ClassVar[float] = 1.0

    def __init__(
        self, rows: RunRows, start: Tensor, loss: Tensor, gradient: Tensor, *, steps: int, whole: bool, **others: Any
    ) -> None:
        super().__init__(rows, start, loss, gradient, steps=steps, whole=whole, **others)
        self.between_checks = self.until_check = max(int(0.04 * steps), 1)
        size = start[0].numel()
        self.changed = torch.full_like(loss, size) if whole else _count_changed(start - rows.x)
        self.share = torch.full_like(loss, 0.2) if whole else self.changed / size / 1.5

    def move(self, *, first: bool) -> None:
        size = self.at[0].numel()
        magnitude = self.gradient.abs()
        rank = ((1 - self.share) * size).clamp(0, size - 1).long()
        smallest = magnitude.flatten(1).sort(dim=1).values.gather(1, rank[:, None])
        sparse = (self.gradient * (magnitude >= widen(smallest[:, 0], self.at))).sign()
        ahead = self.at + self.step * sparse / (widen(sparse.abs().flatten(1).sum(dim=1), self.at) + 1e-10)
        delta = ahead - self.rows.x
        self.before = self.at
        self.at = self.rows.x + delta + correct_to_l1_ball(self.rows.x, delta, self.radius)

    def check(self) -> None:
        changed = _count_changed(self.best - self.rows.x)
        sparser = changed / self.changed < 0.95
        self.share, self.changed = changed / self.at[0].numel() / 1.5, changed
        largest = self.first_step * self.radius
        step = torch.where(widen(sparser, self.step), largest, self.step / 1.5)
        self.step = step.clamp(largest / 10, largest)
        self._return_to_best(sparser)
        self.until_check = self.between_checks


ASCENTS: dict[Norm, type[Ascent]] = {"Linf": LinfAscent, "L2": L2Ascent, "L1": L1Ascent}


def _measure_length(delta: Tensor) -> Tensor:
    return widen((delta**2).flatten(1).sum(dim=1).sqrt(), delta)


def _count_changed(delta: Tensor) -> Tensor:
    """The number of coordinates that are not 0."""
    return (delta != 0).flatten(1).sum(dim=1).to(delta.dtype)

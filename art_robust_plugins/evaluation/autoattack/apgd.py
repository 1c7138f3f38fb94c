"""Auto-PGD (Croce and Hein, ICML 2020, arXiv 2003.01690), and its version for L1 (Croce and Hein, arXiv 2103.01208).

Ascent on a loss L within the ball of radius eps around x and [0, 1], with momentum and a step size s of its own:

    z = P(x_k + s d_k)        x_{k+1} = P(x_k + 3/4 (z - x_k) + 1/4 (x_k - x_{k-1}))

P brings a point into the ball and the range; d_k is the gradient's sign (Linf) or its direction (L2). At checkpoints s
is halved, and the ascent goes back to its best point, where L grew in at most 3/4 of the steps since the last one, or
where s was left as it was and the best loss has not grown. For L1, d_k is the sign of the largest coordinates of the
gradient and there is no momentum; their share follows the sparsity of the best change, and so does s.

    ce             cross-entropy
    dlr            -(z_y - max_{i != y} z_i) / (z_(1) - z_(3))
    dlr-targeted   -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2)       z_(1) >= z_(2) >= ... the sorted logits

Status: exact. The random numbers are the reference's, so a point's verdict is too. A point is done when it is
misclassified for the first time; the reference goes on with it. Runs towards several targets go together. With several
samples, for a randomised network, no point stops. (In L1 the reference draws on the GPU where it runs there; ours does
not, and equals it on a CPU.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...threat import Norm, ThreatModel
from .batches import Passes, Streams, misclassified, widened
from .projections import l1_ball_correction

Loss = Literal["ce", "dlr", "dlr-targeted"]

# A point of the L1 ball is found by ascent in larger balls first: (radius / eps, share of the iterations).
LARGER_RADII = ((3.0, 0.3), (2.0, 0.3), (1.0, 0.4))
# Rows are dropped when so many of them are done: a new batch size costs time as well.
DONE_SHARE = 0.1
# On a GPU, reading how many are done makes the host wait.
ITERATIONS_BETWEEN_COUNTS = 5


def cross_entropy(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The cross-entropy of each point."""
    return functional.cross_entropy(logits, y, reduction="none")


def dlr(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The difference of logits ratio: invariant to shifts and scales of the logits."""
    values, order = logits.sort(dim=1)
    other = torch.where(order[:, -1] == y, values[:, -2], values[:, -1])
    return -(_at(logits, y) - other) / (values[:, -1] - values[:, -3] + 1e-12)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """The same towards one class."""
    values = logits.sort(dim=1).values
    scale = values[:, -1] - 0.5 * (values[:, -3] + values[:, -4]) + 1e-12
    return -(_at(logits, y) - _at(logits, target)) / scale


LOSSES: dict[Loss, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "dlr-targeted": dlr_targeted,
}


class APGD:
    """Auto-PGD on any number of points, which may be several logical batches.

    Args:
        model: images in [0, 1] -> logits.
        threat: in units of [0, 1].
        loss: see above.
        steps: iterations of each run.
        restarts: runs from other random starts, for the points that are left.
        targets: with "dlr-targeted", how many classes: the most probable ones of the clean image that follow the first.
        samples: gradients that are averaged in each iteration, for a randomised network.
        rho: the share of steps in which the loss must grow.
        larger_radii: ascent in balls of 3 and 2 eps first (L1).
        seed: of each logical batch.
        batch_size: of a logical batch.
        physical_batch_size: the most images in a pass.
        precision: look for points in this type of autocast; each one found is confirmed without it.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
        >>> attack = APGD(network, ThreatModel("Linf", 0.1), loss="dlr-targeted", targets=3)
        >>> x, y = torch.rand(5, 3, 2, 2), torch.zeros(5, dtype=torch.long)
        >>> bool((attack(x, y) - x).abs().max() <= 0.1 + 1e-6)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        threat: ThreatModel,
        *,
        loss: Loss = "ce",
        steps: int = 100,
        restarts: int = 1,
        targets: int = 9,
        samples: int = 1,
        rho: float = 0.75,
        larger_radii: bool = False,
        seed: int = 0,
        batch_size: int = 250,
        physical_batch_size: int = 250,
        precision: torch.dtype | None = None,
    ) -> None:
        self.passes = Passes(model, physical_batch_size, precision)
        self.threat, self.loss = threat, loss
        self.steps, self.restarts, self.samples, self.rho = steps, restarts, samples, rho
        self.targets = targets if loss == "dlr-targeted" else None
        self.larger_radii = larger_radii
        self.seed, self.batch_size = seed, batch_size

    @property
    def parameters(self) -> dict[str, Any]:
        """What decides the result, for a report."""
        names = ["loss", "steps", "restarts", "targets", "samples", "rho", "larger_radii"]
        values = {name: getattr(self, name) for name in names}
        precision = {} if self.passes.precision is None else {"precision": str(self.passes.precision)}
        return {name: value for name, value in values.items() if value is not None} | precision

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Images [N, ...] in [0, 1] with labels [N] -> misclassified images in the ball; x where none was found."""
        x, y = x.detach().float(), y.long()
        streams = Streams(len(x), self.batch_size, self.seed)
        clean = self.passes.logits(x)
        ranking = clean.sort(dim=1).indices
        # Of a randomised network one pass does not say which points are classified correctly.
        left, found = ~misclassified(clean, y) | (self.samples > 1), x.clone()
        # The most probable class is the point's own.
        ranks = [1] if self.targets is None else range(2, self.targets + 2)
        turns = _Turns(streams, [rank for rank in ranks for _ in range(self.restarts)])
        while plan := turns.planned(left.cpu(), self.passes.room(x), partial(self._noise, shape=x.shape[1:])):
            index = torch.cat([part.points for part in plan]).to(x.device)
            counts = torch.tensor([len(part.points) for part in plan], device=x.device)
            batch, turn, rank = (
                torch.tensor([getattr(part, name) for part in plan], device=x.device).repeat_interleave(counts)
                for name in ("batch", "turn", "rank")
            )
            target = ranking[index].gather(1, ranking.shape[1] - rank[:, None])[:, 0]
            rows = _Rows(x[index], y[index], target, batch, turn)
            broken, at = self._run(rows, torch.cat([part.noise for part in plan]).to(x.device))
            valid = broken & turns.taken(plan, broken.cpu()).to(x.device)
            found[index[valid]] = at[valid]
            left[index[valid]] = False
        return found

    def _noise(self, count: int, generator: torch.Generator, shape: torch.Size) -> Tensor:
        """What a run of so many points draws: the noise of its starts [count, *shape]."""
        kind = torch.rand if self.threat.norm == "Linf" else torch.randn
        noise = kind((count, *shape), generator=generator, device="cpu")
        if self.larger_radii:
            # The reference draws a start for each radius as well, and does not use it.
            for _ in LARGER_RADII:
                kind((count, *shape), generator=generator, device="cpu")
        return noise

    def _run(self, rows: _Rows, noise: Tensor) -> tuple[Tensor, Tensor]:
        """One run of each row from its random start: which rows were broken, and where."""
        norm, eps, x = self.threat.norm, self.threat.eps, rows.x
        if not self.larger_radii:
            if norm == "L1":
                start = x + noise + l1_ball_correction(x, noise, eps)
            else:
                start = x + eps * _RUNS[norm].normalised(2 * noise - 1 if norm == "Linf" else noise)
            return self._ascend(rows, start, eps, self.steps, whole=True)[1:]
        best = x + noise
        best = best + l1_ball_correction(x, best - x, LARGER_RADII[0][0] * eps)
        planned = [math.ceil(share * self.steps) for _, share in LARGER_RADII[:-1]]
        for (factor, _), steps in zip(LARGER_RADII, [*planned, self.steps - sum(planned)], strict=True):
            start = best + l1_ball_correction(x, best - x, factor * eps)
            best, broken, at = self._ascend(rows, start, factor * eps, steps, whole=False, stop=factor == 1)
        return broken, at

    def _ascend(
        self, rows: _Rows, start: Tensor, radius: float, steps: int, *, whole: bool, stop: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ascent from ``start``: the points of largest loss, and as `_run`. With ``stop``, rows that are done leave."""
        start = start.clamp(0, 1)
        logits, loss, gradient = self._gradient(start, rows)
        kind = _RUNS[self.threat.norm]
        run = kind(rows, start, loss, gradient, radius=radius, steps=steps, rho=self.rho, whole=whole)
        # Nor when a point is done: like the reference, keep the last image that was misclassified.
        again = self.samples > 1
        stop = stop and not again
        run.note(misclassified(logits, rows.y), again=again)
        best, broken, found = start.clone(), torch.zeros_like(run.done), start.clone()
        place = torch.arange(len(start), device=start.device)
        between = ITERATIONS_BETWEEN_COUNTS if start.device.type == "cuda" else 1
        # The first turn of each logical batch that broke a point: what was planned after it is void.
        last = torch.full((int(rows.batch.max()) + 1,), int(rows.turn.max()), device=start.device)

        def write() -> None:
            best[place], broken[place], found[place] = run.best, run.done, run.found

        for step in range(steps):
            if stop and step % between == 0:
                run = self._confirmed(run)
                last.scatter_reduce_(0, run.rows.batch[run.done], run.rows.turn[run.done], "amin")
                over = run.done | (run.rows.turn > last[run.rows.batch])
                count = int(over.sum())
                if count >= max(DONE_SHARE * len(over), 1):
                    write()
                    if count == len(over):
                        break
                    place, run = place[~over], run.kept(~over)
            run.move(first=step == 0)
            logits, loss, gradient = self._gradient(run.at, run.rows)
            run.note(misclassified(logits, run.rows.y), again=again)
            run.learn(loss, gradient)
        run = self._confirmed(run)
        write()
        return best, broken, found

    def _gradient(self, at: Tensor, rows: _Rows) -> tuple[Tensor, Tensor, Tensor]:
        def objective(logits: Tensor, part: slice) -> Tensor:
            return LOSSES[self.loss](logits, rows.y[part], rows.target[part])

        logits, loss, gradient = self.passes.gradient(at, objective)
        for _ in range(self.samples - 1):
            logits, loss, more = self.passes.gradient(at, objective)
            gradient = gradient + more
        return logits, loss, gradient if self.samples == 1 else gradient / self.samples

    def _confirmed(self, run: _Run) -> _Run:
        """With a search in low precision: rows whose image is classified correctly without it are not done."""
        if self.passes.precision is not None:
            found = run.done.nonzero().flatten()
            if len(found):
                run.done[found] = misclassified(self.passes.logits(run.found[found]), run.rows.y[found])
        return run


class _Plan(NamedTuple):
    """A run of a logical batch: its target's rank, its points and their noise, and its stream's state after it."""

    batch: int
    turn: int
    rank: int
    points: Tensor
    noise: Tensor
    state: Tensor


class _Turns:
    """The runs of each logical batch, one after the other, as far as random numbers go.

    What a run draws depends on how many points those before it have left. Several that follow each other are tried at
    once, as if none of them broke a point: one first, and more while that holds. If one does break a point, those after
    it are void, and the stream goes back to where that one left it.
    """

    def __init__(self, streams: Streams, ranks: list[int]) -> None:
        self.streams, self.ranks = streams, ranks
        self.next, self.ahead = ([value] * len(streams.generators) for value in (0, 1))

    def planned(self, left: Tensor, room: int, noise: Callable[[int, torch.Generator], Tensor]) -> list[_Plan]:
        """The next runs, for the points that are left [N], which fill about ``room`` rows."""
        plan = []
        most = max(room // max(int(left.sum()), 1), 1)
        for batch, generator in enumerate(self.streams.generators):
            points = (left & (self.streams.batch == batch)).nonzero().flatten()
            if len(points):
                first = self.next[batch]
                for turn in range(first, min(first + min(self.ahead[batch], most), len(self.ranks))):
                    drawn = noise(len(points), generator)
                    plan.append(_Plan(batch, turn, self.ranks[turn], points, drawn, generator.get_state()))
        return plan

    def taken(self, plan: list[_Plan], broken: Tensor) -> Tensor:
        """Which rows of a plan count, bool [n], given which were broken."""
        parts, void = [], set()
        for part, hits in zip(plan, torch.split(broken, [len(part.points) for part in plan]), strict=True):
            valid = part.batch not in void
            parts.append(torch.full_like(hits, valid))
            if valid:
                self.next[part.batch] = part.turn + 1
                self.ahead[part.batch] = 2 * self.ahead[part.batch]
                if bool(hits.any()):
                    self.ahead[part.batch] = 1
                    self.streams.generators[part.batch].set_state(part.state)
                    void.add(part.batch)
        return torch.cat(parts)


Part = TypeVar("Part", bound="_PerPoint")


class _PerPoint:
    """An object whose tensors have one row for each point."""

    def kept(self: Part, rows: Tensor) -> Part:
        """Only these rows, given as bool [n]."""
        smaller = copy(self)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(smaller, name, value[rows])
            elif isinstance(value, _PerPoint):
                setattr(smaller, name, value.kept(rows))
        return smaller


@dataclass
class _Rows(_PerPoint):
    """Runs of points: image, label, target class, logical batch, and which of its batch's runs."""

    x: Tensor
    y: Tensor
    target: Tensor
    batch: Tensor
    turn: Tensor


class _Run(_PerPoint):
    """Where each point of one ascent is. The norms are its subclasses.

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
        rows: _Rows,
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
        self.step = widened(torch.full_like(loss, self.first_step * radius), start)
        self.until_check = 0

    @staticmethod
    def normalised(delta: Tensor) -> Tensor:
        """Changes of length 1 in this norm."""
        raise NotImplementedError

    def note(self, wrong: Tensor, *, again: bool) -> None:
        """Keep the first misclassified image of each row, or with ``again`` the last one."""
        wrong = wrong & self.at.flatten(1).isfinite().all(dim=1)
        self.found = torch.where(widened(wrong if again else wrong & ~self.done, self.at), self.at, self.found)
        self.done = self.done | wrong

    def move(self, *, first: bool) -> None:
        """The next iterate."""
        raise NotImplementedError

    def learn(self, loss: Tensor, gradient: Tensor) -> None:
        """Take the loss and the gradient at the new iterate; at a checkpoint, change what the norm changes."""
        self.gradient = gradient
        better = loss > self.best_loss
        self.best = torch.where(widened(better, self.at), self.at, self.best)
        self.best_gradient = torch.where(widened(better, self.at), gradient, self.best_gradient)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.until_check -= 1
        if self.until_check == 0:
            self.check()

    def check(self) -> None:
        """What happens at a checkpoint."""
        raise NotImplementedError

    def _return_to_best(self, rows: Tensor) -> None:
        self.at = torch.where(widened(rows, self.at), self.best, self.at)
        self.gradient = torch.where(widened(rows, self.at), self.best_gradient, self.gradient)


class _Halving(_Run):
    """Linf and L2: the step size is halved where the loss does not grow enough."""

    def __init__(
        self, rows: _Rows, start: Tensor, loss: Tensor, gradient: Tensor, *, steps: int, rho: float, **others: Any
    ) -> None:
        super().__init__(rows, start, loss, gradient, steps=steps, rho=rho, **others)
        self.rho = rho
        self.window, self.shortest, self.shortening = (max(int(share * steps), 1) for share in (0.22, 0.06, 0.03))
        self.until_check = self.window
        # The reference compares the first loss of all with 0, whatever it was at the start.
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
        return self.normalised(self.gradient)

    def project(self, z: Tensor) -> Tensor:
        """Into the ball and the range."""
        raise NotImplementedError

    def learn(self, loss: Tensor, gradient: Tensor) -> None:
        self.rises = self.rises + (loss > self.last_loss)
        self.last_loss = loss
        super().learn(loss, gradient)

    def check(self) -> None:
        stuck = ~self.halved & (self.checked_loss >= self.best_loss)
        halve = (self.rises <= self.window * self.rho) | stuck
        self.halved, self.checked_loss = halve, self.best_loss
        self.step = torch.where(widened(halve, self.step), self.step / 2, self.step)
        self._return_to_best(halve)
        self.window = self.until_check = max(self.window - self.shortening, self.shortest)
        self.rises = torch.zeros_like(self.rises)


class _Linf(_Halving):
    @staticmethod
    def normalised(delta: Tensor) -> Tensor:
        return delta / (widened(delta.flatten(1).abs().amax(dim=1), delta) + 1e-12)

    def direction(self) -> Tensor:
        return self.gradient.sign()

    def project(self, z: Tensor) -> Tensor:
        near = torch.minimum(torch.maximum(z, self.rows.x - self.radius), self.rows.x + self.radius)
        return near.clamp(0, 1)


class _L2(_Halving):
    @staticmethod
    def normalised(delta: Tensor) -> Tensor:
        return delta / (_length(delta) + 1e-12)

    def project(self, z: Tensor) -> Tensor:
        delta = z - self.rows.x
        return (self.rows.x + self.normalised(delta) * _length(delta).clamp_max(self.radius)).clamp(0, 1)


class _L1(_Run):
    """L1: steps along the largest coordinates of the gradient, whose share follows the best change's sparsity."""

    first_step: ClassVar[float] = 1.0

    def __init__(
        self, rows: _Rows, start: Tensor, loss: Tensor, gradient: Tensor, *, steps: int, whole: bool, **others: Any
    ) -> None:
        super().__init__(rows, start, loss, gradient, steps=steps, whole=whole, **others)
        self.between_checks = self.until_check = max(int(0.04 * steps), 1)
        size = start[0].numel()
        self.changed = torch.full_like(loss, size) if whole else _count(start - rows.x)
        self.share = torch.full_like(loss, 0.2) if whole else self.changed / size / 1.5

    def move(self, *, first: bool) -> None:
        size = self.at[0].numel()
        magnitude = self.gradient.abs()
        rank = ((1 - self.share) * size).clamp(0, size - 1).long()
        smallest = magnitude.flatten(1).sort(dim=1).values.gather(1, rank[:, None])
        sparse = (self.gradient * (magnitude >= widened(smallest[:, 0], self.at))).sign()
        ahead = self.at + self.step * sparse / (widened(sparse.abs().flatten(1).sum(dim=1), self.at) + 1e-10)
        delta = ahead - self.rows.x
        self.before = self.at
        self.at = self.rows.x + delta + l1_ball_correction(self.rows.x, delta, self.radius)

    def check(self) -> None:
        changed = _count(self.best - self.rows.x)
        sparser = changed / self.changed < 0.95
        self.share, self.changed = changed / self.at[0].numel() / 1.5, changed
        largest = self.first_step * self.radius
        step = torch.where(widened(sparser, self.step), largest, self.step / 1.5)
        self.step = step.clamp(largest / 10, largest)
        self._return_to_best(sparser)
        self.until_check = self.between_checks


_RUNS: dict[Norm, type[_Run]] = {"Linf": _Linf, "L2": _L2, "L1": _L1}


def _at(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]


def _length(delta: Tensor) -> Tensor:
    return widened((delta**2).flatten(1).sum(dim=1).sqrt(), delta)


def _count(delta: Tensor) -> Tensor:
    """How many coordinates are not 0."""
    return (delta != 0).flatten(1).sum(dim=1).to(delta.dtype)

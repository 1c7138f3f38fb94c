"""Short attacks of the diagnostics' own on the first points; the flags in ``gradients.py`` judge their results.

They look at input gradients, compare one step with ten on the cross-entropy, and follow the logit margin as eps grows.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...bridge import device_of
from ...terminal import Progress
from ...threat import Norm, ThreatModel
from ..counting import CallCounter

POINTS = 100
STEPS = 10
RADII = 64
"""The most radii of a curve."""
# Sums in another order differ by far less than this share of a gradient's length.
RANDOM_GRADIENT = 1e-2

JudgeCandidates = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Candidates [n, ...] in [0, 1] and the indices [n] of their points -> which candidates are misclassified, and which
lie in the ball and in range, by the evaluation's own rule, bool [n] each."""


@dataclass(frozen=True)
class ShortAttackPlan:
    """The inputs of the short attacks.

    Attributes:
        model: images in [0, 1] -> logits.
        judge: gives the verdicts.
        obstacle: why the logits have no gradient, as a clause; None if they have one.
        threat: in units of [0, 1].
        scale: the width of clip_values, to give eps in the estimator's units.
        to_unit: maps samples in the estimator's range to ``model``'s input.
        x: samples [N, ...] in the estimator's range.
        y: labels [N].
        correct: which points are classified correctly, bool [N].
        robust: which points all attacks left, bool [N].
        randomised: whether two passes of the network differ.
        seed: of the random starts.
        standard: whether all of the suite "standard" ran.
        verbose: show a progress bar.
    """

    model: CallCounter
    judge: JudgeCandidates
    obstacle: str | None
    threat: ThreatModel
    scale: float
    to_unit: Callable[[Tensor], Tensor]
    x: Tensor
    y: Tensor
    correct: Tensor
    robust: Tensor
    randomised: bool
    seed: int
    standard: bool
    verbose: bool


@dataclass(frozen=True)
class ShortAttacks:
    """The results of the short attacks; all counts are of the first points.

    Attributes:
        obstacle: why they could not run, as a clause; the counts are 0 then, and the curve has one point.
        norm: the threat's norm.
        standard: whether all of the suite "standard" ran.
        points: how many points were looked at.
        correct: how many are classified correctly.
        zero_gradients: at how many of these the cross-entropy's input gradient is exactly zero.
        random_gradients: at how many points two input gradients differ, though the outputs do not.
        left_after_one: how many stand after one step on the cross-entropy.
        left_after_many: how many stand after `STEPS` steps.
        beaten: how many points that the run's attacks left were broken by an image within eps.
        curve: pairs (eps in the estimator's units, accuracy) as eps grows.
        cost: seconds, forward_calls, backward_calls (verdicts not included), points.
    """

    obstacle: str | None
    norm: Norm
    standard: bool
    points: int
    correct: int
    zero_gradients: int
    random_gradients: int
    left_after_one: int
    left_after_many: int
    beaten: int
    curve: list[tuple[float, float]]
    cost: dict[str, Any]


def run_short_attacks(plan: ShortAttackPlan, batch_size: int) -> ShortAttacks:
    """Attack the first `POINTS` points, ``batch_size`` at once."""
    meter = _Meter(plan.model)
    points = min(POINTS, len(plan.x))
    correct = int(plan.correct[:points].sum())
    zero = different = one_step = many_steps = beaten = 0
    curve = [(0.0, correct / points)]
    if plan.obstacle is None:
        chunks = _split_points(plan, points, batch_size)
        zero = sum(chunk.count_zero_gradients() for chunk in chunks)
        different = 0 if plan.randomised else sum(chunk.count_random_gradients() for chunk in chunks)
        one_step, many_steps = (
            sum(chunk.count_left_after(plan.threat, steps) for chunk in chunks) for steps in (1, STEPS)
        )
        grown, beaten = _grow_eps(plan, chunks, points)
        curve += grown
    return ShortAttacks(
        obstacle=plan.obstacle,
        norm=plan.threat.norm,
        standard=plan.standard,
        points=points,
        correct=correct,
        zero_gradients=zero,
        random_gradients=different,
        left_after_one=one_step,
        left_after_many=many_steps,
        beaten=beaten,
        curve=curve,
        cost={"points": points, **meter.read()},
    )


def _split_points(plan: ShortAttackPlan, points: int, batch_size: int) -> list[Chunk]:
    device = device_of(plan.model)
    generator = torch.Generator(device).manual_seed(plan.seed)
    return [
        Chunk(
            plan.model,
            plan.judge,
            part,
            plan.to_unit(plan.x[part].to(device)).contiguous(),
            plan.y[part].to(device),
            plan.correct[part].to(device),
            generator,
        )
        for part in torch.split(torch.arange(points, device="cpu"), batch_size)
    ]


def _grow_eps(plan: ShortAttackPlan, chunks: list[Chunk], points: int) -> tuple[list[tuple[float, float]], int]:
    """The accuracy at each radius, and the number of points that the run left but that are broken within eps here."""
    curve, beaten = [], 0
    radii = list_radii(plan.threat, plan.x[0].numel())
    with Progress(len(radii), "diagnostics", shown=plan.verbose, kept=False) as progress:
        for eps in radii:
            ball = ThreatModel(plan.threat.norm, eps)
            left = 0
            for chunk in chunks:
                # What fell stays fallen: larger balls hold the smaller ones.
                fell = chunk.attack_standing(ball)
                left += int(chunk.standing.sum())
                # Judged as within eps, which is more than this radius.
                beaten += int(plan.robust[fell].sum()) if eps <= plan.threat.eps * (1 + 1e-9) else 0
            curve.append((eps * plan.scale, left / points))
            progress.advance()
        progress.conclude(f"accuracy at {len(radii)} radii")
    return curve, beaten


def list_radii(threat: ThreatModel, size: int) -> list[float]:
    """Radii from a quarter of eps, doubled up to the ball that holds every image in [0, 1].

    Where these would be more than `RADII`, the ratio of two radii is larger.
    """
    whole = {"Linf": 1.0, "L2": size**0.5, "L1": float(size)}[threat.norm]
    radii = [threat.eps / 4]
    ratio = max(2.0, (whole / radii[0]) ** (1 / (RADII - 2)))
    while 1.25 * ratio * radii[-1] < whole:
        radii.append(ratio * radii[-1])
    return [*radii, whole] if radii[-1] < whole else radii


class _Meter:
    """Seconds and passes of a model since it was made."""

    def __init__(self, model: CallCounter) -> None:
        self._model, self._forward, self._backward = model, model.forward_calls, model.backward_calls
        self._start = time.perf_counter()

    def read(self) -> dict[str, float]:
        return {
            "seconds": time.perf_counter() - self._start,
            "forward_calls": self._model.forward_calls - self._forward,
            "backward_calls": self._model.backward_calls - self._backward,
        }


@dataclass
class Chunk:
    """Some of the points: their indices [n], images x [n, ...] in [0, 1], labels, and which stand as eps grows."""

    model: Callable[[Tensor], Tensor]
    judge: JudgeCandidates
    indices: Tensor
    x: Tensor
    y: Tensor
    standing: Tensor
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.correct = self.standing.clone()

    def count_zero_gradients(self) -> int:
        """Count the correctly classified points at which the cross-entropy's input gradient is exactly zero."""
        gradient = self._compute_gradient(lambda x: functional.cross_entropy(self.model(x), self.y, reduction="sum"))
        return int(((gradient == 0).all(dim=1) & self.correct).sum())

    def count_random_gradients(self) -> int:
        """Count the points at which two input gradients of the logit margin differ."""
        one, two = (self._compute_gradient(self._make_margin(self.y)) for _ in range(2))
        return int(((one - two).norm(dim=1) > RANDOM_GRADIENT * one.norm(dim=1)).sum())

    def count_left_after(self, threat: ThreatModel, steps: int) -> int:
        """Count the points that stand after ``steps`` steps on the cross-entropy from the clean image."""
        found = threat.ascend(
            lambda x: functional.cross_entropy(self.model(x), self.y, reduction="sum"),
            self.x,
            self.x,
            steps=steps,
            step_size=threat.eps if steps == 1 else 2.5 * threat.eps / steps,
            low=0.0,
            high=1.0,
        )
        wrong, _ = self.judge(found, self.indices)
        return int((self.correct & ~wrong.to(self.correct.device)).sum())

    def attack_standing(self, threat: ThreatModel) -> Tensor:
        """Attack the points that stand, on the logit margin (it does not saturate).

        Returns the indices of those that were broken by an image within the evaluation's own ball.
        """
        balls = [threat]
        if threat.norm == "L1":
            # A step of steepest ascent in L1 changes only one value: the L2 ball within is searched as well.
            balls.append(ThreatModel("L2", threat.eps / self.x[0].numel() ** 0.5))
        fallen = []
        for ball in balls:
            where = self.standing.nonzero().flatten()
            if len(where):
                x, y = self.x[where], self.y[where]
                start = ball.random_start(x, 0.0, 1.0, self.generator)
                step = 2.5 * ball.eps / STEPS
                found = ball.ascend(self._make_margin(y), x, start, steps=STEPS, step_size=step, low=0.0, high=1.0)
                points = self.indices[where.cpu()]
                wrong, inside = self.judge(found, points)
                self.standing[where] = ~wrong.to(where.device)
                fallen.append(points[wrong & inside])
        return torch.cat([*fallen, self.indices[:0]])

    def _compute_gradient(self, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """The input gradient of ``objective``, [n, d]."""
        x = self.x.clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(x), x)
        return gradient.flatten(1)

    def _make_margin(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        def margin(x: Tensor) -> Tensor:
            logits = self.model(x)
            others = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
            return (others - logits.gather(1, y[:, None])[:, 0]).sum()

        return margin

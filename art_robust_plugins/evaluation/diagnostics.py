"""Signs that a robust accuracy is too good to be true: masked gradients, or a broken evaluation.

Each sign is a `Flag` with its evidence and an advice. None of them stops an evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from ..bridge import device_of
from ..threat import ThreatModel

if TYPE_CHECKING:
    from .evaluator import CallCounter
    from .report import AttackResult

Severity = Literal["severe", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

# Two passes of a network that differ by more than this share of the outputs' length: it is randomised.
RANDOM_DIFFERENCE = 1e-4
# Shares of points from which a sign is worth a flag; the second is the reference's own.
ZERO_GRADIENT_SHARE = 0.01
SQUARE_SHARE = 0.002
FGSM_SHARE = 0.01
# Adversarially trained networks lose two to four points of accuracy between these two attacks.
CROSS_ENTROPY_SHARE = 0.08
# What may be left standing when the adversary may make any image at all.
UNBOUNDED_ACCURACY = 0.05

POINTS = 100
STEPS = 10


@dataclass(frozen=True)
class Flag:
    """A sign that the numbers cannot be trusted as they are.

    Attributes:
        name: a short name, such as ``"zero-gradients"``.
        severity: ``"severe"`` (the robust accuracy says little), ``"warning"`` (it may be too high), ``"note"``.
        evidence: what was measured, in one sentence.
        advice: what to do about it, in one sentence.
    """

    name: str
    severity: Severity
    evidence: str
    advice: str


@dataclass(frozen=True)
class Examination:
    """What `examine` found.

    Attributes:
        flags: the signs.
        curve: pairs (eps in the estimator's units, accuracy) of the sweep over eps.
        cost: seconds, forward_calls, backward_calls, points.
    """

    flags: list[Flag]
    curve: list[tuple[float, float]]
    cost: dict[str, Any]


def of_outputs(state: Mapping[str, Any], points: int, results: Sequence[AttackResult]) -> list[Flag]:
    """Signs in what the network put out: randomised, probabilities, NaN; and attacks that left their ball.

    Args:
        state: the evaluation's state.
        points: how many points were evaluated.
        results: the attacks' results.
    """
    flags = []
    if state["passes"] > 1:
        ran = any(result.name.startswith("rand-") for result in results)
        flags.append(
            Flag(
                "randomised",
                "warning" if ran else "severe",
                f"Two passes of the same images differ by {state['difference']:.1e} of the outputs' length.",
                "The suite 'rand' averages gradients over the randomness; compare its robust accuracy with this one."
                if ran
                else "Run the suite 'rand', which averages gradients over the randomness.",
            )
        )
    if state["probabilities"]:
        flags.append(
            Flag(
                "probabilities",
                "severe",
                "The network's outputs are softmax probabilities, not logits.",
                "Evaluate the network without its softmax: losses of saturated probabilities have no gradient.",
            )
        )
    attacks = state["attacks"]
    clean_nan, found_nan = state["nan"], sum(progress["nan"] for progress in attacks.values())
    if clean_nan or found_nan:
        flags.append(
            Flag(
                "nan-logits",
                "severe",
                f"The network put out NaN for {clean_nan} of {points} clean images and for {found_nan} candidates.",
                "Find the operation that overflows; these points count as misclassified.",
            )
        )
    for name, progress in attacks.items():
        if progress["outside"]:
            flags.append(
                Flag(
                    "left-the-ball",
                    "severe",
                    f"{name} returned {progress['outside']} candidates outside the threat model or clip_values, the "
                    f"farthest at distance {progress['farthest']:.4g}.",
                    "They do not count as successes; check the attack's eps and its units.",
                )
            )
        if progress["not_finite"]:
            flags.append(
                Flag(
                    "not-finite",
                    "warning",
                    f"{name} returned NaN or infinity for {progress['not_finite']} images.",
                    "They do not count as successes; an attack that divides by a zero gradient does this.",
                )
            )
    return flags


def of_results(results: Sequence[AttackResult], clean_accuracy: float) -> list[Flag]:
    """Signs in the results of the attacks, and of their comparison."""
    flags = []
    accuracy = {result.name: result.robust_accuracy for result in results}
    if not any(result.bounded for result in results):
        flags.append(
            Flag(
                "not-adversarial",
                "severe",
                "No attack of this run is bound to the threat model.",
                "Do not call this robust_accuracy an adversarial accuracy; run the suite 'standard'.",
            )
        )
    names = [result.name for result in results if result.cumulative]
    if "square" in names and names.index("square") > 0:
        before = accuracy[names[names.index("square") - 1]]
        if before - accuracy["square"] > SQUARE_SHARE:
            flags.append(
                Flag(
                    "square-beats-white-box",
                    "warning",
                    f"square, which uses no gradients, broke another {before - accuracy['square']:.2%} of all points "
                    f"after the attacks that follow gradients.",
                    "The gradients may be masked: try an attack made for this network, and more queries.",
                )
            )
    gap = accuracy.get("apgd-ce", 0.0) - accuracy.get("apgd-t", 1.0)
    if gap > CROSS_ENTROPY_SHARE:
        flags.append(
            Flag(
                "cross-entropy-misleads",
                "warning",
                f"apgd-t, which follows logit differences, broke another {gap:.1%} of all points after apgd-ce, which "
                f"follows the cross-entropy.",
                "The cross-entropy's gradients may be masked: do not judge this network by FGSM or PGD.",
            )
        )
    for stronger in ("pgd-20", "pgd-100"):
        if {"fgsm", stronger} <= accuracy.keys() and accuracy[stronger] - accuracy["fgsm"] > FGSM_SHARE:
            flags.append(
                Flag(
                    "fgsm-beats-pgd",
                    "warning",
                    f"fgsm leaves {accuracy['fgsm']:.2%} and {stronger} leaves {accuracy[stronger]:.2%} (clean "
                    f"{clean_accuracy:.2%}).",
                    "One step must not be stronger than many: the gradients are likely masked.",
                )
            )
    return flags


def examine(
    model: CallCounter,
    threat: ThreatModel,
    *,
    unit: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    correct: Tensor,
    batch_size: int,
    seed: int,
    scale: float,
) -> Examination:
    """Cheap checks on the first 100 points: gradients that are zero, FGSM against PGD, accuracy as eps grows.

    Args:
        model: images in [0, 1] -> logits.
        threat: in units of [0, 1].
        unit: maps samples in the estimator's range to ``model``'s input.
        x: samples [N, ...] in the estimator's range.
        y: labels [N].
        correct: which points are classified correctly, bool [N].
        batch_size: points per pass.
        seed: of the random starts.
        scale: the width of clip_values, to give eps in the estimator's units.
    """
    forward, backward, start = model.forward_calls, model.backward_calls, time.perf_counter()
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(seed)
    few = min(POINTS, len(x))
    chunks = [
        _Chunk(model, unit(x[part].to(device)).contiguous(), y[part].to(device), correct[part].to(device), generator)
        for part in torch.split(torch.arange(few), batch_size)
    ]
    right = int(correct[:few].sum())
    if not chunks[0].differentiable():
        flag = Flag(
            "no-gradients",
            "severe",
            "No gradient of the logits reaches the input.",
            "Attacks that follow gradients cannot run or mislead: attack a differentiable stand-in of the network.",
        )
        return Examination([flag], [(0.0, right / few)], _cost(model, few, forward, backward, start))
    flags = []
    zero = sum(chunk.zero_gradients() for chunk in chunks)
    if right and zero / right > ZERO_GRADIENT_SHARE:
        flags.append(
            Flag(
                "zero-gradients",
                "warning",
                f"The cross-entropy's input gradient is exactly zero at {zero} of {right} points.",
                "Attacks on the cross-entropy cannot move there: trust those on logit differences (apgd-t, fab-t).",
            )
        )
    one_step, many_steps = (
        sum(int(chunk.attacked(threat, steps).sum()) for chunk in chunks) / few for steps in (1, STEPS)
    )
    if many_steps - one_step > FGSM_SHARE:
        flags.append(
            Flag(
                "fgsm-beats-pgd",
                "warning",
                f"On {few} points, one gradient step leaves {one_step:.1%} and {STEPS} steps leave {many_steps:.1%}.",
                "One step must not be stronger than many: the gradients are likely masked.",
            )
        )
    curve = [(0.0, right / few)]
    for eps in _sweep(threat, x[0].numel()):
        ball = ThreatModel(threat.norm, eps)
        # Once everything is broken it stays broken: larger balls hold the smaller ones.
        left = sum(chunk.attack_standing(ball) for chunk in chunks) if curve[-1][1] > 0 else 0
        curve.append((eps * scale, left / few))
    if curve[-1][1] > UNBOUNDED_ACCURACY:
        flags.append(
            Flag(
                "eps-does-not-matter",
                "severe",
                f"With eps grown to the whole range of images, {curve[-1][1]:.0%} of {few} points still stand against "
                f"{STEPS} gradient steps.",
                "Any network falls to zero there: its gradients are masked, and attacks that follow them mislead.",
            )
        )
    return Examination(flags, curve, _cost(model, few, forward, backward, start))


def _cost(model: CallCounter, points: int, forward: int, backward: int, start: float) -> dict[str, Any]:
    return {
        "points": points,
        "seconds": time.perf_counter() - start,
        "forward_calls": model.forward_calls - forward,
        "backward_calls": model.backward_calls - backward,
    }


def _sweep(threat: ThreatModel, size: int) -> list[float]:
    """Radii from a quarter of eps, doubled up to the ball that holds every image in [0, 1]."""
    whole = {"Linf": 1.0, "L2": size**0.5, "L1": float(size)}[threat.norm]
    radii = [threat.eps / 4]
    while 2.5 * radii[-1] < whole:
        radii.append(2 * radii[-1])
    return [*radii, whole] if radii[-1] < whole else radii


@dataclass
class _Chunk:
    """Some of the points: images x [n, ...] in [0, 1], labels, and which still stand as eps grows."""

    model: Callable[[Tensor], Tensor]
    x: Tensor
    y: Tensor
    standing: Tensor
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.correct = self.standing.clone()

    def differentiable(self) -> bool:
        """Whether a gradient of the logits reaches the input at all."""
        with torch.enable_grad():
            return self.model(self.x.clone().requires_grad_()).requires_grad

    def zero_gradients(self) -> int:
        """At how many correctly classified points the cross-entropy has an input gradient of exactly zero."""
        x = self.x.clone().requires_grad_()
        with torch.enable_grad():
            loss = functional.cross_entropy(self.model(x), self.y, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, x)
        return int(((gradient == 0).flatten(1).all(dim=1) & self.correct).sum())

    def attacked(self, threat: ThreatModel, steps: int) -> Tensor:
        """Which points stand after ``steps`` steps on the cross-entropy from the clean image, bool [n]."""
        found = threat.ascend(
            lambda x: functional.cross_entropy(self.model(x), self.y, reduction="sum"),
            self.x,
            self.x,
            steps=steps,
            step_size=threat.eps if steps == 1 else 2.5 * threat.eps / steps,
            low=0.0,
            high=1.0,
        )
        return self.correct & self._right(found, self.y)

    def attack_standing(self, threat: ThreatModel) -> int:
        """Attack the points that stand, on the logit margin (it does not saturate); how many still stand."""
        balls = [threat]
        if threat.norm == "L1":
            # A step of steepest ascent in L1 changes one value only: take the L2 ball within it as well.
            balls.append(ThreatModel("L2", threat.eps / self.x[0].numel() ** 0.5))
        for ball in balls:
            where = self.standing.nonzero().flatten()
            if len(where):
                x, y = self.x[where], self.y[where]
                start = ball.random_start(x, 0.0, 1.0, self.generator)
                step = 2.5 * ball.eps / STEPS
                found = ball.ascend(self._margin(y), x, start, steps=STEPS, step_size=step, low=0.0, high=1.0)
                self.standing[where] = self._right(found, y)
        return int(self.standing.sum())

    def _margin(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        def margin(x: Tensor) -> Tensor:
            logits = self.model(x)
            others = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
            return (others - logits.gather(1, y[:, None])[:, 0]).sum()

        return margin

    def _right(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            logits = self.model(x)
        return (logits.argmax(dim=1) == y) & ~logits.isnan().any(dim=1)

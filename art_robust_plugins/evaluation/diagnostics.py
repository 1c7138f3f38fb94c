"""Signs that a robust accuracy is too good to be true: masked gradients, or a broken evaluation.

Each sign is a `Flag` with its evidence and an advice. None of them stops an evaluation.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from ..bridge import device_of
from ..threat import ThreatModel
from .suites import SUITES

if TYPE_CHECKING:
    from .evaluator import CallCounter
    from .results import AttackResult

Severity = Literal["severe", "warning", "note"]
Judge = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Candidates [n, ...] in [0, 1] for the points of these indices [n] -> by the evaluation's own rule, which are
misclassified and which lie in the ball and in range, bool [n] each."""
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

# Two passes of a network that differ by more than this share of the outputs' length: it is randomised.
RANDOM_DIFFERENCE = 1e-4
# Margins of logits that rounding may turn, as a share of the outputs' length; TensorFloat-32 and bfloat16 round so far.
ROUNDING = 1e-2
# Sums in another order differ by far less than this share of a gradient's length.
RANDOM_GRADIENT = 1e-2
# Shares of points from which a sign is worth a flag; the second is the reference's own.
ZERO_GRADIENT_SHARE = 0.01
SQUARE_SHARE = 0.002
FGSM_SHARE = 0.01
# Adversarially trained networks lose two to four points of accuracy between these two attacks.
CROSS_ENTROPY_SHARE = 0.08
# Plainly trained networks lose up to a quarter of the points between one step and many.
SINGLE_STEP_SHARE = 0.3
# Attacks that are compared may differ by this many points for no reason.
CHANCE = 2
# What may be left standing when the adversary may make any image at all.
UNBOUNDED_ACCURACY = 0.05

TRANSFER = "transfer-"
"""How the names of attacks from another network begin."""

POINTS = 100
STEPS = 10
_ONE_STEP = "One step must not be stronger than many: the gradients are likely masked."


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
        cost: seconds, forward_calls, backward_calls (verdicts not included), points.
    """

    flags: list[Flag]
    curve: list[tuple[float, float]]
    cost: dict[str, Any]


def differences(one: Tensor, another: Tensor) -> Tensor:
    """How far each row of the outputs [N, classes] of two passes lies apart, as a share of its length, [N].

    NaN is equal to NaN and infinity to itself; either is infinitely far from any other number.
    """
    same = (one == another) | (one.isnan() & another.isnan())
    apart = torch.where(same, 0.0, (one - another).nan_to_num(torch.inf, torch.inf, -torch.inf))
    length = torch.linalg.vector_norm(one.nan_to_num(0.0, 0.0, 0.0), dim=1)
    shares: Tensor = torch.linalg.vector_norm(apart, dim=1) / length.clamp_min(1e-10)
    return shares


def difference(one: Tensor, another: Tensor) -> float:
    """The largest of the `differences` between the outputs [N, classes] of two passes."""
    return float(differences(one, another).max())


def of_outputs(state: Mapping[str, Any], points: int, results: Sequence[AttackResult]) -> list[Flag]:
    """Signs in what the network put out: randomised, probabilities, not finite; and attacks that left their ball.

    Args:
        state: the evaluation's state.
        points: how many points were evaluated.
        results: the attacks' results.
    """
    flags = []
    if state["passes"] > 1:
        averaging = {attack.name for attack in SUITES["rand"]}
        ran = any(result.name in averaging for result in results)
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
    counts = {name: progress["counts"] for name, progress in state["attacks"].items()}
    for kind, what, happens in (
        ("nan", "NaN", "these points count as misclassified"),
        ("infinite", "infinity", "gradients through it are zero or NaN"),
    ):
        clean, found = state[kind], sum(count[kind] for count in counts.values())
        if clean or found:
            flags.append(
                Flag(
                    f"{kind}-logits",
                    "severe",
                    f"The network put out {what} for {clean} of {points} clean images and for {found} candidates.",
                    f"Find the operation that overflows; {happens}.",
                )
            )
    for name, count in counts.items():
        left, farthest = [], state["attacks"][name]["farthest"]
        if count["out_of_ball"]:
            left.append(
                f"{count['out_of_ball']} candidates outside the threat model, the farthest at distance {farthest:.4g}"
            )
        if count["out_of_range"]:
            left.append(f"{count['out_of_range']} candidates outside clip_values")
        if left:
            flags.append(
                Flag(
                    "left-the-ball",
                    "severe",
                    f"{name} returned {' and '.join(left)}.",
                    "They do not count as successes; check the attack's eps and its units.",
                )
            )
        if count["overturned"]:
            flags.append(
                Flag(
                    "not-confirmed",
                    "warning",
                    f"{name} misclassified {count['overturned']} images in its own passes that the verdict's pass "
                    f"classified correctly.",
                    f"They count as robust, {_why_not_confirmed(state, state['attacks'][name]['widest'])}",
                )
            )
        if count["not_finite"]:
            flags.append(
                Flag(
                    "not-finite",
                    "warning",
                    f"{name} returned NaN or infinity for {count['not_finite']} images.",
                    "They do not count as successes; an attack that divides by a zero gradient does this.",
                )
            )
    return flags


def _why_not_confirmed(state: Mapping[str, Any], widest: float) -> str:
    """Why two passes of an image may disagree, and what to do; ``widest`` is the margin between the two classes."""
    if state["batch_difference"]:
        return "because an image's answer depends on its company: see batch-dependent."
    if state["gradients"] or state["moved"] or state["memory"] > RANDOM_DIFFERENCE:
        return "because the network changes while it predicts: see dynamic."
    if widest <= 0:
        return "because their label's output and another's are equal, which the attack counts as a success: see ties."
    if widest > ROUNDING:
        return (
            f"by up to {widest:.1e} of the outputs' length, more than sums in another order round: the network jumps "
            f"(it rounds its input, or compares it with a threshold); attack a smooth stand-in of it."
        )
    return (
        "by no more than rounding that depends on the number of images in a pass: compare with another "
        "physical_batch_size, and with a CPU, whose float32 is not TensorFloat-32."
    )


def of_results(results: Sequence[AttackResult], clean_accuracy: float) -> list[Flag]:
    """Signs in the results of the attacks, and of their comparison."""
    flags = []
    left = {result.name: int(result.robust.sum()) for result in results}
    points = len(results[0].robust)
    if not any(result.bounded for result in results):
        flags.append(
            Flag(
                "not-adversarial",
                "severe",
                "No attack of this run is bound to the threat model.",
                "Do not call this robust_accuracy an adversarial accuracy; run the suite 'standard'.",
            )
        )
    standard = {attack.name for attack in SUITES["standard"]}
    stages = [result.name for result in results if result.name in standard]
    for before, after in pairwise(stages):
        broken = left[before] - left[after]
        if after == "square" and _more(broken, points, SQUARE_SHARE):
            flags.append(
                Flag(
                    "square-beats-white-box",
                    "warning",
                    f"square, which uses no gradients, broke another {broken} of {points} points after the attacks "
                    f"that follow gradients.",
                    "The gradients may be masked: try an attack made for this network, and more queries.",
                )
            )
        # Only directly after it: another stage between them may have broken what apgd-t would have.
        if (before, after) == ("apgd-ce", "apgd-t") and _more(broken, points, CROSS_ENTROPY_SHARE):
            flags.append(
                Flag(
                    "cross-entropy-misleads",
                    "warning",
                    f"apgd-t, which follows logit differences, broke another {broken} of {points} points after "
                    f"apgd-ce, which follows the cross-entropy.",
                    "The cross-entropy's gradients may be masked: do not judge this network by FGSM or PGD.",
                )
            )
    others = [result.robust for result in results if result.bounded and not result.name.startswith(TRANSFER)]
    for result in results:
        if not (result.name.startswith(TRANSFER) and others):
            continue
        broken = int((np.logical_and.reduce(others) & ~result.robust).sum())
        if _more(broken, points, SQUARE_SHARE):
            flags.append(
                Flag(
                    "transfer-beats-white-box",
                    "severe",
                    f"{result.name}, which follows another network's gradients, broke {broken} of {points} points that "
                    f"the attacks on this network left.",
                    "This network's gradients mislead: attack a differentiable stand-in of it, and trust the worst "
                    "case only as an upper bound.",
                )
            )
    for many in ("pgd-20", "pgd-100"):
        if {"fgsm", many} <= left.keys() and _more(left[many] - left["fgsm"], points, FGSM_SHARE):
            flags.append(
                Flag(
                    "fgsm-beats-pgd",
                    "warning",
                    f"fgsm leaves {left['fgsm']} and {many} leaves {left[many]} of {points} points (clean "
                    f"{clean_accuracy:.2%}).",
                    _ONE_STEP,
                )
            )
    return flags


def of_certificate(radii: NDArray[Any], attacked: NDArray[np.bool_], eps: float) -> list[Flag]:
    """The sign that a certificate is wrong: a point broken within ``eps``, whose radius is at least that."""
    broken = int((attacked & (radii >= eps)).sum())
    if not broken:
        return []
    return [
        Flag(
            "certificate-broken",
            "severe",
            f"{broken} points were misclassified within their certified radius.",
            "Trust neither: the network that was certified is not the one that was attacked, or a rule of its bound "
            "does not hold.",
        )
    ]


def _more(count: int, points: int, share: float) -> bool:
    """Whether a difference of ``count`` among ``points`` is more than chance, and more than ``share``."""
    return count > CHANCE and count > share * points


def merged(flags: Sequence[Flag]) -> list[Flag]:
    """One flag for each name, with all that was measured; the gravest first."""
    groups: dict[str, list[Flag]] = {}
    for flag in flags:
        groups.setdefault(flag.name, []).append(flag)
    found = [
        Flag(
            name,
            min((flag.severity for flag in group), key=SEVERITIES.index),
            " ".join(dict.fromkeys(flag.evidence for flag in group)),
            " ".join(dict.fromkeys(flag.advice for flag in group)),
        )
        for name, group in groups.items()
    ]
    return sorted(found, key=lambda flag: SEVERITIES.index(flag.severity))


def gradient_obstacle(model: Callable[[Tensor], Tensor], x: Tensor) -> str | None:
    """Why attacks cannot follow the gradient of the logits to images ``x`` [N, ...], as a clause; None if they can."""
    x = x.clone().requires_grad_()
    try:
        with torch.enable_grad():
            outputs = model(x)
            if outputs.requires_grad and torch.autograd.grad(outputs.sum(), x, allow_unused=True)[0] is not None:
                return None
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0].rstrip(".")
        return f"the gradient of the logits cannot be computed ({reason})"
    return "no gradient of the logits reaches the input"


def examine(
    model: CallCounter,
    threat: ThreatModel,
    *,
    judge: Judge,
    obstacle: str | None,
    unit: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    correct: Tensor,
    robust: Tensor,
    randomised: bool,
    batch_size: int,
    seed: int,
    scale: float,
    standard: bool,
    verbose: bool,
) -> Examination:
    """Cheap checks on the first 100 points: zero and random gradients, FGSM against PGD, accuracy as eps grows.

    Args:
        model: images in [0, 1] -> logits.
        threat: in units of [0, 1].
        judge: gives the verdicts.
        obstacle: what `gradient_obstacle` found.
        unit: maps samples in the estimator's range to ``model``'s input.
        x: samples [N, ...] in the estimator's range.
        y: labels [N].
        correct: which points are classified correctly, bool [N].
        robust: which points all attacks left, bool [N].
        randomised: whether two passes of the network differ.
        batch_size: points per pass.
        seed: of the random starts.
        scale: the width of clip_values, to give eps in the estimator's units.
        standard: whether all of the suite "standard" ran.
        verbose: show a progress bar.
    """
    forward, backward, start = model.forward_calls, model.backward_calls, time.perf_counter()
    few = min(POINTS, len(x))
    right = int(correct[:few].sum())
    if obstacle is not None:
        flag = Flag(
            "no-gradients",
            "severe",
            f"{obstacle[0].upper()}{obstacle[1:]}.",
            "Attacks that follow gradients were left out: attack a differentiable stand-in of the network.",
        )
        return Examination([flag], [(0.0, right / few)], _cost(model, few, forward, backward, start))
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(seed)
    chunks = [
        _Chunk(
            model,
            judge,
            part,
            unit(x[part].to(device)).contiguous(),
            y[part].to(device),
            correct[part].to(device),
            generator,
        )
        for part in torch.split(torch.arange(few, device="cpu"), batch_size)
    ]
    flags = list(_of_gradients(chunks, few, right, randomised))
    one_step, many_steps = (sum(chunk.left_after(threat, steps) for chunk in chunks) for steps in (1, STEPS))
    if _more(many_steps - one_step, few, FGSM_SHARE):
        flags.append(
            Flag(
                "fgsm-beats-pgd",
                "warning",
                f"On the first {few} points, one gradient step leaves {one_step} and {STEPS} steps leave {many_steps}.",
                _ONE_STEP,
            )
        )
    # In L1 a step moves a single coordinate.
    if threat.norm != "L1" and _more(one_step - many_steps, few, SINGLE_STEP_SHARE):
        flags.append(
            Flag(
                "single-step-misleads",
                "note",
                f"On the first {few} points, one gradient step leaves {one_step} and {STEPS} steps leave {many_steps}.",
                "Do not judge this network by FGSM; if it was trained against single steps, it has overfitted to them "
                "(catastrophic overfitting): train with more steps.",
            )
        )
    curve, beaten = [(0.0, right / few)], 0
    for eps in tqdm(_sweep(threat, x[0].numel()), desc="diagnostics", unit="eps", disable=not verbose):
        ball = ThreatModel(threat.norm, eps)
        left = 0
        for chunk in chunks:
            # What fell stays fallen: larger balls hold the smaller ones.
            fell = chunk.attack_standing(ball)
            left += int(chunk.standing.sum())
            # Judged as within eps, which is more than this radius.
            beaten += int(robust[fell].sum()) if eps <= threat.eps * (1 + 1e-9) else 0
        curve.append((eps * scale, left / few))
    if beaten:
        flags.append(
            Flag(
                "short-attack-beats-this-run",
                "severe" if beaten > CHANCE else "note",
                f"{STEPS} steps on logit differences break, within eps, {beaten} of the first {few} points that all "
                f"attacks of this run left.",
                "They are not counted, so robust_accuracy is too high: "
                + (
                    "the suite 'standard' ran and missed them, so try attacks made for this network."
                    if standard
                    else "run the suite 'standard', or attacks made for this network."
                ),
            )
        )
    if curve[-1][1] > UNBOUNDED_ACCURACY:
        flags.append(
            Flag(
                "eps-does-not-matter",
                "severe",
                f"With eps grown to the whole range of images, {curve[-1][1]:.0%} of {few} points still stand against "
                f"{STEPS} gradient steps.",
                "Unless the network puts every image into one class, images that break it exist there: its gradients "
                "are masked, and attacks that follow them mislead.",
            )
        )
    return Examination(flags, curve, _cost(model, few, forward, backward, start))


def _of_gradients(chunks: Sequence[_Chunk], few: int, right: int, randomised: bool) -> Iterator[Flag]:
    """Input gradients that are zero, or that differ from pass to pass though the outputs do not."""
    zero = sum(chunk.zero_gradients() for chunk in chunks)
    if right and zero / right > ZERO_GRADIENT_SHARE:
        yield Flag(
            "zero-gradients",
            "warning",
            f"The cross-entropy's input gradient is exactly zero at {zero} of the {right} correctly classified among "
            f"the first {few} points.",
            "Attacks on the cross-entropy cannot move there: trust those on logit differences (apgd-t, fab-t).",
        )
    different = 0 if randomised else sum(chunk.random_gradients() for chunk in chunks)
    if different > min(CHANCE, few - 1):
        yield Flag(
            "random-gradients",
            "warning",
            f"The input gradients of the same images differ between two passes at {different} of the first {few} "
            f"points, though the outputs do not.",
            "Attacks that follow one such gradient at a time mislead: run the suite 'rand', which averages them.",
        )


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
    """Some of the points: their indices [n], images x [n, ...] in [0, 1], labels, and which stand as eps grows."""

    model: Callable[[Tensor], Tensor]
    judge: Judge
    indices: Tensor
    x: Tensor
    y: Tensor
    standing: Tensor
    generator: torch.Generator

    def __post_init__(self) -> None:
        self.correct = self.standing.clone()

    def zero_gradients(self) -> int:
        """At how many correctly classified points the cross-entropy has an input gradient of exactly zero."""
        gradient = self._gradient(lambda x: functional.cross_entropy(self.model(x), self.y, reduction="sum"))
        return int(((gradient == 0).all(dim=1) & self.correct).sum())

    def random_gradients(self) -> int:
        """At how many points two input gradients of the logit margin differ."""
        one, two = (self._gradient(self._margin(self.y)) for _ in range(2))
        return int(((one - two).norm(dim=1) > RANDOM_GRADIENT * one.norm(dim=1)).sum())

    def left_after(self, threat: ThreatModel, steps: int) -> int:
        """How many points stand after ``steps`` steps on the cross-entropy from the clean image."""
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

        Returns the indices of those that fell to an image within the evaluation's own ball.
        """
        balls = [threat]
        if threat.norm == "L1":
            # A step of steepest ascent in L1 changes one value only: take the L2 ball within it as well.
            balls.append(ThreatModel("L2", threat.eps / self.x[0].numel() ** 0.5))
        fallen = []
        for ball in balls:
            where = self.standing.nonzero().flatten()
            if len(where):
                x, y = self.x[where], self.y[where]
                start = ball.random_start(x, 0.0, 1.0, self.generator)
                step = 2.5 * ball.eps / STEPS
                found = ball.ascend(self._margin(y), x, start, steps=STEPS, step_size=step, low=0.0, high=1.0)
                points = self.indices[where.cpu()]
                wrong, inside = self.judge(found, points)
                self.standing[where] = ~wrong.to(where.device)
                fallen.append(points[wrong & inside])
        return torch.cat([*fallen, self.indices[:0]])

    def _gradient(self, objective: Callable[[Tensor], Tensor]) -> Tensor:
        """The input gradient of ``objective``, [n, d]."""
        x = self.x.clone().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(x), x)
        return gradient.flatten(1)

    def _margin(self, y: Tensor) -> Callable[[Tensor], Tensor]:
        def margin(x: Tensor) -> Tensor:
            logits = self.model(x)
            others = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
            return (others - logits.gather(1, y[:, None])[:, 0]).sum()

        return margin

"""Verdicts: an attack's candidates, judged by fresh passes through the untouched estimator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..bridge import InputRange
from ..randomness import seed_everything
from ..threat import ThreatModel
from .autoattack.batches import limit_on_cpu
from .diagnostics.faithfulness import find_ties, find_undecided
from .estimator_passes import EstimatorPasses
from .options import Samples

# A randomised network is judged by its mean class probabilities over this many passes.
RANDOM_PASSES = 10


class Verdicts(NamedTuple):
    """The verdicts on candidates: the images in the estimator's range [n, ...], and their properties, bool [n] each.

    The margin [n] is the label's output less the largest other one, as a share of the outputs' length.
    """

    candidates: Tensor
    wrong: Tensor
    in_ball: Tensor
    in_range: Tensor
    finite: Tensor
    nan: Tensor
    infinite: Tensor
    undecided: Tensor
    tied: Tensor
    margin: Tensor
    farthest: float

    @property
    def inside(self) -> Tensor:
        """Which candidates lie in the ball and in the range."""
        return self.in_ball & self.in_range


class Tolerance(NamedTuple):
    """The tolerances by which a distance may exceed eps.

    Attributes:
        typical: for independent rounding errors; an image within it is judged as it is.
        worst: for rounding errors that all add up; an image within it is projected into the ball, and judged there.
    """

    typical: float
    worst: float


def compute_tolerance(threat: ThreatModel, box: InputRange, size: int) -> Tolerance:
    """The rounding error of float32 in a distance between images of ``size`` numbers in this range."""
    # Half a unit in the last place, four times: candidates go through some sums and products in float32.
    rounding = torch.finfo(torch.float32).eps * max(*map(abs, box.hull), box.width)
    typical = {"Linf": 1.0, "L2": 2.0, "L1": 2 * math.sqrt(size)}[threat.norm]
    worst = {"Linf": 1.0, "L2": math.sqrt(size), "L1": float(size)}[threat.norm]
    return Tolerance(1e-6 * threat.eps + rounding * typical, 1e-6 * threat.eps + rounding * worst)


@dataclass(frozen=True)
class DecisionRule:
    """The rule by which a network's outputs become a class.

    Attributes:
        repeats: how many passes of a sample decide.
        probabilities: whether the outputs are probabilities; logits are turned into them before they are averaged.
        seed: of the evaluation.
    """

    repeats: int
    probabilities: bool
    seed: int

    def predict(self, predict: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
        """The outputs of ``predict`` for samples [N, ...], one for each pass of a verdict."""
        if self.repeats == 1:
            return [predict(x)]
        # Fresh randomness that depends on the seed alone, so that a resumed evaluation judges alike.
        seed_everything((self.seed + 0x9E3779B9) % 2**32)
        return [predict(x) for _ in range(self.repeats)]

    def average(self, outputs: Sequence[Tensor]) -> Tensor:
        """The outputs [N, classes] of one pass, or over several passes the mean probabilities."""
        if len(outputs) == 1:
            return outputs[0]
        return torch.stack([each if self.probabilities else each.softmax(dim=1) for each in outputs]).mean(dim=0)

    def classify(self, outputs: Sequence[Tensor]) -> Tensor:
        """The class of each sample [N], or -1 where an output is NaN or all are the same."""
        total = self.average(outputs)
        return torch.where(total.isnan().any(dim=1) | find_undecided(total), -1, total.argmax(dim=1))


class Judge:
    """Gives the verdicts of one evaluation.

    Args:
        passes: through the estimator.
        samples: the points.
        threat: in the units of the estimator's input.
        rule: how outputs become a class.
    """

    def __init__(self, passes: EstimatorPasses, samples: Samples, threat: ThreatModel, rule: DecisionRule) -> None:
        self.passes, self.samples, self.threat, self.rule = passes, samples, threat, rule
        self.tolerance = compute_tolerance(threat, passes.range, samples.x[0].numel())

    def judge(self, found: Tensor, points: Tensor) -> Verdicts:
        """Judge candidates [n, ...], in the attacks' units, for the points of these indices [n]."""
        x, threat, box = self.samples.x[points], self.threat, self.passes.range
        candidates = self.passes.module.to_estimator(found.detach().cpu()).float()
        finite = candidates.flatten(1).isfinite().all(dim=1)
        candidates[~finite] = x[~finite]
        # In parts: numbers in float64 and their differences are several times as large as the images.
        at_once = limit_on_cpu(x[:1], len(x))
        parts = zip(torch.split(candidates, at_once), torch.split(x, at_once), strict=True)
        distance = torch.cat([threat.distance(some.double(), own.double()) for some, own in parts])
        # An image that rounding alone may have put outside of the ball is projected back, and judged there.
        # Where all numbers round the same way, as on a flat image, it is out again: then in a ball smaller by the
        # largest rounding error.
        for ball in (threat, threat.scale(max(1 - self.tolerance.worst / threat.eps, 0.5))):
            near = (distance > threat.eps + self.tolerance.typical) & (distance <= threat.eps + self.tolerance.worst)
            if near.any():
                projected = ball.project(candidates[near].double(), x[near].double()).float()
                candidates[near] = projected
                distance[near] = threat.distance(projected.double(), x[near].double())
        in_range = box.holds(candidates)
        if not box.even:  # attacks search a larger range, from which candidates were clipped
            in_range &= InputRange(0.0, 1.0).holds(found.detach().cpu()) | ~finite
        candidates = box.clip(candidates)
        outputs = self.rule.predict(self.passes.predict, candidates)
        total, labels = self.rule.average(outputs), self.samples.y[points]
        others = total.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        margin = (total.gather(1, labels[:, None])[:, 0] - others) / total.norm(dim=1).clamp_min(1e-10)
        return Verdicts(
            candidates=candidates,
            wrong=self.rule.classify(outputs) != labels,
            in_ball=distance <= threat.eps + self.tolerance.typical,
            in_range=in_range,
            finite=finite,
            nan=_find_any(outputs, torch.isnan),
            infinite=_find_any(outputs, torch.isinf),
            undecided=find_undecided(total),
            tied=find_ties(total, labels),
            margin=margin,
            farthest=distance.max().item(),
        )

    def judge_briefly(self, found: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Which candidates are misclassified, and which lie in the ball and in the range, bool [n] each."""
        verdicts = self.judge(found, points)
        return verdicts.wrong, verdicts.inside


def _find_any(outputs: Sequence[Tensor], test: Callable[[Tensor], Tensor]) -> Tensor:
    """The samples for which any output of any pass fulfils the test, bool [N]."""
    return torch.stack([test(output).any(dim=1) for output in outputs]).any(dim=0)

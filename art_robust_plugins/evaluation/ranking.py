"""Statistics of a comparison: intervals of accuracies, the paired exact test, and which networks may be compared.

Data and numbers only; `rendering.conclusion` puts them into a sentence.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..threat import ThreatModel
from .results import EvaluationResults

SIGNIFICANCE = 0.05
_CHUNK = 1000
"""The number of points whose images are compared at a time."""

Reports = Mapping[str, EvaluationResults]
Groups = Sequence[Mapping[str, EvaluationResults]]
"""Reports in groups that may be compared, as `group_comparable` finds them."""


def compute_wilson_interval(accuracy: float, points: int, confidence: float = 0.95) -> tuple[float, float]:
    """The ends of Wilson's confidence interval of an accuracy on this many points (Wilson 1927).

    Example:
        >>> low, high = compute_wilson_interval(81 / 263, 263)
        >>> print(f"{low:.4f} {high:.4f}")
        0.2553 0.3662
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    middle = accuracy + z * z / (2 * points)
    reach = z * math.sqrt(accuracy * (1 - accuracy) / points + (z / (2 * points)) ** 2)
    low, high = ((middle + sign * reach) / (1 + z * z / points) for sign in (-1, 1))
    return max(low, 0.0), min(high, 1.0)


class PairedTest(NamedTuple):
    """McNemar's exact test of two networks on the same points.

    Attributes:
        only_first: the number of points that only the first network withstood.
        only_second: the number of points that only the second one withstood.
        p: the two-sided p value of the hypothesis that such points fall to either network with probability 1/2.
    """

    only_first: int
    only_second: int
    p: float

    @property
    def distinguishable(self) -> bool:
        return self.p < SIGNIFICANCE


def compare_pair(first: EvaluationResults, second: EvaluationResults) -> PairedTest:
    """McNemar's exact test of two worst cases; the points must be the same ones (`find_obstacles`)."""
    only_first = int((first.robust & ~second.robust).sum())
    only_second = int((second.robust & ~first.robust).sum())
    return PairedTest(only_first, only_second, compute_mcnemar_p(only_first, only_second))


def compute_mcnemar_p(only_first: int, only_second: int) -> float:
    """The p value ``min(1, 2 P(X <= min(b, c)))`` with X ~ Binomial(b + c, 1/2), in whole numbers until the end.

    Example:
        >>> compute_mcnemar_p(0, 5)
        0.0625
    """
    total = only_first + only_second
    term = ways = 1
    for number in range(min(only_first, only_second)):
        term = term * (total - number) // (number + 1)
        ways += term
    p: float = 2 * ways / 2**total
    return min(1.0, p)


def find_obstacles(first: EvaluationResults, second: EvaluationResults) -> list[str]:
    """List the differences for which the worst cases of two evaluations cannot be compared; none if they can."""
    different = [
        name
        for name, one in _list_conditions(first).items()
        if json.dumps(one) != json.dumps(_list_conditions(second)[name])
    ]
    if different:
        return different
    return [] if have_same_points(first, second) else ["points"]


def _list_conditions(report: EvaluationResults) -> dict[str, object]:
    settings = report.settings
    limits = settings.get("clip_values_by_feature") or settings["clip_values"]
    return {
        "threat models": [settings["threat"]["norm"], settings["threat"]["eps"], str(limits)],
        "attacks": sorted(settings["attacks"]),
        "numbers of points": len(report.labels),
    }


def have_same_points(first: EvaluationResults, second: EvaluationResults) -> bool:
    """Whether two reports can be of the same points, by labels and images; what their settings say is not believed.

    A report with details has the clean image of each point, which must be equal. One of an earlier version has the
    attacked image of a broken point in its place, which is at most eps away from it.
    """
    shape = first.adversarial.shape
    if not np.array_equal(first.labels, second.labels) or shape != second.adversarial.shape:
        return False
    if shape[0] != len(first.labels):  # no images, by which points could be known
        return False
    reach = _find_reach(first) + _find_reach(second)
    if reach.any() and first.settings["threat"]["norm"] != second.settings["threat"]["norm"]:
        return False  # distances in two norms do not add up
    parts = (slice(start, start + _CHUNK) for start in range(0, len(first.labels), _CHUNK))
    return all(
        _are_near(_collect_images(first, part), _collect_images(second, part), reach[part], first.settings["threat"])
        for part in parts
    )


def _are_near(one: NDArray[Any], other: NDArray[Any], reach: NDArray[np.float64], threat: Mapping[str, Any]) -> bool:
    """Whether images lie within ``reach`` [n] of each other; where that is 0, whether they are equal."""
    far = reach > 0
    if not far.any():
        return np.array_equal(one, other)
    if not np.array_equal(one[~far], other[~far]):
        return False
    images = (torch.from_numpy(each[far]).double() for each in (one, other))
    distances = ThreatModel(threat["norm"], threat["eps"]).distance(*images).numpy()
    return bool((distances <= reach[far] * (1 + 1e-9) + 1e-12).all())


def _find_reach(report: EvaluationResults) -> NDArray[np.float64]:
    """The distance by which the images of `_collect_images` may lie from the points, [N]."""
    eps = report.settings["threat"]["eps"] + report.settings["tolerance"]
    return np.where(report.robust, 0.0, eps if report.details is None else 0.0)


def _collect_images(report: EvaluationResults, part: slice) -> NDArray[Any]:
    """The clean images of some points; of a report without details the attacked ones of those that were broken."""
    images: NDArray[Any] = report.adversarial[part]
    broken = report.broken[part]
    if report.details is None or not broken.any():
        return images
    before = int(report.broken[: part.start].sum())
    clean: NDArray[Any] = images.copy()
    clean[broken] = report.details.clean[before : before + int(broken.sum())]
    return clean


def rank(reports: Reports) -> list[str]:
    """The names by worst case, the highest first; equal ones by certified and then by clean accuracy."""

    def strength(name: str) -> tuple[float, ...]:
        report = reports[name]
        return report.robust_accuracy, report.certified_accuracy or 0.0, report.clean_accuracy

    return sorted(reports, key=strength, reverse=True)


def is_severe(report: EvaluationResults) -> bool:
    """Whether a flag says that the robust accuracy must not be reported as it is."""
    return any(flag.severity == "severe" for flag in report.flags)


def group_comparable(reports: Reports) -> list[dict[str, EvaluationResults]]:
    """The networks in groups of the same threat model, attacks and points."""
    groups: list[dict[str, EvaluationResults]] = []
    for name, report in reports.items():
        for group in groups:
            if not find_obstacles(next(iter(group.values())), report):
                group[name] = report
                break
        else:
            groups.append({name: report})
    return groups


@dataclass(frozen=True)
class Ranking:
    """A group of networks that may be compared.

    Attributes:
        names: all of them, by worst case.
        trusted: those without a severe flag, in the same order.
        tests: the paired test of the best network (`best`) with each of the others.
    """

    names: list[str]
    trusted: list[str]
    tests: dict[str, PairedTest]

    @property
    def best(self) -> str:
        """The highest worst case among the networks without a severe flag; of all, if each has one."""
        return (self.trusted or self.names)[0]

    @property
    def next(self) -> str | None:
        """The network after the best; None without another one."""
        return next(iter((self.trusted or self.names)[1:]), None)


def rank_group(group: Reports) -> Ranking:
    """Rank networks that may be compared."""
    names = rank(group)
    trusted = [name for name in names if not is_severe(group[name])]
    best = (trusted or names)[0]
    return Ranking(names, trusted, {name: compare_pair(group[best], group[name]) for name in names if name != best})

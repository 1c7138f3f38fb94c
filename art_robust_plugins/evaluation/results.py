"""The results of an evaluation: numbers and arrays. Data only: saving, rendering and exports are elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..checks import check_number
from .flags import Flag

Constraint = Literal["ball", "minimal", "none"]
"""The constraint on an attack's candidates: the threat's ball ("ball"); nothing, but it looks for the smallest change,
so that candidates within the ball count ("minimal"); nothing, and it succeeds by its own measure ("none")."""


@dataclass(frozen=True, eq=False)
class AttackResult:
    """The result of one attack.

    Attributes:
        name: its name.
        summary: what it does.
        robust_accuracy: the share of all points that it left.
        robust: the points that it left, bool [N]. Of a stage of AutoAttack: that it and the stages of its suite before
            it left. Of an attack with the constraint "none": those it did not fool, by its own measure.
        seconds: its time, verdicts not included.
        forward_calls: images passed forward through the network.
        backward_calls: images passed backward.
        bounded: whether its candidates are constrained to the threat's ball.
        cumulative: whether it is a stage, acting on the points that the stages of its suite before it left.
        parameters: its parameters, in units of [0, 1].
        constraint: what its candidates are bound to: the threat's ball ("ball"); nothing, but it looks for the smallest
            change, and only images within the ball count ("minimal"); nothing, and it counts by its own measure
            ("none").

    Raises:
        ValueError: ``bounded`` and ``constraint`` that contradict each other.
    """

    name: str
    summary: str
    robust_accuracy: float
    robust: NDArray[np.bool_]
    seconds: float
    forward_calls: int
    backward_calls: int
    bounded: bool
    cumulative: bool
    parameters: dict[str, Any]
    constraint: Constraint = "ball"

    def __post_init__(self) -> None:
        if self.bounded != (self.constraint == "ball"):
            raise ValueError(f"bounded: got {self.bounded} with the constraint {self.constraint!r}, expected the same.")

    def __repr__(self) -> str:
        return f"AttackResult({self.name}: accuracy {self.robust_accuracy:.2%} of {len(self.robust)} points)"


@dataclass(frozen=True, eq=False)
class Examples:
    """Some points that an attack broke: indices [n], images in [0, 1] [n, C, H, W], labels [n], predictions [n]."""

    indices: NDArray[Any]
    clean: NDArray[Any]
    adversarial: NDArray[Any]
    labels: NDArray[Any]
    predictions: NDArray[Any]

    def __repr__(self) -> str:
        return f"Examples({len(self.indices)} points)"


@dataclass(frozen=True, eq=False)
class PointDetails:
    """Details of each point beside the verdicts.

    Attributes:
        clean: the points that were broken, before the attack, in their order [B, ...], in the estimator's range. (Of
            every other point ``adversarial`` is the clean image.)
        outputs: the estimator's outputs for the clean images, float32 [N, classes]; see ``settings["outputs"]``.
        attacked_outputs: its outputs for ``adversarial``, float32 [N, classes].
        breakers: whose image ``adversarial`` is, as its place in ``attacks``, int64 [N]; -1 for points not broken.
    """

    clean: NDArray[Any]
    outputs: NDArray[np.float32]
    attacked_outputs: NDArray[np.float32]
    breakers: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"PointDetails({len(self.outputs)} points, {len(self.clean)} broken)"


class ClassAccuracy(NamedTuple):
    """Accuracies of the points with one label."""

    label: int
    points: int
    clean: float
    robust: float


@dataclass(frozen=True, eq=False)
class EvaluationResults:
    """The results of an evaluation.

    Attributes:
        clean_accuracy: the share of points that are classified correctly.
        robust_accuracy: the share of points in ``robust``.
        robust: the worst case over all attacks, bool [N]: classified correctly, and no candidate of any attack that
            lies in the threat's ball and in clip_values is misclassified.
        correct: which points are classified correctly without an attack, bool [N].
        labels: their labels, int64 [N].
        adversarial: like x, in the estimator's range: the first such candidate of a point, else the point itself.
        attacks: one result per attack, in the order in which they ran.
        flags: signs that the numbers cannot be trusted as they are, the gravest first.
        settings: the threat, versions, seed, batch sizes, device, preprocessing, and what was not run.
        curve: pairs (eps in the estimator's units, accuracy under a short attack of our own) on the first points.
        examples: some points that were broken, for the figures.
        radii: for an estimator that certifies, the proven radius of each point in the threat's norm and the estimator's
            units, float64 [N], -1 where the certified class is not the label; None for any other.
        details: outputs and clean images of the points; None for a report of an earlier version.
    """

    clean_accuracy: float
    robust_accuracy: float
    robust: NDArray[np.bool_]
    correct: NDArray[np.bool_]
    labels: NDArray[np.int64]
    adversarial: NDArray[Any]
    attacks: list[AttackResult]
    flags: list[Flag]
    settings: dict[str, Any]
    curve: list[tuple[float, float]]
    examples: Examples
    radii: NDArray[np.float64] | None = None
    details: PointDetails | None = None

    def __post_init__(self) -> None:
        worst = min((result.robust_accuracy for result in self.attacks if result.bounded), default=1.0)
        if not 0 <= self.robust_accuracy <= min(self.clean_accuracy, worst) <= 1:
            raise ValueError(
                f"robust_accuracy: got {self.robust_accuracy} with a clean accuracy of {self.clean_accuracy} and "
                f"{worst} under the strongest attack, expected at most these."
            )

    @property
    def broken(self) -> NDArray[np.bool_]:
        """The points that are classified correctly, but not within eps, bool [N]."""
        return self.correct & ~self.robust

    @property
    def autoattack_accuracy(self) -> float | None:
        """Robust accuracy under AutoAttack's standard version; None where not all of its stages ran."""
        if not self.settings["autoattack"]:
            return None
        return next(result.robust_accuracy for result in self.attacks if result.name == "square")

    @property
    def certified_accuracy(self) -> float | None:
        """The share of points that are proven to be classified correctly within eps; None without certificates."""
        return None if self.radii is None else self.certified_at(self.settings["threat"]["eps"])

    def certified_at(self, eps: float) -> float:
        """The share of points whose certified radius is at least ``eps``, in the threat's norm.

        Raises:
            ValueError: for a report of an estimator without certificates; an eps that is no number of at least 0.
        """
        check_number("eps", eps, zero=True)
        if self.radii is None:
            raise ValueError("report: it holds no certified radii, expected one of a PyTorchLipschitzCertifier.")
        return float((self.radii >= float(eps)).mean())

    def by_class(self) -> list[ClassAccuracy]:
        """Clean and robust accuracy of each label that any point has, in the order of the labels."""
        found = []
        for label in np.unique(self.labels):
            of = self.labels == label
            accuracies = float(self.correct[of].mean()), float(self.robust[of].mean())
            found.append(ClassAccuracy(int(label), int(of.sum()), *accuracies))
        return found

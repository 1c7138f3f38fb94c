"""The result of an evaluation: numbers, arrays, and everything needed to trust them; saved and read back."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..checkpoint import load_tensors, read_json, save_tensors, write_atomically, write_json
from . import page
from .diagnostics import Flag
from .suites import Constraint

REPORT_FILE = "report.json"
ARRAYS_FILE = "arrays.safetensors"
_FORMAT = "art-robust-plugins report 2"
_EARLIER = "art-robust-plugins report 1"


@dataclass(frozen=True, eq=False)
class AttackResult:
    """What one attack did.

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


@dataclass(frozen=True, eq=False)
class Examples:
    """Some points that an attack broke: indices [n], images in [0, 1] [n, C, H, W], labels [n], predictions [n]."""

    indices: NDArray[Any]
    clean: NDArray[Any]
    adversarial: NDArray[Any]
    labels: NDArray[Any]
    predictions: NDArray[Any]


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """The result of `Evaluator.evaluate`.

    Attributes:
        clean_accuracy: the share of points that are classified correctly.
        robust_accuracy: the share of points in ``robust``.
        robust: the worst case over all attacks, bool [N]: classified correctly, and no candidate of any attack that
            lies in the threat's ball and in clip_values is misclassified.
        adversarial: like x, in the estimator's range: the first such candidate of a point, else the point itself.
        attacks: one result per attack, in the order in which they ran.
        flags: signs that the numbers cannot be trusted as they are, the gravest first.
        settings: the threat, versions, seed, batch sizes, device, preprocessing, and what was not run.
        curve: pairs (eps in the estimator's units, accuracy under a short attack of our own) on the first points.
        examples: some points that were broken, for the figures.
        radii: for an estimator that certifies, the proven radius of each point in the threat's norm and the estimator's
            units, float64 [N], -1 where the certified class is not the label; None for any other.

    Example:
        >>> report = EvaluationReport.load("runs/local_ball")           # doctest: +SKIP
        >>> print(report)                                               # doctest: +SKIP
    """

    clean_accuracy: float
    robust_accuracy: float
    robust: NDArray[np.bool_]
    adversarial: NDArray[Any]
    attacks: list[AttackResult]
    flags: list[Flag]
    settings: dict[str, Any]
    curve: list[tuple[float, float]]
    examples: Examples
    radii: NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        worst = min((result.robust_accuracy for result in self.attacks if result.bounded), default=1.0)
        if not 0 <= self.robust_accuracy <= min(self.clean_accuracy, worst) <= 1:
            raise ValueError(
                f"robust_accuracy: got {self.robust_accuracy} with a clean accuracy of {self.clean_accuracy} and "
                f"{worst} under the strongest attack, expected at most these."
            )

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
            ValueError: for a report of an estimator without certificates.
        """
        if self.radii is None:
            raise ValueError("report: it holds no certified radii, expected one of a PyTorchLipschitzCertifier.")
        return float((self.radii >= eps).mean())

    def __str__(self) -> str:
        return page.summary(self)

    def save(self, folder: str | Path) -> Path:
        """Write report.json, arrays.safetensors, report.md and report.html, each atomically.

        Args:
            folder: made when it is missing; a report that stands there is replaced.

        Returns:
            The path of report.html, which needs no other file.
        """
        folder = Path(folder)
        arrays = {
            "robust": self.robust,
            "adversarial": self.adversarial,
            "attacks": np.stack([result.robust for result in self.attacks]),
            **{f"examples.{name}": values for name, values in vars(self.examples).items()},
            **({} if self.radii is None else {"radii": self.radii}),
        }
        save_tensors(folder / ARRAYS_FILE, {name: _tensor(values) for name, values in arrays.items()})
        write_json(folder / REPORT_FILE, {**self._plain(), "arrays_sha256": _sha256(folder / ARRAYS_FILE)})
        for name, text in (("report.md", page.markdown(self)), ("report.html", page.html(self))):
            write_atomically(folder / name, _writer(text))
        return folder / "report.html"

    @classmethod
    def load(cls, folder: str | Path) -> EvaluationReport:
        """Read back what `save` wrote. Nothing is unpickled.

        Raises:
            FileNotFoundError: there is no report in the folder.
            ValueError: a file that is not a report, or arrays that do not belong to it.
        """
        folder = Path(folder)
        data = read_json(folder / REPORT_FILE)
        if isinstance(data, dict) and data.get("format") == _EARLIER:
            raise ValueError(f"{folder / REPORT_FILE}: got a report of an earlier version; evaluate again.")
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ValueError(f"{folder / REPORT_FILE}: got a file of another kind, expected a report of this package.")
        arrays = {name: values.numpy() for name, values in load_tensors(folder / ARRAYS_FILE).items()}
        if _sha256(folder / ARRAYS_FILE) != data.get("arrays_sha256"):
            raise ValueError(f"{folder / ARRAYS_FILE}: got arrays of another evaluation than {REPORT_FILE} beside it.")
        try:
            return cls(
                clean_accuracy=data["clean_accuracy"],
                robust_accuracy=data["robust_accuracy"],
                robust=arrays["robust"],
                adversarial=arrays["adversarial"],
                attacks=[
                    AttackResult(robust=robust, **result)
                    for robust, result in zip(arrays["attacks"], data["attacks"], strict=True)
                ],
                flags=[Flag(**flag) for flag in data["flags"]],
                settings=data["settings"],
                curve=[(eps, accuracy) for eps, accuracy in data["curve"]],
                examples=Examples(**{field.name: arrays[f"examples.{field.name}"] for field in fields(Examples)}),
                radii=arrays.get("radii"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{folder / REPORT_FILE}: got a damaged report ({error}), expected what save wrote."
            ) from error

    def _plain(self) -> dict[str, Any]:
        """Everything but the arrays."""
        return {
            "format": _FORMAT,
            "clean_accuracy": self.clean_accuracy,
            "robust_accuracy": self.robust_accuracy,
            "attacks": [{k: v for k, v in vars(result).items() if k != "robust"} for result in self.attacks],
            "flags": [asdict(flag) for flag in self.flags],
            "settings": self.settings,
            "curve": [list(point) for point in self.curve],
        }


def compare(reports: Mapping[str, EvaluationReport]) -> str:
    """One self-contained HTML page that compares named reports.

    Raises:
        ValueError: no reports.
    """
    return page.comparison_html(_some(reports))


def save_comparison(reports: Mapping[str, EvaluationReport], folder: str | Path) -> Path:
    """Write index.html and index.md that compare named reports; returns the path of index.html.

    Raises:
        ValueError: no reports.
    """
    folder = Path(folder)
    pages = {"index.md": page.comparison_markdown(_some(reports)), "index.html": page.comparison_html(reports)}
    for name, text in pages.items():
        write_atomically(folder / name, _writer(text))
    return folder / "index.html"


def _some(reports: Mapping[str, EvaluationReport]) -> Mapping[str, EvaluationReport]:
    if not reports:
        raise ValueError("reports: got none, expected at least one named report.")
    return reports


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _writer(text: str) -> Any:
    return lambda temporary: temporary.write_text(text, encoding="utf-8")

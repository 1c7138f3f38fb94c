"""The result of an evaluation: numbers, arrays, and everything needed to trust them; saved and read back."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..escapes import csv_cell
from ..files import load_tensors, read_json, save_archive, save_tensors, sha256_of, write_atomically, write_json
from ..sealed import read_sealed, write_sealed
from ..threat import ThreatModel
from .diagnostics import Flag
from .rendering import comparison_markdown, render_comparison, render_report, report_markdown, summary
from .rendering.labels import swept
from .report_record import check_report
from .results import AttackResult, EvaluationResults, Examples

REPORT_FILE = "report.json"
ARRAYS_FILE = "arrays.safetensors"
VERDICTS_FILE = "verdicts.csv"
MARKDOWN_FILE, PAGE_FILE = "report.md", "report.html"
COMPARISON_FILES = ("index.md", "index.html")
REPORT_FILES = (REPORT_FILE, ARRAYS_FILE, VERDICTS_FILE, MARKDOWN_FILE, PAGE_FILE)
"""What `EvaluationReport.save` writes."""
_FORMAT = "art-robust-plugins report 4"
_UNSEALED = ("art-robust-plugins report 3",)
_EARLIER = ("art-robust-plugins report 1", "art-robust-plugins report 2")

ROBUSTBENCH_POINTS = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
"""The data sets of RobustBench's leaderboards, and how many test images its entries are evaluated on."""
ROBUSTBENCH_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


@dataclass(frozen=True, eq=False)
class EvaluationReport(EvaluationResults):
    """The result of `Evaluator.evaluate`; see `EvaluationResults` for its attributes.

    Example:
        >>> report = EvaluationReport.load("runs/local_ball")           # doctest: +SKIP
        >>> print(report)                                               # doctest: +SKIP
    """

    def verdicts_csv(self) -> str:
        """A line for each point: its number, its label, and 1 or 0 for what it withstood: nothing, each attack, all."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["point", "label", "clean", *(csv_cell(result.name) for result in self.attacks), "worst case"])
        verdicts = [self.correct, *(result.robust for result in self.attacks), self.robust]
        columns = [np.arange(len(self.labels)), self.labels, *(verdict.astype(int) for verdict in verdicts)]
        writer.writerows(zip(*(column.tolist() for column in columns), strict=True))
        return text.getvalue()

    def to_robustbench(
        self,
        folder: str | Path,
        *,
        name: str,
        authors: str,
        dataset: str,
        architecture: str,
        model_id: str | None = None,
        link: str = "",
        venue: str = "Unpublished",
        additional_data: bool = False,
        number_forward_passes: int = 1,
        reported: float | None = None,
        footnote: str | None = None,
    ) -> Path:
        """Write what RobustBench asks of a submission: its model_info JSON, and the attacked images as a tensor.

        Args:
            folder: gets ``<model_id>.json`` and ``<model_id>.pt``, a float32 tensor [N, C, H, W] in [0, 1].
            name: the title of the paper.
            authors: their names, separated by commas.
            dataset: ``"cifar10"``, ``"cifar100"`` or ``"imagenet"``, whose test images were evaluated.
            architecture: as ``"PreActResNet-18"``.
            model_id: the name of the files; by RobustBench's custom author, year and first word, as
                ``Zhang2019Theoretically``. None for the network's class.
            link: of the paper.
            venue: as ``"ICLR 2018"``.
            additional_data: whether other training data was used.
            number_forward_passes: of one prediction.
            reported: the robust accuracy in the paper, in percent; None for the one of this report.
            footnote: what readers should know. That fewer points were evaluated than the leaderboard asks for is added.

        Returns:
            The path of the JSON file. ``unreliable`` there is true when this report has a severe flag.

        Raises:
            ValueError: a report of something else than standard AutoAttack alone, or of a sweep that knows points from
                a smaller eps; a threat or a data set that RobustBench has no leaderboard for; classes or images that
                are not the data set's; a file name that is none.

        Example:
            >>> report = EvaluationReport.load("runs/trades/evaluations/linf")   # doctest: +SKIP
            >>> report.to_robustbench("submission", name="Theoretically Principled Trade-off between Robustness and "
            ...     "Accuracy", authors="Hongyang Zhang, and others", dataset="cifar10",
            ...     architecture="WideResNet-34-10", model_id="Zhang2019Theoretically")   # doctest: +SKIP
        """
        accuracy, settings = self.autoattack_accuracy, self.settings
        model_id = settings["network"] if model_id is None else model_id
        if accuracy is None or accuracy != self.robust_accuracy or settings["verdict_passes"] > 1:
            raise ValueError(
                "report: it is not one of standard AutoAttack alone on a deterministic network, expected one of "
                "attacks='standard'."
            )
        if swept(self):
            raise ValueError(
                "report: it is one of a sweep, with points known from a smaller eps, expected one of an evaluation at "
                "this eps alone."
            )
        if dataset not in ROBUSTBENCH_POINTS:
            known = ", ".join(map(repr, ROBUSTBENCH_POINTS))
            raise ValueError(f"dataset: got {dataset!r}, expected one of {known}.")
        shape, channels_first = settings["input_shape"], settings["channels_first"]
        classes, of_dataset = settings["classes"], ROBUSTBENCH_CLASSES[dataset]
        if len(shape) != 3 or shape[0 if channels_first else -1] != 3 or classes != of_dataset:
            raise ValueError(
                f"dataset: got {dataset!r} for {classes} classes and inputs of shape {tuple(shape)}, expected "
                f"{of_dataset} classes and images of 3 channels."
            )
        norm = settings["threat"]["norm"]
        if norm not in ("Linf", "L2"):
            raise ValueError(f"report: its threat model is {norm}, expected Linf or L2.")
        if not model_id or Path(model_id).name != model_id:
            raise ValueError(f"model_id: got {model_id!r}, expected the name of a file without folders.")
        if settings.get("clip_values_by_feature") is not None:
            raise ValueError(
                f"report: its clip_values differ by feature ({settings['clip_values_by_feature']}), expected one pair "
                f"of numbers, of which eps is a share."
            )
        low, high = settings["clip_values"]
        threat = ThreatModel(norm, settings["threat"]["eps"] / (high - low))
        notes = [] if footnote is None else [footnote]
        points, asked = settings["points"], ROBUSTBENCH_POINTS[dataset]
        if points != asked:
            notes.append(f"Evaluated on {points} of {asked} points.")
        percent = {"clean_acc": self.clean_accuracy, "autoattack_acc": accuracy}
        shown = {key: f"{100 * value:.2f}" for key, value in percent.items()}
        information = {
            "link": link,
            "name": name,
            "authors": authors,
            "additional_data": additional_data,
            "number_forward_passes": number_forward_passes,
            "dataset": dataset,
            "venue": venue,
            "architecture": architecture,
            "eps": str(threat).split(" ")[1],
            "clean_acc": shown["clean_acc"],
            "reported": shown["autoattack_acc"] if reported is None else f"{reported:.2f}",
            "autoattack_acc": shown["autoattack_acc"],
            **({"footnote": " ".join(notes)} if notes else {}),
            "unreliable": any(flag.severity == "severe" for flag in self.flags),
        }
        images = ((_tensor(self.adversarial).double() - low) / (high - low)).float().clamp(0, 1)
        images = images if channels_first else images.movedim(-1, 1).contiguous()
        save_archive(Path(folder) / f"{model_id}.pt", images)
        path = Path(folder) / f"{model_id}.json"
        write_json(path, information)
        return path

    def __str__(self) -> str:
        return summary(self)

    def save(self, folder: str | Path) -> Path:
        """Write report.json, arrays.safetensors, verdicts.csv, report.md and report.html, each atomically.

        Args:
            folder: made when it is missing; a report that stands there is replaced.

        Returns:
            The path of report.html, which needs no other file.
        """
        folder = Path(folder)
        arrays = {
            "robust": self.robust,
            "correct": self.correct,
            "labels": self.labels,
            "adversarial": self.adversarial,
            "attacks": np.stack([result.robust for result in self.attacks]),
            **{f"examples.{name}": values for name, values in vars(self.examples).items()},
            **({} if self.radii is None else {"radii": self.radii}),
        }
        save_tensors(folder / ARRAYS_FILE, {name: _tensor(values) for name, values in arrays.items()})
        write_sealed(folder / REPORT_FILE, {**self._plain(), "arrays_sha256": sha256_of(folder / ARRAYS_FILE)})
        texts = {
            VERDICTS_FILE: self.verdicts_csv(),
            MARKDOWN_FILE: report_markdown(self),
            PAGE_FILE: render_report(self),
        }
        for name, text in texts.items():
            write_atomically(folder / name, _writer(text))
        return folder / PAGE_FILE

    @classmethod
    def load(cls, folder: str | Path) -> EvaluationReport:
        """Read back what `save` wrote. Nothing is unpickled, and every entry is checked.

        Totals must be those of the arrays. (Reports of earlier versions carry no digest of their own.)

        Raises:
            FileNotFoundError: there is no report in the folder.
            ValueError: a file that is not a report or was changed, arrays that do not belong to it, an entry that no
                evaluation gives; the sentence names it.
        """
        folder = Path(folder)
        path = folder / REPORT_FILE
        found = read_json(path)
        if isinstance(found, dict) and found.get("format") in _EARLIER:
            raise ValueError(f"{path}: got a report of an earlier version; evaluate again.")
        if not isinstance(found, dict) or found.get("format") not in (_FORMAT, *_UNSEALED):
            raise ValueError(f"{path}: got a file of another kind, expected a report of this package.")
        data = read_sealed(path, _FORMAT, _UNSEALED)
        tensors = load_tensors(folder / ARRAYS_FILE)
        if sha256_of(folder / ARRAYS_FILE) != data.get("arrays_sha256"):
            raise ValueError(f"{folder / ARRAYS_FILE}: got arrays of another evaluation than {REPORT_FILE} beside it.")
        try:
            arrays = {name: values.numpy() for name, values in tensors.items()}
        except TypeError as error:  # of types that NumPy does not have
            raise ValueError(
                f"{folder / ARRAYS_FILE}: got arrays of other types ({error}), expected save's."
            ) from error
        check_report(data, arrays, str(path))
        return cls(
            clean_accuracy=data["clean_accuracy"],
            robust_accuracy=data["robust_accuracy"],
            robust=arrays["robust"],
            correct=arrays["correct"],
            labels=arrays["labels"],
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
    return render_comparison(_some(reports))


def save_comparison(reports: Mapping[str, EvaluationReport], folder: str | Path) -> Path:
    """Write index.html and index.md that compare named reports; returns the path of index.html.

    Raises:
        ValueError: no reports.
    """
    folder = Path(folder)
    pages = dict(zip(COMPARISON_FILES, (comparison_markdown(_some(reports)), render_comparison(reports)), strict=True))
    for name, text in pages.items():
        write_atomically(folder / name, _writer(text))
    return folder / COMPARISON_FILES[-1]


def _some(reports: Mapping[str, EvaluationReport]) -> Mapping[str, EvaluationReport]:
    if not reports:
        raise ValueError("reports: got none, expected at least one named report.")
    return reports


def _tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _writer(text: str) -> Any:
    return lambda temporary: temporary.write_text(text, encoding="utf-8")

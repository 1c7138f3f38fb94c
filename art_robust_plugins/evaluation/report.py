"""The report of an evaluation: its results, saved, read back, rendered and compared."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import Tensor

from ..checks import check_path
from ..escapes import csv_cell
from ..files import load_tensors, read_json, read_sealed, save_tensors, sha256_of, write_atomically, write_sealed
from ..keywords import explain_keywords
from ..locks import check_output_folder
from .eight_bit import save_rounded_images
from .flags import Flag
from .ranking import group_comparable
from .rendering import (
    comparison_markdown,
    headline,
    render_comparison,
    render_report,
    render_summary,
    report_markdown,
    summary,
)
from .report_record import check_report
from .results import AttackResult, EvaluationResults, Examples, PointDetails
from .robustbench import LeaderboardEntry, export_to_robustbench

REPORT_FILE = "report.json"
ARRAYS_FILE = "arrays.safetensors"
VERDICTS_FILE = "verdicts.csv"
MARKDOWN_FILE, PAGE_FILE = "report.md", "report.html"
COMPARISON_FILES = ("index.md", "index.html")
REPORT_FILES = (REPORT_FILE, ARRAYS_FILE, VERDICTS_FILE, MARKDOWN_FILE, PAGE_FILE)
"""The files that `EvaluationReport.save` writes."""
_FORMAT = "art-robust-plugins report 5"
_FOUR, _THREE = "art-robust-plugins report 4", "art-robust-plugins report 3"
_EARLIER = ("art-robust-plugins report 1", "art-robust-plugins report 2")


@dataclass(frozen=True, eq=False)
class EvaluationReport(EvaluationResults):
    """The result of `Evaluator.evaluate`; see `EvaluationResults` for its attributes.

    Example:
        >>> report = EvaluationReport.load("runs/local_ball")           # doctest: +SKIP
        >>> print(report)                                               # doctest: +SKIP
    """

    def verdicts_csv(self) -> str:
        """A line for each point: its number, its label, and 1 or 0 for correct clean, under each attack, under all."""
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
                are not the data set's; a ``model_id`` that is no file name.

        Example:
            >>> report = EvaluationReport.load("runs/trades/evaluations/linf")   # doctest: +SKIP
            >>> report.to_robustbench("submission", name="Theoretically Principled Trade-off between Robustness and "
            ...     "Accuracy", authors="Hongyang Zhang, and others", dataset="cifar10",
            ...     architecture="WideResNet-34-10", model_id="Zhang2019Theoretically")   # doctest: +SKIP
        """
        entry = LeaderboardEntry(
            name=name,
            authors=authors,
            dataset=dataset,
            architecture=architecture,
            model_id=self.settings["network"] if model_id is None else model_id,
            link=link,
            venue=venue,
            additional_data=additional_data,
            number_forward_passes=number_forward_passes,
            reported=reported,
            footnote=footnote,
        )
        return export_to_robustbench(self, entry, folder)

    def save_images(self, folder: str | Path, classifier: PyTorchClassifier) -> EvaluationReport:
        """Write the attacked images as PNG files of 8 bits, and judge what rounding left of them.

        Rounding to 256 levels may undo an attack, or put an image outside of the threat's ball. So each rounded image
        is judged by a fresh pass through the untouched estimator, and its distance is computed again.

        Args:
            folder: gets ``<point>.png`` for each broken point, of five digits or more; files of these names are
                replaced.
            classifier: the estimator that was evaluated.

        Returns:
            This report with ``settings["eight_bit"]``: the accuracy after rounding, the accuracy that counts rounded
            images within eps alone, how many of the broken points stay misclassified, and the largest distance. Its
            ``save`` shows them.

        Raises:
            TypeError: a classifier that is not a ``PyTorchClassifier``.
            ValueError: another network than the report's, a report of an earlier version, data that are no images of
                one or three channels in one range.

        Example:
            >>> report = report.save_images("images", classifier)   # doctest: +SKIP
            >>> print(report)   # doctest: +SKIP
        """
        return replace(self, settings={**self.settings, "eight_bit": save_rounded_images(self, folder, classifier)})

    def __str__(self) -> str:
        return summary(self)

    def __repr__(self) -> str:
        return f"EvaluationReport({headline(self)})"

    def _repr_html_(self) -> str:
        """The table that `print` shows, for a notebook."""
        return render_summary(self)

    def save(self, folder: str | Path) -> Path:
        """Write report.json, arrays.safetensors, verdicts.csv, report.md and report.html, each atomically.

        Args:
            folder: made when it is missing; a report that stands there is replaced.

        Returns:
            The path of report.html, which needs no other file.
        """
        folder = check_path("folder", folder)
        check_output_folder("folder", folder, REPORT_FILES)
        arrays = {
            "robust": self.robust,
            "correct": self.correct,
            "labels": self.labels,
            "adversarial": self.adversarial,
            "attacks": np.stack([result.robust for result in self.attacks]),
            **{f"examples.{name}": values for name, values in vars(self.examples).items()},
            **({} if self.radii is None else {"radii": self.radii}),
            **({} if self.details is None else {f"points.{key}": values for key, values in vars(self.details).items()}),
        }
        save_tensors(folder / ARRAYS_FILE, {name: _to_tensor(values) for name, values in arrays.items()})
        write_sealed(folder / REPORT_FILE, {**self._describe(), "arrays_sha256": sha256_of(folder / ARRAYS_FILE)})
        return self.write_pages(folder)

    def write_pages(self, folder: str | Path) -> Path:
        """Write verdicts.csv, report.md and report.html alone, as of a report that another version of ours saved.

        Args:
            folder: made when it is missing; pages that stand there are replaced.

        Returns:
            The path of report.html.
        """
        folder = check_path("folder", folder)
        check_output_folder("folder", folder, (VERDICTS_FILE, MARKDOWN_FILE, PAGE_FILE))
        texts = {
            VERDICTS_FILE: self.verdicts_csv(),
            MARKDOWN_FILE: report_markdown(self),
            PAGE_FILE: render_report(self),
        }
        for name, text in texts.items():
            write_atomically(folder / name, _make_writer(text))
        return folder / PAGE_FILE

    @classmethod
    def load(cls, folder: str | Path) -> EvaluationReport:
        """Read back what `save` wrote. Nothing is unpickled, and every entry is checked.

        Totals must be those of the arrays. (Reports of format 3 carry no digest of their own, and those of 3 and 4 no
        details of the points.)

        Raises:
            FileNotFoundError: there is no report in the folder.
            ValueError: a file that is not a report or was changed, arrays that do not belong to it, an entry that no
                evaluation gives; the sentence names it.
        """
        folder = check_path("folder", folder)
        path = folder / REPORT_FILE
        if not folder.is_dir():
            got = "which is a file" if folder.exists() else "which is not there"
            raise FileNotFoundError(f"folder: got {folder}, {got}, expected the folder that a report was saved in.")
        found = read_json(path)
        if isinstance(found, dict) and found.get("format") in _EARLIER:
            raise ValueError(f"{path}: got a report of an earlier version; evaluate again.")
        if not isinstance(found, dict) or found.get("format") not in (_FORMAT, _FOUR, _THREE):
            raise ValueError(f"{path}: got a file of another kind, expected a report of this package.")
        data = read_sealed(path, _FOUR if found["format"] == _FOUR else _FORMAT, (_THREE,))
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
            details=PointDetails(**{field.name: arrays[f"points.{field.name}"] for field in fields(PointDetails)})
            if "points.outputs" in arrays
            else None,
        )

    def _describe(self) -> dict[str, Any]:
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


@explain_keywords
def compare(reports: Mapping[str, EvaluationReport]) -> str:
    """One self-contained HTML page that compares named reports.

    Raises:
        ValueError: no reports, or anything but a mapping from names to reports.
    """
    return render_comparison(_check_named(reports))


@explain_keywords
def save_comparison(
    reports: Mapping[str, EvaluationReport],
    folder: str | Path,
    *,
    folders: Mapping[str, str | Path] | None = None,
    histories: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Write index.html and index.md that compare named reports; returns the path of index.html.

    Args:
        reports: by the names of their networks.
        folder: made when it is missing; a comparison that stands there is replaced.
        folders: where reports were saved. The page links to the page that lies there, by a relative path.
        histories: the records of the epochs of trainings, as a trainer's ``history``, by the same names. The page draws
            "loss" and whatever ends with "accuracy", and adds up "seconds".

    Raises:
        ValueError: no reports, or anything but a mapping from names to reports; folders or histories of other names.
    """
    folder = check_path("folder", folder)
    _check_named(reports)
    for what, given in (("folders", folders), ("histories", histories)):
        if given is not None and (not isinstance(given, Mapping) or not set(given) <= set(reports)):
            names = ", ".join(map(repr, given)) if isinstance(given, Mapping) else type(given).__name__
            raise ValueError(f"{what}: got {names}, expected a mapping with names of reports.")
    for name, history in (histories or {}).items():
        if not isinstance(history, Sequence) or not all(isinstance(epoch, Mapping) for epoch in history):
            raise ValueError(f"histories: got {type(history).__name__} under {name!r}, expected a list of mappings.")
    check_output_folder("folder", folder, COMPARISON_FILES)
    places = {name: check_path("folders", place) for name, place in (folders or {}).items()}
    pages = {name: address for name, place in places.items() if (address := _find_address(place, folder)) is not None}
    groups = group_comparable(reports)
    texts = comparison_markdown(reports, groups), render_comparison(reports, pages, histories, groups)
    for name, text in zip(COMPARISON_FILES, texts, strict=True):
        write_atomically(folder / name, _make_writer(text))
    return folder / COMPARISON_FILES[-1]


def _find_address(place: Path, folder: Path) -> str | None:
    """The address of a saved report's page from a page in ``folder``; None where no relative path leads there.

    It is made of the caller's two paths alone: nothing in a report, which may be a stranger's, is part of it.
    """
    page, here = (place / PAGE_FILE).resolve(), folder.resolve()
    if not page.exists() or page.anchor != here.anchor:  # on another drive, or none at all
        return None
    return quote(Path(os.path.relpath(page, here)).as_posix())


def _check_named(reports: Mapping[str, EvaluationReport]) -> Mapping[str, EvaluationReport]:
    if not isinstance(reports, Mapping):
        raise ValueError(f"reports: got {type(reports).__name__}, expected a mapping from names to reports.")
    for name, report in reports.items():
        if not isinstance(name, str) or not isinstance(report, EvaluationReport):
            raise ValueError(
                f"reports: got {type(report).__name__} under {name!r}, expected an EvaluationReport under a name."
            )
    if not reports:
        raise ValueError("reports: got none, expected at least one named report.")
    return reports


def _to_tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))


def _make_writer(text: str) -> Any:
    return lambda temporary: temporary.write_text(text, encoding="utf-8")

"""Submissions to RobustBench's leaderboards: a model_info JSON, and the attacked images as a tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checks import check_choice, check_count, check_flag, check_path, check_text, to_float
from ..files import save_archive, write_json
from ..locks import check_output_folder
from ..threat import ThreatModel
from .rendering.labels import is_swept
from .results import EvaluationResults

ROBUSTBENCH_POINTS = {"cifar10": 10_000, "cifar100": 10_000, "imagenet": 5_000}
"""The data sets of RobustBench's leaderboards, and how many test images its entries are evaluated on."""
ROBUSTBENCH_CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}


@dataclass(frozen=True, kw_only=True)
class LeaderboardEntry:
    """The entries of a submission beside the numbers of a report; see `EvaluationReport.to_robustbench`.

    Raises:
        ValueError: an entry of another kind, or a number outside its range.
    """

    name: str
    authors: str
    dataset: str
    architecture: str
    model_id: str
    link: str
    venue: str
    additional_data: bool
    number_forward_passes: int
    reported: float | None
    footnote: str | None

    def __post_init__(self) -> None:
        for name in ("name", "authors", "architecture", "link", "venue"):
            check_text(name, getattr(self, name))
        if self.footnote is not None:
            check_text("footnote", self.footnote)
        check_choice("dataset", self.dataset, tuple(ROBUSTBENCH_POINTS))
        check_text("model_id", self.model_id)
        if not self.model_id or "\0" in self.model_id or Path(self.model_id).name != self.model_id:
            raise ValueError(f"model_id: got {self.model_id!r}, expected the name of a file without folders.")
        check_flag("additional_data", self.additional_data)
        check_count("number_forward_passes", self.number_forward_passes)
        if self.reported is not None and not 0 <= to_float(self.reported) <= 100:
            raise ValueError(f"reported: got {self.reported!r}, expected an accuracy in percent, from 0 to 100.")


def export_to_robustbench(report: EvaluationResults, entry: LeaderboardEntry, folder: str | Path) -> Path:
    """Write ``<model_id>.json`` and ``<model_id>.pt``, the images as float32 [N, C, H, W] in [0, 1].

    Returns:
        The path of the JSON file.

    Raises:
        ValueError: a report that the leaderboard does not take, see `EvaluationReport.to_robustbench`.
    """
    folder = check_path("folder", folder)
    check_output_folder("folder", folder)
    _check_evaluation(report)
    _check_data_set(report, entry)
    _check_range(report)
    images = torch.from_numpy(np.ascontiguousarray(report.adversarial)).double()
    low, high = report.settings["clip_values"]
    images = ((images - low) / (high - low)).float().clamp(0, 1)
    images = images if report.settings["channels_first"] else images.movedim(-1, 1).contiguous()
    save_archive(folder / f"{entry.model_id}.pt", images)
    path = folder / f"{entry.model_id}.json"
    write_json(path, _describe_model(report, entry))
    return path


def _check_evaluation(report: EvaluationResults) -> None:
    accuracy = report.autoattack_accuracy
    if accuracy is None or accuracy != report.robust_accuracy or report.settings["verdict_passes"] > 1:
        raise ValueError(
            "report: it is not one of standard AutoAttack alone on a deterministic network, expected one of "
            "attacks='standard'."
        )
    if is_swept(report):
        raise ValueError(
            "report: it is one of a sweep, with points known from a smaller eps, expected one of an evaluation at "
            "this eps alone."
        )


def _check_data_set(report: EvaluationResults, entry: LeaderboardEntry) -> None:
    settings, dataset = report.settings, entry.dataset
    shape, channels_first = settings["input_shape"], settings["channels_first"]
    classes, expected = settings["classes"], ROBUSTBENCH_CLASSES[dataset]
    if len(shape) != 3 or shape[0 if channels_first else -1] != 3 or classes != expected:
        raise ValueError(
            f"dataset: got {dataset!r} for {classes} classes and inputs of shape {tuple(shape)}, expected "
            f"{expected} classes and images of 3 channels."
        )
    norm = settings["threat"]["norm"]
    if norm not in ("Linf", "L2"):
        raise ValueError(f"report: its threat model is {norm}, expected Linf or L2.")


def _check_range(report: EvaluationResults) -> None:
    by_feature = report.settings.get("clip_values_by_feature")
    if by_feature is not None:
        raise ValueError(
            f"report: its clip_values differ by feature ({by_feature}), expected one pair "
            f"of numbers, of which eps is a share."
        )


def _describe_model(report: EvaluationResults, entry: LeaderboardEntry) -> dict[str, Any]:
    """The model_info of RobustBench."""
    settings, accuracy = report.settings, report.autoattack_accuracy
    assert accuracy is not None
    low, high = settings["clip_values"]
    threat = ThreatModel(settings["threat"]["norm"], settings["threat"]["eps"] / (high - low))
    notes = [] if entry.footnote is None else [entry.footnote]
    points, expected = settings["points"], ROBUSTBENCH_POINTS[entry.dataset]
    if points != expected:
        notes.append(f"Evaluated on {points} of {expected} points.")
    autoattack_accuracy = f"{100 * accuracy:.2f}"
    return {
        "link": entry.link,
        "name": entry.name,
        "authors": entry.authors,
        "additional_data": entry.additional_data,
        "number_forward_passes": int(entry.number_forward_passes),
        "dataset": entry.dataset,
        "venue": entry.venue,
        "architecture": entry.architecture,
        "eps": threat.radius_text,
        "clean_acc": f"{100 * report.clean_accuracy:.2f}",
        "reported": autoattack_accuracy if entry.reported is None else f"{float(entry.reported):.2f}",
        "autoattack_acc": autoattack_accuracy,
        **({"footnote": " ".join(notes)} if notes else {}),
        "unreliable": any(flag.severity == "severe" for flag in report.flags),
    }

"""Runs: a run is the folder of one network trained by a plan, with its evaluations and certificates in it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier

from ..bridge import check_threat
from ..checks import plain_number
from ..data import Dataset, Images, Labels
from ..evaluation import EvaluationReport, Evaluator, save_comparison, sweep, transfer
from ..evaluation.evaluator import STATE_FILE
from ..evaluation.report import REPORT_FILE, REPORT_FILES
from ..files import read_json, save_tensors, write_json
from ..labels import MissingClassWarning
from ..lipschitz import LipschitzReport, NoLipschitzRuleError, PyTorchLipschitzCertifier
from ..processes import find_processes
from ..saved_classifier import CLASSIFIER_FILE, WEIGHTS_FILE, load_classifier, save_classifier
from ..terminal import console
from ..threat import ThreatModel
from ..training.engine.checkpointer import CHECKPOINT
from ..training.processes import Processes
from .evaluation_plans import BATCH_SIZE, EvaluationPlan
from .plans import TrainingPlan
from .training_record import read_training_record

EVALUATIONS = "evaluations"

CERTIFICATES = "certificates"

CERTIFICATE_FILE = "certificate.json"

RADII_FILE = "radii.safetensors"

RUN_FILES = (CHECKPOINT, WEIGHTS_FILE, CLASSIFIER_FILE)
"""The files that `train_run` writes."""

STATE = "state"


def train_run(
    plan: TrainingPlan, data: Dataset, out: Path, *, seed: int, resume: bool = False, verbose: bool = True
) -> None:
    """Train a network and save it in the folder ``out``, with a record of how it was made.

    Raises:
        ValueError: as many validation images as there are, a folder that cannot be written to, and what networks,
            methods and options refuse.
        FolderInUseError: another process trains into this folder.
    """
    with Processes(find_processes().device).hold_folder("out", out, "run", RUN_FILES):
        _train_run(plan, data, out, seed=seed, resume=resume, verbose=verbose)


def _train_run(plan: TrainingPlan, data: Dataset, out: Path, *, seed: int, resume: bool, verbose: bool) -> None:
    # Each process makes its network on its own device; the first process writes.
    processes = find_processes()
    trainer, parameters = plan.trainer(data, seed=seed, checkpoint_dir=out, resume=resume)
    classifier = trainer.classifier
    images = plan.images(data)
    held_out = np.random.default_rng(0).permutation(images)[: plan.validation]
    kept = np.setdiff1d(np.arange(images), held_out)
    with warnings.catch_warnings():
        if data.name.endswith(".npz"):  # these warnings were given when the data were loaded
            warnings.simplefilter("ignore", MissingClassWarning)
        trainer.fit(
            data.x_train[kept],
            data.y_train[kept],
            validation_data=(data.x_train[held_out], data.y_train[held_out]) if plan.validation else None,
            batch_size=plan.batch_size,
            nb_epochs=plan.epochs,
            verbose=verbose,
        )
    record = {
        "method": plan.method,
        "parameters": {key: _to_json(value) for key, value in parameters.items()},
        "weight_map": plan.weight_map,
        "data": str(Path(data.name).resolve()) if data.name.endswith(".npz") else data.name,
        "train": plan.train,
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "seed": seed,
        "history": trainer.history,
    }
    if processes.is_main_process:
        save_classifier(classifier, out, extra=record)
    Processes(
        processes.device,
        moment="while the first one saved the trained network",
        advice=f"start all of them again with resume=True, to save it from {out / CHECKPOINT}.",
    ).wait()  # from here on all processes may read it


def evaluate_run(
    run: Path,
    data: Dataset,
    threats: Sequence[ThreatModel],
    attacks: Sequence[str],
    transfers: Sequence[Path] = (),
    *,
    out: Path | None = None,
    verbose: bool = True,
    **settings: Any,
) -> list[EvaluationReport]:
    """The report of each threat, saved; several threats in folders of their own, with a page that compares them.

    ``settings`` are the further fields of an `EvaluationPlan`.
    """
    plan = EvaluationPlan(threats, attacks, transfers, **settings)
    trained_on = read_training_record(run).get("data")
    reports, _ = evaluate_classifier(
        load_classifier(run), run, data, plan, trained_on=trained_on, out=out, verbose=verbose
    )
    return reports


def evaluate_classifier(
    classifier: PyTorchClassifier,
    home: Path,
    data: Dataset,
    plan: EvaluationPlan,
    *,
    trained_on: str | None = "",
    out: Path | None = None,
    verbose: bool = True,
) -> tuple[list[EvaluationReport], Path]:
    """As `evaluate_run`, for a classifier whose results belong in the folder ``home``; and where the reports are.

    ``trained_on`` are the data of its training, where they are known: the names of reports on other data say which.
    """
    folder = out or home / EVALUATIONS / plan.name_folder(data, trained_on)
    processes = find_processes()
    # A report that is made again keeps the certificate that it has.
    certify = "always" if _holds_certificate(folder / REPORT_FILE) else plan.certify
    if certify != "never":
        try:
            classifier = PyTorchLipschitzCertifier.from_classifier(classifier)
        except NoLipschitzRuleError as reason:
            if certify == "always":
                raise
            if processes.is_main_process:
                console.print(f"{home.name}: not certified, {reason}", soft_wrap=True)
    settings: dict[str, Any] = {
        "attacks": [*plan.attacks, *(transfer(load_classifier(path), run) for run, path in plan.sources().items())],
        "backend": plan.backend,
        "batch_size": plan.batch_size,
        "physical_batch_size": plan.physical_batch_size,
        "seed": plan.seed,
        "verbose": verbose,
    }
    x, y = data.x_test[: plan.points], data.y_test[: plan.points]
    begun = (folder / STATE).is_dir() or any(folder.glob(f"*/{STATE_FILE}"))
    if verbose and processes.is_main_process and begun:
        note = "an evaluation was begun here; of the same one, what is done is taken up, not computed again."
        console.print(f"{folder}: {note}", soft_wrap=True)
    with Processes(processes.device).hold_folder("out", folder, "report", REPORT_FILES):
        return _reports(classifier, x, y, plan.threats, folder, settings), folder


def _reports(
    classifier: PyTorchClassifier,
    x: Images,
    y: Labels,
    threats: Sequence[ThreatModel],
    folder: Path,
    settings: Mapping[str, Any],
) -> list[EvaluationReport]:
    """Evaluate and save, in a folder to which no other process writes."""
    writes = find_processes().is_main_process
    if len(threats) == 1:
        report = Evaluator(classifier, threats[0], state_dir=folder / STATE, **settings).evaluate(x, y)
        if writes:
            report.save(folder)
        return [report]
    reports = sweep(classifier, threats[0].norm, [each.eps for each in threats], x, y, state_dir=folder, **settings)
    if writes:
        for eps, report in reports.items():
            report.save(folder / f"{eps:g}")
        named = {report.settings["threat"]["text"]: report for report in reports.values()}
        folders = {report.settings["threat"]["text"]: folder / f"{eps:g}" for eps, report in reports.items()}
        save_comparison(named, folder, folders=folders)
    return list(reports.values())


def find_report_folder(run: Path, report: EvaluationReport) -> Path | None:
    """Where a report of a run was saved; None where it is not among the run's evaluations."""
    for path in sorted((run / EVALUATIONS).glob(f"*/{REPORT_FILE}")):
        settings = EvaluationReport.load(path.parent).settings
        if (settings["date"], settings["attacks"]) == (report.settings["date"], report.settings["attacks"]):
            return path.parent
    return None


def certify_run(
    run: Path,
    data: Dataset,
    threats: Sequence[ThreatModel],
    out: Path,
    *,
    points: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> tuple[dict[str, Any], LipschitzReport]:
    """Certify test images within the threats, which have one norm; what is written in ``out``, and the bound."""
    return certify_classifier(load_classifier(run), data, threats, out, points=points, batch_size=batch_size)


def certify_classifier(
    classifier: PyTorchClassifier,
    data: Dataset,
    threats: Sequence[ThreatModel],
    out: Path,
    *,
    points: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> tuple[dict[str, Any], LipschitzReport]:
    """As `certify_run`, for a classifier."""
    norm = threats[0].norm
    images, labels = data.x_test[:points], data.y_test[:points]
    for threat in threats:
        check_threat(threat, classifier)
    certifier = PyTorchLipschitzCertifier.from_classifier(classifier)
    prediction, radius = certifier.certify(images, batch_size, norm=norm)
    correct, bound = prediction == labels, certifier.lipschitz_report()
    save_tensors(out / RADII_FILE, {"radius": torch.from_numpy(radius), "prediction": torch.from_numpy(prediction)})
    accuracies = {threat.eps: float((correct & (radius >= threat.eps)).mean()) for threat in threats}
    summary = {
        "norm": norm,
        "data": data.name,
        "points": len(images),
        "clean_accuracy": float(correct.mean()),
        "certified_accuracy": [{"eps": eps, "accuracy": accuracy} for eps, accuracy in accuracies.items()],
        "median_radius": float(np.median(radius)),
        "lipschitz": bound.lipschitz,
        "largest_pair": bound.largest_pair,
        "operators": bound.rows,
    }
    write_json(out / CERTIFICATE_FILE, summary)
    return summary, bound


def _holds_certificate(report: Path) -> bool:
    try:
        return report.exists() and read_json(report)["settings"]["certificate"] is not None
    except (ValueError, KeyError, TypeError):  # a damaged or older report, which the new one replaces
        return False


def _to_json(value: Any) -> Any:
    """A parameter as JSON data."""
    value = plain_number(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, dict):
        return {str(key): _to_json(entry) for key, entry in value.items()}
    return [_to_json(entry) for entry in value] if isinstance(value, list | tuple) else str(value)

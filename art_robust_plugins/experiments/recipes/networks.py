"""One network of a recipe: training, attacks, noise and certificates, resuming from finished parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from ...data import Dataset, load_data
from ...evaluation import EvaluationReport
from ...evaluation.libraries import resolve
from ...lipschitz import NoLipschitzRuleError
from ...provenance import conditions
from ...saved_classifier import CLASSIFIER_FILE, load_classifier
from ...terminal import console
from ...threat import ThreatModel
from ..runs import CERTIFICATES, EVALUATIONS, certify_run, evaluate_run, train_run
from ..training_record import training_seconds
from .recipe import Recipe, Row
from .results import read_result, write_result

RESULT_FILE = "result.json"


def measure_network(recipe: Recipe, row: Row, seed: int, folder: Path, *, verbose: bool = True) -> dict[str, Any]:
    """Train one network, attack it and certify it; finished parts are not repeated."""
    if (folder / RESULT_FILE).exists():
        return read_result(folder / RESULT_FILE, recipe, row.name, seed)
    data = load_data(recipe.data)
    result: dict[str, Any] = {"row": row.name, "seed": seed}
    try:
        if not (folder / CLASSIFIER_FILE).exists():
            train_run(row.plan, data, folder, seed=seed, resume=True, verbose=verbose)
    except FloatingPointError as error:  # as every run with this seed would
        console.print(f"{row.name}, seed {seed}: diverged, {error}", soft_wrap=True)
        result["diverged"] = str(error)
    else:
        outputs = load_classifier(folder).predict(data.x_test.copy(), batch_size=500)
        # NaN belongs to no class.
        correct = (outputs.argmax(axis=1) == data.y_test) & ~np.isnan(outputs).any(axis=1)
        result |= {
            "clean": float(correct.mean()),
            "threats": _attack(recipe, folder, data, verbose),
            "noise": _measure_noise(recipe, folder, data, verbose),
            "certified": _certify(recipe, folder, data),
            "training_seconds": training_seconds(folder),
        }
    here = conditions("")
    result |= {key: here[key] for key in ("date", "machine", "threads")}
    write_result(folder / RESULT_FILE, result)
    return result


def _attack(recipe: Recipe, folder: Path, data: Dataset, verbose: bool) -> dict[str, Any]:
    found: dict[ThreatModel, EvaluationReport] = {}
    for threats in _group_threats(recipe):
        reports = evaluate_run(
            folder,
            data,
            threats,
            recipe.attacks,
            points=recipe.points,
            seed=0,
            certify="if possible" if threats[0].norm in {each.norm for each in recipe.certify.values()} else "never",
            out=_evaluation_folder(folder, threats),
            verbose=verbose,
        )
        found |= dict(zip(sorted(threats, key=lambda threat: threat.eps), reports, strict=True))
    return {
        text: {
            "robust": found[threat].robust_accuracy,
            "autoattack": found[threat].autoattack_accuracy,
            "attacks": {attack.name: attack.robust_accuracy for attack in found[threat].attacks},
            "flags": [flag.name for flag in found[threat].flags],
        }
        for text, threat in recipe.threats.items()
    }


def _measure_noise(recipe: Recipe, folder: Path, data: Dataset, verbose: bool) -> dict[str, float]:
    """The share of test images that are classified correctly without noise, and with it."""
    if not recipe.noise:
        return {}
    out, points = folder / EVALUATIONS / "noise", len(data.x_test)
    threat = list(recipe.threats.values())[:1]  # a report has one; noise has its own measure
    (report,) = evaluate_run(folder, data, threat, recipe.noise, points=points, seed=0, out=out, verbose=verbose)
    return {attack.name: attack.robust_accuracy for attack in report.attacks}


def _certify(recipe: Recipe, folder: Path, data: Dataset) -> dict[str, float | None]:
    """The certified accuracies by radius; None if the network has an operation without a bound."""
    if not recipe.certify:
        return {}
    threats = list(recipe.certify.values())
    try:
        proven, _ = certify_run(folder, data, threats, folder / CERTIFICATES / threats[0].norm)
    except NoLipschitzRuleError as reason:
        console.print(f"{folder.parent.name}: not certified, {reason}", soft_wrap=True)
        return dict.fromkeys(recipe.certify)
    accuracies = [certified["accuracy"] for certified in proven["certified_accuracy"]]
    return dict(zip(recipe.certify, accuracies, strict=True))


def _group_threats(recipe: Recipe) -> list[list[ThreatModel]]:
    """Group the threats that are evaluated together: those of one norm, if a sweep can save work."""
    if not all(attack.cumulative and attack.bounded for attack in resolve(recipe.attacks)):
        return [[threat] for threat in recipe.threats.values()]
    return [list(threats) for _, threats in groupby(sorted(recipe.threats.values(), key=_norm), _norm)]


def _norm(threat: ThreatModel) -> str:
    return threat.norm


def _evaluation_folder(folder: Path, threats: Sequence[ThreatModel]) -> Path:
    return folder / EVALUATIONS / folder_name(" ".join(map(str, threats)))


def report_folder(recipe: Recipe, folder: Path, threat: ThreatModel) -> Path:
    """The folder of a threat's report among the evaluations of a run."""
    threats = next(each for each in _group_threats(recipe) if threat in each)
    place = _evaluation_folder(folder, threats)
    return place if len(threats) == 1 else place / f"{threat.eps:g}"


def folder_name(text: str) -> str:
    """A text as a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text.replace("/", "_")).strip("-.")

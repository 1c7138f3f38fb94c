"""Running a recipe: a network is trained, attacked and certified for every row and seed, and all are compared.

Each network has a folder ``<row>/seed-<number>`` as ``art-robust train`` makes it, with its evaluations in it, and a
``result.json`` when it is done. An interrupted recipe continues where it was; finished work is not repeated. If the
training of a network diverges, that is its result, and the others are trained anyway.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...bridge import check_threat
from ...data import Dataset, load_data
from ...evaluation import EvaluationReport, Evaluator, save_comparison
from ...evaluation.libraries import find_obstacle, package_versions, resolve
from ...files import read_sealed, remove_temporaries, write_json, write_sealed
from ...locks import is_unused, locked_folder
from ...processes import find_processes
from ...provenance import PACKAGES, conditions, find_version
from ...terminal import console
from ..training_record import read_histories
from .networks import folder_name, report_folder
from .recipe import Recipe
from .workers import measure_in_turn, measure_in_workers

RECIPE_FILE = "recipe.json"

_FORMAT = "art-robust-plugins recipe 2"

RESULTS_FILE = "results.json"


def run_recipe(recipe: Recipe, out: Path, *, command: str, workers: int = 1, verbose: bool = True) -> dict[str, Any]:
    """Run a recipe, or what is left of it, in the folder ``out``.

    Args:
        recipe: as `load_recipe` reads it.
        out: gets a folder for each network, a comparing page for each threat (of the first seeds), and results.json.
        command: the command line that the record names.
        workers: number of processes, each with one thread on a CPU; the GPUs are assigned in turn.
        verbose: show which network is worked on, and the progress of each.

    Returns:
        The record that results.json holds: the command, versions, machine, date, the recipe, and a result for each row
        and seed, with its own date, machine and threads.

    Raises:
        ValueError: for a row that cannot be trained, or a threat that it cannot be attacked within, before any row is
            trained; a folder that holds what another recipe, other data or other versions gave.
        ImportError: the library of an attack is not installed.
        OSError: a worker died, or another process runs a recipe in this folder.
    """
    if find_processes().num_processes > 1:
        raise ValueError("benchmark: got several processes, expected one; workers=N shares out the networks.")
    with locked_folder("out", out, "benchmark"):
        remove_temporaries(out, (RECIPE_FILE, RESULTS_FILE))
        return _run_recipe(recipe, out, command=command, workers=workers, verbose=verbose)


def _run_recipe(recipe: Recipe, out: Path, *, command: str, workers: int, verbose: bool) -> dict[str, Any]:
    data = load_data(recipe.data)
    identity = _identity(recipe, data)
    _check_folder(identity, out)
    _check(recipe, data)
    write_sealed(out / RECIPE_FILE, {"format": _FORMAT, **identity})
    jobs = [
        (recipe, row, seed, out / folder_name(row.name) / f"seed-{seed}") for row in recipe.rows for seed in row.seeds
    ]
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    if verbose:
        console.print(f"{recipe.name}: {recipe.description.strip()} ({len(jobs)} networks, on {where})", soft_wrap=True)
    results = measure_in_turn(jobs, verbose) if workers == 1 else measure_in_workers(jobs, workers, verbose)
    for text, threat in recipe.threats.items():
        reports, runs = {}, {}
        for (_, row, _, folder), result in zip(jobs, results, strict=True):
            if row.name not in reports and "diverged" not in result:
                reports[row.name] = EvaluationReport.load(report_folder(recipe, folder, threat))
                runs[row.name] = folder
        if reports:
            folders = {name: report_folder(recipe, folder, threat) for name, folder in runs.items()}
            histories = read_histories(runs)
            page = save_comparison(reports, out / folder_name(text), folders=folders, histories=histories)
            console.print(f"{text}: open {page} in a browser.", soft_wrap=True)
    record = {
        **conditions(command),
        "date": max(result["date"] for result in results),
        "machine": " and ".join(dict.fromkeys(result["machine"] for result in results)),
        "threads": " and ".join(dict.fromkeys(str(result["threads"]) for result in results)),
        "quick": recipe.quick,
        "recipe": recipe.table,
        "results": results,
    }
    write_json(out / RESULTS_FILE, record)
    return record


def _check(recipe: Recipe, data: Dataset) -> None:
    """Refuse, before the work begins, anything that would end it later."""
    threats, names = [folder_name(text) for text in recipe.threats], [folder_name(row.name) for row in recipe.rows]
    if len({*threats, *names}) < len(threats) + len(names) or "" in names:
        raise ValueError(f"rows: got names whose folders are {', '.join(names)}, expected one for each row.")
    if recipe.points > len(data.x_test):
        raise ValueError(f"evaluation.points: got {recipe.points}, expected at most {len(data.x_test)}, all there are.")
    attacks = resolve(recipe.attacks)
    package_versions(attacks)
    for threat in recipe.threats.values():
        reasons = [find_obstacle(attack, threat, data.input_shape, data.nb_classes) for attack in attacks]
        if None not in reasons:
            told = "; ".join(f"{attack.name}: {reason}" for attack, reason in zip(attacks, reasons, strict=True))
            raise ValueError(f"evaluation.attacks: got none that exists within {threat} ({told}), expected one.")
    for row in recipe.rows:
        try:
            trainer, _ = row.plan.trainer(data, seed=0)
            row.plan.check(trainer, data)
            for threat in recipe.threats.values():
                Evaluator(trainer.classifier, threat, attacks=recipe.attacks)
            for threat in recipe.certify.values():
                check_threat(threat, trainer.classifier)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{recipe.name}: {row.name}: {error}") from error


def _check_folder(identity: Mapping[str, Any], out: Path) -> None:
    """Refuse a folder with results of another recipe, or of an earlier form of this one."""
    if not (out / RECIPE_FILE).exists():
        if not is_unused(out):
            raise ValueError(f"out: {out} holds other files, expected a new folder or one of this recipe.")
        return
    then = read_sealed(out / RECIPE_FILE, _FORMAT, (None,))
    then.pop("format", None)
    different = [key for key in {**then, **identity} if then.get(key) != identity.get(key)]
    if different:
        raise ValueError(f"out: {out} holds results of another {' and '.join(different)}, expected another folder.")


def _identity(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """Everything that results depend on, as JSON data."""
    checksum = 0
    for array in (data.x_train, data.y_train, data.x_test, data.y_test):
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return {
        **{key: value for key, value in recipe.table.items() if key != "description"},
        "quick form": recipe.quick,
        "content of the data": checksum,
        **{f"version of {package}": find_version(package) for package in PACKAGES},
    }

"""Running a recipe: every row and seed to a trained network, attacked, under noise, certified; then what compares them.

Each network has a folder ``<row>/seed-<number>`` as ``art-robust train`` makes it, with its evaluations in it, and a
``result.json`` when it is done. What was stopped goes on where it was, and what is done is not done again.
A network whose training diverges has that as its result, and the others are trained all the same.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import statistics
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..bridge import check_threat
from ..checkpoint import CLASSIFIER_FILE, load_classifier
from ..data import Dataset, load_data
from ..evaluation import EvaluationReport, Evaluator, save_comparison
from ..evaluation.suites import package_versions, resolve
from ..files import read_sealed, remove_temporaries, write_json, write_sealed
from ..lipschitz import NoLipschitzRuleError
from ..locks import is_unused, locked_folder
from ..record import PACKAGES, conditions, installed
from ..runs import CERTIFICATES, EVALUATIONS, certify_run, evaluate_run, processes_here, train_run
from ..terminal import console
from ..threat import ThreatModel
from ..training_record import training_seconds
from .recipe import Recipe, Row
from .results import read_result, write_result

RECIPE_FILE = "recipe.json"
_FORMAT = "art-robust-plugins recipe 2"
RESULT_FILE = "result.json"
RESULTS_FILE = "results.json"


def run_recipe(recipe: Recipe, out: Path, *, command: str, workers: int = 1) -> dict[str, Any]:
    """Run a recipe in the folder ``out``, or what is left of it to run.

    Args:
        recipe: as `load_recipe` reads it.
        out: gets a folder for each network, a comparing page for each threat (of the first seeds), and results.json.
        command: what the record shall name.
        workers: processes that share the networks, each with one thread on a CPU, and with the GPUs in turn.

    Returns:
        The record that results.json holds: the command, versions, machine, date, the recipe, and a result for each row
        and seed, with its own date, machine and threads.

    Raises:
        ValueError: for a row that cannot be trained, or a threat that it cannot be attacked within, before any row is
            trained; a folder that holds what another recipe, other data or other versions gave.
        ImportError: the library of an attack is not installed.
        OSError: a worker died, or another process runs a recipe in this folder.
    """
    if processes_here().num_processes > 1:
        raise ValueError("benchmark: got several processes, expected one; --workers shares out the networks.")
    with locked_folder("--out", out, "benchmark"):
        remove_temporaries(out, (RECIPE_FILE, RESULTS_FILE))
        return _run_recipe(recipe, out, command=command, workers=workers)


def _run_recipe(recipe: Recipe, out: Path, *, command: str, workers: int) -> dict[str, Any]:
    data = load_data(recipe.data)
    identity = _identity(recipe, data)
    _check_folder(identity, out)
    _check(recipe, data)
    write_sealed(out / RECIPE_FILE, {"format": _FORMAT, **identity})
    jobs = [(recipe, row, seed, out / _slug(row.name) / f"seed-{seed}") for row in recipe.rows for seed in row.seeds]
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "the CPU"
    console.print(f"{recipe.name}: {recipe.description.strip()} ({len(jobs)} networks, on {where})", soft_wrap=True)
    results = _in_turn(jobs) if workers == 1 else _shared_out(jobs, workers)
    for text, threat in recipe.threats.items():
        reports = {}
        for (_, row, _, folder), result in zip(jobs, results, strict=True):
            if row.name not in reports and "diverged" not in result:
                reports[row.name] = EvaluationReport.load(_report_folder(recipe, folder, threat))
        if reports:
            page = save_comparison(reports, out / _slug(text))
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


def result_rows(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows of a record's table: means over seeds in percent, with the lowest and the highest in parentheses.

    Networks that diverged are counted, and are in no mean. "AutoAttack" is its own number; where other attacks ran too,
    "worst case" is that of all.
    """
    finished = [result for result in record["results"] if "diverged" not in result]
    rows = []
    for name in dict.fromkeys(result["row"] for result in record["results"]):
        every = [result for result in record["results"] if result["row"] == name]
        runs = [result for result in every if "diverged" not in result]
        lost = f" ({len(every) - len(runs)} diverged)" if len(runs) < len(every) else ""
        row = {"training": name, "seeds": f"{len(every)}{lost}", "clean": _percent([run["clean"] for run in runs])}
        for threat in finished[0]["threats"] if finished else ():
            attacked = [run["threats"][threat] for run in finished]
            of_row = [run["threats"][threat] for run in runs]
            with_autoattack = attacked[0]["autoattack"] is not None
            if with_autoattack:
                row[f"AutoAttack, {threat}"] = _percent([found["autoattack"] for found in of_row])
            if any(found["robust"] != found["autoattack"] for found in attacked):
                what = "worst case" if with_autoattack else "attacked"
                row[f"{what}, {threat}"] = _percent([found["robust"] for found in of_row])
        for noise in finished[0]["noise"] if finished else ():
            row[noise] = _percent([run["noise"][noise] for run in runs])
        for radius in finished[0]["certified"] if finished else ():
            shares = [run["certified"][radius] for run in runs]
            row[f"certified, {radius}"] = "no bound" if None in shares else _percent(shares)
        flags = [{flag for found in run["threats"].values() for flag in found["flags"]} for run in runs]
        counted = {flag: sum(flag in each for each in flags) for each in flags for flag in sorted(each)}
        row["flags (networks)"] = ", ".join(f"{flag} ({count})" for flag, count in counted.items()) or "none"
        row["training, s"] = f"{statistics.mean(run['training_seconds'] for run in runs):.0f}" if runs else "none"
        rows.append(row)
    return rows


def _percent(shares: Sequence[float]) -> str:
    if not shares:
        return "none"
    values = [100 * share for share in shares]
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


_Job = tuple[Recipe, Row, int, Path]


def _in_turn(jobs: Sequence[_Job]) -> list[dict[str, Any]]:
    results = []
    for number, job in enumerate(jobs, 1):
        console.print(f"{job[1].name}, seed {job[2]} ({number} of {len(jobs)})", style="bold")
        results.append(_result(*job))
    return results


def _shared_out(jobs: Sequence[_Job], workers: int) -> list[dict[str, Any]]:
    # A CUDA device cannot be used in forked processes. Ctrl-C ends each without a word: the first one speaks.
    context = multiprocessing.get_context("spawn")
    numbers = context.SimpleQueue()
    for number in range(workers):
        numbers.put(number)
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker, initargs=(numbers,)) as pool:
        futures = {pool.submit(_result, *job, verbose=False): job for job in jobs}
        try:
            for number, future in enumerate(as_completed(futures), 1):
                future.result()
                _, row, seed, _ = futures[future]
                console.print(f"{row.name}, seed {seed}: done ({number} of {len(jobs)})")
        except BrokenProcessPool as error:
            raise OSError(
                "benchmark: a worker died, for want of memory perhaps; the same command goes on, maybe with fewer."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return [future.result() for future in futures]


def _begin_worker(numbers: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    number = numbers.get()
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    else:
        torch.set_num_threads(1)


def _result(recipe: Recipe, row: Row, seed: int, folder: Path, *, verbose: bool = True) -> dict[str, Any]:
    """Train one network, attack it and certify it; whatever of this is done already is taken up."""
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
        predicted = load_classifier(folder).predict(data.x_test.copy(), batch_size=500).argmax(axis=1)
        result |= {
            "clean": float((predicted == data.y_test).mean()),
            "threats": _attacked(recipe, folder, data, verbose),
            "noise": _under_noise(recipe, folder, data, verbose),
            "certified": _certified(recipe, folder, data),
            "training_seconds": training_seconds(folder),
        }
    here = conditions("")
    result |= {key: here[key] for key in ("date", "machine", "threads")}
    write_result(folder / RESULT_FILE, result)
    return result


def _attacked(recipe: Recipe, folder: Path, data: Dataset, verbose: bool) -> dict[str, Any]:
    found: dict[ThreatModel, EvaluationReport] = {}
    for threats in _evaluations(recipe):
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


def _under_noise(recipe: Recipe, folder: Path, data: Dataset, verbose: bool) -> dict[str, float]:
    """The share of the test images that are right without the noise and with it."""
    if not recipe.noise:
        return {}
    out, points = folder / EVALUATIONS / "noise", len(data.x_test)
    threat = list(recipe.threats.values())[:1]  # a report has one; noise has its own measure
    (report,) = evaluate_run(folder, data, threat, recipe.noise, points=points, seed=0, out=out, verbose=verbose)
    return {attack.name: attack.robust_accuracy for attack in report.attacks}


def _certified(recipe: Recipe, folder: Path, data: Dataset) -> dict[str, float | None]:
    """By radius; None where the network has an operation without a bound."""
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


def _evaluations(recipe: Recipe) -> list[list[ThreatModel]]:
    """The threats that are evaluated together: those of one norm, where the attacks let a sweep spare work."""
    if not all(attack.cumulative and attack.bounded for attack in resolve(recipe.attacks)):
        return [[threat] for threat in recipe.threats.values()]
    return [list(threats) for _, threats in groupby(sorted(recipe.threats.values(), key=_norm), _norm)]


def _norm(threat: ThreatModel) -> str:
    return threat.norm


def _evaluation_folder(folder: Path, threats: Sequence[ThreatModel]) -> Path:
    return folder / EVALUATIONS / _slug(" ".join(map(str, threats)))


def _report_folder(recipe: Recipe, folder: Path, threat: ThreatModel) -> Path:
    """Where the report of a threat is, among the evaluations of a run."""
    threats = next(each for each in _evaluations(recipe) if threat in each)
    place = _evaluation_folder(folder, threats)
    return place if len(threats) == 1 else place / f"{threat.eps:g}"


def _check(recipe: Recipe, data: Dataset) -> None:
    """Refuse whatever would end the work later, before it begins."""
    threats, names = [_slug(text) for text in recipe.threats], [_slug(row.name) for row in recipe.rows]
    if len({*threats, *names}) < len(threats) + len(names) or "" in names:
        raise ValueError(f"rows: got names whose folders are {', '.join(names)}, expected one for each row.")
    if recipe.points > len(data.x_test):
        raise ValueError(f"evaluation.points: got {recipe.points}, expected at most {len(data.x_test)}, all there are.")
    package_versions(resolve(recipe.attacks))
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
    """Refuse a folder with what another recipe, or an earlier form of this one, gave."""
    if not (out / RECIPE_FILE).exists():
        if not is_unused(out):
            raise ValueError(f"--out: {out} holds other files, expected a new folder or one of this recipe.")
        return
    then = read_sealed(out / RECIPE_FILE, _FORMAT, (None,))
    then.pop("format", None)
    different = [key for key in {**then, **identity} if then.get(key) != identity.get(key)]
    if different:
        raise ValueError(f"--out: {out} holds results of another {' and '.join(different)}, expected another folder.")


def _identity(recipe: Recipe, data: Dataset) -> dict[str, Any]:
    """What results depend on, as JSON data."""
    checksum = 0
    for array in (data.x_train, data.y_train, data.x_test, data.y_test):
        checksum = zlib.crc32(np.ascontiguousarray(array).data, checksum)
    return {
        **{key: value for key, value in recipe.table.items() if key != "description"},
        "quick form": recipe.quick,
        "content of the data": checksum,
        **{f"version of {package}": installed(package) for package in PACKAGES},
    }


def _slug(text: str) -> str:
    """A text as a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text.replace("/", "_")).strip("-.")

"""Running a recipe: every row and seed to a trained network, attacked, under noise, certified; then what compares them.

Each network has a folder ``<row>/seed-<number>`` as ``art-robust train`` makes it, with its evaluations in it, and a
``result.json`` when it is done. What was stopped goes on where it was, and what is done is not done again.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import statistics
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import CLASSIFIER_FILE, describe_classifier, load_classifier, read_json, write_json
from ..data import Dataset, load_data
from ..evaluation import EvaluationReport, save_comparison
from ..evaluation.suites import resolve
from ..lipschitz import NoLipschitzRuleError
from ..record import conditions, processor
from ..runs import CERTIFICATES, EVALUATIONS, certify_run, console, evaluate_run, processes_here, train_run
from ..threat import ThreatModel
from .recipe import Recipe, Row

RECIPE_FILE = "recipe.json"
RESULT_FILE = "result.json"
RESULTS_FILE = "results.json"


def run_recipe(recipe: Recipe, out: Path, *, command: str, workers: int = 1) -> dict[str, Any]:
    """Run a recipe in the folder ``out``, or what is left of it to run.

    Args:
        recipe: as `load_recipe` reads it.
        out: gets a folder for each network, a comparing page for each threat (of the first seeds), and results.json.
        command: what the record shall name.
        workers: processes that share the networks, each with one thread on a CPU.

    Returns:
        The record that results.json holds: the command, versions, machine, date, the recipe, and a result for each row
        and seed.

    Raises:
        ValueError: for a row that cannot be trained, before any is; a folder that holds another recipe's results.
        OSError: a worker died.
    """
    if processes_here().num_processes > 1:
        raise ValueError("benchmark: got several processes, expected one; --workers shares out the networks.")
    _check_folder(recipe, out)
    slugs = [_slug(row.name) for row in recipe.rows]
    if len(set(slugs)) < len(slugs):
        raise ValueError(f"rows: got names whose folders are {', '.join(slugs)}, expected one for each row.")
    data = load_data(recipe.data)
    for row in recipe.rows:
        try:
            row.plan.trainer(data, seed=0)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{recipe.name}: {row.name}: {error}") from error
    write_json(out / RECIPE_FILE, _identity(recipe))
    jobs = [(recipe, row, seed, out / _slug(row.name) / f"seed-{seed}") for row in recipe.rows for seed in row.seeds]
    results = list(_in_turn(jobs) if workers == 1 else _shared_out(jobs, workers))
    for text, threat in recipe.threats.items():
        folders = {row.name: out / _slug(row.name) / f"seed-{row.seeds[0]}" for row in recipe.rows}
        places = {name: _report_folder(recipe, folder, threat) for name, folder in folders.items()}
        reports = {name: EvaluationReport.load(place) for name, place in places.items()}
        console.print(f"{text}: open {save_comparison(reports, out / _slug(text))} in a browser.", soft_wrap=True)
    record = {
        **conditions(command),
        "machine": " and ".join(dict.fromkeys(result.pop("machine") for result in results)),
        "workers": workers,
        "quick": recipe.quick,
        "recipe": recipe.table,
        "results": results,
    }
    write_json(out / RESULTS_FILE, record)
    return record


def result_rows(record: Mapping[str, Any]) -> list[dict[str, str]]:
    """The rows of a record's table: means over seeds in percent, with the lowest and the highest in parentheses."""
    rows = []
    for name in dict.fromkeys(result["row"] for result in record["results"]):
        runs = [result for result in record["results"] if result["row"] == name]
        row = {"training": name, "seeds": str(len(runs)), "clean": _percent([run["clean"] for run in runs])}
        for threat, found in runs[0]["threats"].items():
            what = "AutoAttack" if found["autoattack"] is not None else "attacked"
            row[f"{what}, {threat}"] = _percent([run["threats"][threat]["robust"] for run in runs])
        for noise in runs[0]["noise"]:
            row[noise] = _percent([run["noise"][noise] for run in runs])
        for radius in runs[0]["certified"]:
            shares = [run["certified"][radius] for run in runs]
            row[f"certified, {radius}"] = "no bound" if None in shares else _percent(shares)
        flags = [{flag for found in run["threats"].values() for flag in found["flags"]} for run in runs]
        counted = {flag: sum(flag in each for each in flags) for each in flags for flag in sorted(each)}
        row["flags (networks)"] = ", ".join(f"{flag} ({count})" for flag, count in counted.items()) or "none"
        row["training, s"] = f"{statistics.mean(run['training_seconds'] for run in runs):.0f}"
        rows.append(row)
    return rows


def _percent(shares: Sequence[float]) -> str:
    values = [100 * share for share in shares]
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


_Job = tuple[Recipe, Row, int, Path]


def _in_turn(jobs: Sequence[_Job]) -> Iterator[dict[str, Any]]:
    for number, job in enumerate(jobs, 1):
        console.print(f"[bold]{job[1].name}, seed {job[2]}[/bold] ({number} of {len(jobs)})")
        yield _result(*job)


def _shared_out(jobs: Sequence[_Job], workers: int) -> Iterator[dict[str, Any]]:
    # A CUDA device cannot be used in forked processes. Ctrl-C ends each without a word: the first one speaks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker) as pool:
        futures = [pool.submit(_result, *job, verbose=False) for job in jobs]
        try:
            for number, (job, future) in enumerate(zip(jobs, futures, strict=True), 1):
                result = future.result()
                console.print(f"{job[1].name}, seed {job[2]}: done ({number} of {len(jobs)})")
                yield result
        except BrokenProcessPool as error:
            raise OSError(
                "benchmark: a worker died, for want of memory perhaps; the same command goes on, maybe with fewer."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    torch.set_num_threads(1)


def _result(recipe: Recipe, row: Row, seed: int, folder: Path, *, verbose: bool = True) -> dict[str, Any]:
    """Train one network, attack it and certify it; whatever of this is done already is taken up."""
    if (folder / RESULT_FILE).exists():
        done: dict[str, Any] = read_json(folder / RESULT_FILE)
        return done
    data = load_data(recipe.data)
    if not (folder / CLASSIFIER_FILE).exists():
        train_run(row.plan, data, folder, seed=seed, resume=True, verbose=verbose)
    history = describe_classifier(folder)["extra"]["history"]
    predicted = load_classifier(folder).predict(data.x_test, batch_size=500).argmax(axis=1)
    result = {
        "row": row.name,
        "seed": seed,
        "clean": float((predicted == data.y_test).mean()),
        "threats": _attacked(recipe, folder, data, verbose),
        "noise": _under_noise(recipe, folder, data, verbose),
        "certified": _certified(recipe, folder, data),
        "training_seconds": sum(epoch["seconds"] for epoch in history),
        "machine": processor(),
    }
    write_json(folder / RESULT_FILE, result)
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


def _check_folder(recipe: Recipe, out: Path) -> None:
    """Refuse a folder with what another recipe, or an earlier form of this one, gave."""
    if not (out / RECIPE_FILE).exists():
        if out.exists() and any(out.iterdir()):
            raise ValueError(f"--out: {out} holds other files, expected a new folder or one of this recipe.")
        return
    then, now = read_json(out / RECIPE_FILE), _identity(recipe)
    different = [key for key in {**then, **now} if then.get(key) != now.get(key)]
    if different:
        raise ValueError(f"--out: {out} holds results of another {' and '.join(different)}, expected another folder.")


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What results depend on, as JSON data."""
    return {**{key: value for key, value in recipe.table.items() if key != "description"}, "quick form": recipe.quick}


def _slug(text: str) -> str:
    """A text as a folder's name."""
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", text.replace("/", "_")).strip("-")

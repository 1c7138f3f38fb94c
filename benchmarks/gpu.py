"""One network of a recipe, trained for as many epochs as a number of seconds allows, then attacked and certified.

    python benchmarks/gpu.py cifar10-ten-minutes --seconds 300 --out FILE [--row NAME] [--cifar DATA] [--quick]

benchmarks/gpu.sh runs it on a GPU. Some batches are timed first, after a warm-up and with the device synchronised; the
number of epochs follows from their time, and parameters that count epochs of a warm-up change in proportion. The
network is trained, attacked and certified as the recipe says, in a folder under --work: the same command continues
there, with the number of epochs that it began with. --quick takes the recipe's quick form, on the digits.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import art
import torch

from art_robust_plugins.data import Dataset, load_data
from art_robust_plugins.experiments.plans import TrainingPlan
from art_robust_plugins.experiments.recipes import Recipe, Row, load_recipe
from art_robust_plugins.experiments.recipes.networks import folder_name, measure_network
from art_robust_plugins.files import read_json, write_json
from art_robust_plugins.memory import keep_freed_memory
from art_robust_plugins.provenance import conditions

TIMED = 20
"""Batches whose time is taken."""
SHARE = 0.95
"""The share of the seconds that is planned for: validation, saving and slower batches take the rest."""


def choose_row(recipe: Recipe, name: str | None) -> Row:
    """The first row whose name begins with ``name``; without a name, the first."""
    rows = [row for row in recipe.rows if row.name.startswith(name or "")]
    if not rows:
        known = ", ".join(repr(row.name) for row in recipe.rows)
        raise ValueError(f"--row: got {name!r}, expected the beginning of one of {known}.")
    return rows[0]


def time_batch(plan: TrainingPlan, data: Dataset) -> float:
    """The seconds of a training step, the median of three calls of `fit` after one that warms up."""
    of_schedules = ("schedule", "warmup_epochs", "milestones", "milestone_decay")
    others = {key: value for key, value in plan.options.items() if key not in of_schedules}
    constant = replace(plan, options={**others, "schedule": "constant"})
    trainer, _ = constant.trainer(data, seed=0)
    images = min(TIMED * plan.batch_size, plan.images(data))
    batches, taken = -(-images // plan.batch_size), []
    for _ in range(4):
        synchronise()
        started = time.perf_counter()
        trainer.fit(
            data.x_train[:images], data.y_train[:images], batch_size=plan.batch_size, nb_epochs=1, verbose=False
        )
        synchronise()
        taken.append((time.perf_counter() - started) / batches)
    return sorted(taken[1:])[1]


def synchronise() -> None:
    """Wait until the device has computed everything that it was asked for."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def fit_epochs(plan: TrainingPlan, data: Dataset, seconds: float) -> tuple[int, float]:
    """The number of epochs that fit into ``seconds``, at least one, and the seconds of a batch."""
    batch = time_batch(plan, data)
    per_epoch = batch * -(-plan.images(data) // plan.batch_size)
    return max(1, int(SHARE * seconds / per_epoch)), batch


def shorten(plan: TrainingPlan, epochs: int) -> TrainingPlan:
    """The plan with another number of epochs, and with its warm-ups over the same share of them."""
    ratio = epochs / plan.epochs
    parameters = {
        key: ratio * value if key.endswith("warmup_epochs") else value for key, value in plan.parameters.items()
    }
    options: Mapping[str, Any] = plan.options
    if "milestones" in options:
        options = {**options, "milestones": [ratio * each for each in options["milestones"]]}
    return replace(plan, epochs=epochs, parameters=parameters, options=options)


def plan_epochs(row: Row, data: Dataset, seconds: float, file: Path) -> dict[str, Any]:
    """The number of epochs, from the file of an earlier call or timed now."""
    if not file.exists():
        epochs, batch = fit_epochs(row.plan, data, seconds)
        write_json(file, {"row": row.name, "epochs": epochs, "batch_seconds": batch, "planned_seconds": seconds})
    planned: dict[str, Any] = read_json(file)
    return planned


def measure(recipe: Recipe, row: Row, seconds: float, work: Path, seed: int = 0) -> dict[str, Any]:
    """Train, attack and certify: the network's result, as of a recipe, with the number of its epochs."""
    folder = work / recipe.name / folder_name(row.name) / f"seed-{seed}"
    planned = plan_epochs(row, load_data(recipe.data), seconds, folder.with_suffix(".json"))
    print(
        f"{recipe.name}, {row.name}: {planned['epochs']} epochs in about {seconds:.0f} s "
        f"({1000 * planned['batch_seconds']:.1f} ms a batch of {row.plan.batch_size}).",
        flush=True,
    )
    short = replace(row, plan=shorten(row.plan, planned["epochs"]))
    started = time.perf_counter()
    result = measure_network(recipe, short, seed, folder)
    return {**planned, "seconds_of_this_call": time.perf_counter() - started, "result": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", help="a recipe of the package, or the path of one")
    parser.add_argument("--row", help="the beginning of a row's name; the first row without it")
    parser.add_argument("--seconds", type=float, required=True, help="of the training")
    parser.add_argument("--points", type=int, help="test images that are attacked, in place of the recipe's number")
    parser.add_argument("--cifar", help="folder with cifar-10-batches-py, or CIFAR-10 or a part of it as an .npz file")
    parser.add_argument("--work", type=Path, default=Path("runs/gpu"), help="folder for the work in progress")
    parser.add_argument("--out", type=Path, required=True, help="file for the result")
    parser.add_argument("--quick", action="store_true", help="the recipe's quick form: no measurement")
    args = parser.parse_args()
    keep_freed_memory()
    recipe = load_recipe(args.recipe, quick=args.quick)
    if args.points is not None:
        recipe = replace(recipe, points=args.points)
    if args.cifar is not None and not args.quick:
        if Path(args.cifar).is_dir():
            art.config.set_data_path(args.cifar)
        else:
            recipe = replace(recipe, data=args.cifar)
    found = measure(recipe, choose_row(recipe, args.row), args.seconds, args.work)
    command = f"python benchmarks/gpu.py {args.recipe} --seconds {args.seconds:g}"
    write_json(args.out, {**conditions(command), "quick": args.quick, "recipe": recipe.table, **found})
    print(found)


if __name__ == "__main__":
    main()

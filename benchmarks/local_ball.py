"""Does a weak adversary with the local ball reach the strong one, and in what share of its time?

    python benchmarks/local_ball.py digits-search [--workers 2] [--quick]
    python benchmarks/local_ball.py search [--workers 2] [--quick]
    python benchmarks/local_ball.py levers [--workers 2] [--quick]
    python benchmarks/local_ball.py cifar10-search [--workers 2] [--quick]
    python benchmarks/local_ball.py digits [--workers 2] [--quick] [--rows ROW ...]
    python benchmarks/local_ball.py mnist [--workers 2] [--quick] [--rows ROW ...]
    python benchmarks/local_ball.py cifar10 [--workers 2] [--quick] [--rows ROW ...]

Each command runs a recipe, as ``art-robust benchmark`` does: ``cifar10`` the package's own, the others one in recipes/.
``search`` and ``digits-search`` choose schedule and epochs for each training on MNIST and on digits, at one rate, and
``levers`` then compares options of local ball on MNIST with the chosen ones; ``cifar10-search`` compares them on
CIFAR-10 in shorter trainings than those of ``cifar10``. These four judge on training images that none of their rows is
trained on. ``digits``, ``mnist`` and ``cifar10`` compare the trainings on test images, and measure what a recipe cannot
state: how long an epoch of each training takes, relative to an epoch of TRADES-10, or of PGD-10 on CIFAR-10. There the
rows take turns in one process with one thread, and a ratio is the median over rounds.

Each says at its start about how long it takes. MNIST and CIFAR-10 are read from where ART keeps its data. Work in
progress is kept under runs/; the same command continues it. With --rows only these rows of the recipe are trained, and
the networks of others stay in the record: a long comparison can be measured in parts, on several machines.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import format_percent, make_parser
from saving import RESULTS, describe_command, save, table

from art_robust_plugins import RobustTrainer
from art_robust_plugins.checks import check_choice
from art_robust_plugins.data import Dataset, load_data
from art_robust_plugins.experiments.recipes import Recipe, Row, load_recipe, run_recipe
from art_robust_plugins.files import read_json, write_json
from art_robust_plugins.registry import method, parameters_of
from art_robust_plugins.training.methods.adversarial import AdversarialTrainer

Networks = list[dict[str, Any]]

NAMES = {
    "search": "local_ball_mnist_search",
    "levers": "local_ball_mnist_levers",
    "digits-search": "local_ball_digits_search",
    "cifar10-search": "local_ball_cifar10_search",
    "digits": "local_ball_digits",
    "mnist": "local_ball_mnist",
    "cifar10": "local_ball_cifar10",
}
"""The record of each command, and its recipe in recipes/; ``cifar10`` runs one of the package's."""
RECIPES = Path(__file__).parent / "recipes"
ON_CIFAR10 = "cifar10-small"
"""The package's own recipe, which ``cifar10`` runs."""
ON_MNIST = RECIPES / "local_ball_mnist.toml"
ON_HELD_OUT = {
    "digits-search": RECIPES / "local_ball_digits.toml",
    "search": ON_MNIST,
    "levers": ON_MNIST,
    "cifar10-search": ON_CIFAR10,
}
"""The comparison on test images that each search is for. A search judges on images that none of its rows is trained on;
on MNIST and CIFAR-10 none of the comparison is, either."""
TIMED = {"digits": 5000, "mnist": 2000, "cifar10": 512}
"""The largest number of images in a timed epoch, of the commands that measure times."""
MASKED = {"square-beats-white-box", "cross-entropy-misleads"}
"""The flags by which the stages of AutoAttack tell of masked gradients."""
HELD_OUT = 1000
"""The number of training images that a search keeps from training, where they are at most a fifth."""
SETTING = "; "
"""Between the name of a training and its setting, in the rows of the search."""


def create_trainer(row: Row, data: Dataset) -> RobustTrainer:
    """The trainer of a row as it is timed: without a schedule, and without measuring overfitting."""
    parameters = dict(row.plan.parameters)
    if "overfitting" in parameters_of(method(row.plan.method)):
        parameters["overfitting"] = "ignore"
    options = {name: value for name, value in row.plan.options.items() if name not in ("schedule", "milestones")}
    plan = replace(row.plan, parameters=parameters, options=options)
    return plan.trainer(data, seed=0)[0]


def time_epochs(rows: Sequence[Row], data: Dataset, images: int, rounds: int) -> dict[str, list[float]]:
    """The seconds of an epoch of each row in each round; each round begins with the next row."""
    x, y = data.x_train[:images], data.y_train[:images]
    trainers = {row.name: create_trainer(row, data) for row in rows}
    batch_sizes = {row.name: row.plan.batch_size for row in rows}
    names = list(trainers)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for index in range(rounds + 1):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            started = time.perf_counter()
            trainers[name].fit(x, y, batch_size=batch_sizes[name], nb_epochs=1, verbose=False)
            if index:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    return seconds


def write_held_out(path: Path, comparison: Recipe) -> None:
    """Training images of a comparison, and the next ones of its data in place of the test images."""
    data = load_data(comparison.data)
    count = min(HELD_OUT, len(data.x_train) // 5)
    train = comparison.rows[0].plan.train or len(data.x_train) - count
    held_out = slice(train, train + count)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        path,
        x_train=data.x_train[:train],
        y_train=data.y_train[:train],
        x_test=data.x_train[held_out],
        y_test=data.y_train[held_out],
    )


def find_place(network: dict[str, Any]) -> tuple[str, int]:
    """The row and the seed of a network."""
    return network["row"], network["seed"]


def list_networks(recipe: Recipe, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The networks of a recipe's record, with their accuracies within its one threat."""
    (threat,) = recipe.threats
    return [
        {
            "row": result["row"],
            "seed": result["seed"],
            "clean": result["clean"],
            "robust": result["threats"][threat]["robust"],
            "stages": result["threats"][threat]["attacks"],
            "flags": result["threats"][threat]["flags"],
            **{key: result[key] for key in ("training_seconds", "date", "machine")},
        }
        for result in record["results"]
        if "diverged" not in result
    ]


def select_rows(recipe: Recipe, names: Sequence[str] | None) -> Recipe:
    """The recipe with these of its rows.

    Raises:
        ValueError: for a name that no row has.
    """
    known = [row.name for row in recipe.rows]
    for name in names or ():
        check_choice("rows", name, known)
    return recipe if names is None else replace(recipe, rows=tuple(row for row in recipe.rows if row.name in names))


def read_record(path: Path, recipe: Recipe) -> dict[str, Any]:
    """An earlier record of this recipe; an empty one where there is none.

    Raises:
        ValueError: for the record of another recipe.
    """
    if not path.exists():
        return {}
    record: dict[str, Any] = read_json(path)
    then, now = ({**table, "description": ""} for table in (record.get("recipe", {}), recipe.table))
    if then != now:
        raise ValueError(f"rows: {path.name} is the record of another recipe, expected none or one of this recipe.")
    return record


def list_parts(earlier: dict[str, Any], command: str) -> list[dict[str, str]]:
    """The commands that measured the networks of an earlier record, but for this command, each once."""
    if not earlier:
        return []
    parts = [*earlier.get("parts", []), {key: earlier[key] for key in ("command", "date", "machine")}]
    return [part for part in parts if part["command"] != command]


def join_networks(chosen: Recipe, recipe: Recipe, earlier: dict[str, Any], measured: Networks) -> Networks:
    """The networks of an earlier record and those that were measured, in the order of the recipe.

    Of the chosen rows nothing earlier stays, so that a network that diverges now has no number from before.
    """
    again = {(row.name, seed) for row in chosen.rows for seed in row.seeds}
    kept = [network for network in earlier.get("results", {}).get("networks", []) if find_place(network) not in again]
    found = {find_place(network): network for network in [*kept, *measured]}
    order = [(row.name, seed) for row in recipe.rows for seed in row.seeds]
    return [found[place] for place in order if place in found]


def accuracies(networks: Iterable[dict[str, Any]], row: str, attack: str) -> dict[str, str]:
    """The number of seeds, and the accuracies in percent: means over seeds, with the lowest and the highest."""
    runs = [network for network in networks if network["row"] == row]
    columns = {
        title: format_percent([run[key] for run in runs]) for key, title in (("clean", "clean"), ("robust", attack))
    }
    return {"seeds": str(len(runs)), **columns}


def summary(results: dict[str, Any], beside: str = "TRADES-10") -> list[dict[str, str]]:
    """A row for each training that was measured, with its time relative to that of another row."""
    rows = []
    measured = {network["row"] for network in results["networks"]}
    for name, seconds in results["seconds"].items():
        if name not in measured:
            continue
        ratios = [own / other for own, other in zip(seconds, results["seconds"][beside], strict=True)]
        passes = results["passes"].get(name)
        rows.append(
            {
                "training": name,
                "passes forward, backward": "" if passes is None else "{}, {}".format(*passes[:2]),
                **accuracies(results["networks"], name, "AutoAttack"),
                "flagged": count_flagged(results["networks"], name),
                f"time / {beside}": f"{statistics.median(ratios):.2f}",
                "s per 1000 images": f"{1000 * statistics.median(seconds) / results['timed']:.2f}",
            }
        )
    return rows


def count_flagged(networks: Iterable[dict[str, Any]], row: str) -> str:
    """The number of a row's networks with flags of masked gradients, of all of them."""
    runs = [network for network in networks if network["row"] == row]
    if any("flags" not in run for run in runs):
        return "not recorded"
    return f"{sum(not MASKED.isdisjoint(run['flags']) for run in runs)} of {len(runs)}"


def cifar10_summary(results: dict[str, Any]) -> list[dict[str, str]]:
    """The summary on CIFAR-10, where the question is about the price of PGD-10."""
    return summary(results, "PGD-10")


def search_summary(networks: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each setting of a training, or each variant of the local term."""
    names = dict.fromkeys(network["row"] for network in networks)
    return [{"form": name, **accuracies(networks, name, "APGD-CE and APGD-T")} for name in names]


SUMMARIES = {
    "search": search_summary,
    "levers": search_summary,
    "digits-search": search_summary,
    "cifar10-search": search_summary,
    "digits": summary,
    "mnist": summary,
    "cifar10": cifar10_summary,
}
"""The table of each command."""


def choose_settings(networks: list[dict[str, Any]]) -> dict[str, str]:
    """The setting of each training whose networks resist most on the held-out images; of equal ones the first."""
    robust: dict[str, dict[str, list[float]]] = {}
    for network in networks:
        training, _, setting = network["row"].partition(SETTING)
        robust.setdefault(training, {}).setdefault(setting, []).append(network["robust"])
    means = {name: {key: statistics.mean(runs) for key, runs in each.items()} for name, each in robust.items()}
    return {training: max(settings, key=settings.__getitem__) for training, settings in means.items()}


def main() -> None:
    parser = make_parser(__doc__, NAMES, takes_data=False)
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="train only these; the record keeps the others")
    args = parser.parse_args()
    name = NAMES[args.setup]
    recipe = load_recipe(ON_CIFAR10 if args.setup == "cifar10" else RECIPES / f"{name}.toml", quick=args.quick)
    chosen = select_rows(recipe, args.rows)
    if args.rows and args.setup not in TIMED:
        parser.error(f"rows: got some with {args.setup}, expected them with one of {', '.join(TIMED)}")
    earlier = read_record(RESULTS / f"{name}.json", recipe) if args.rows and not args.quick else {}
    out = Path("runs") / name / ("quick" if args.quick else "full")
    if args.setup in ON_HELD_OUT and not args.quick:
        write_held_out(Path(recipe.data), load_recipe(ON_HELD_OUT[args.setup]))
    record = run_recipe(chosen, out, command=f"python benchmarks/local_ball.py {args.setup}", workers=args.workers)
    networks = list_networks(recipe, record)
    results: Any = networks
    if args.setup in TIMED:
        data, times = load_data(recipe.data), out / "seconds.json"
        images = min(128 if args.quick else TIMED[args.setup], len(data.x_train))
        torch.set_num_threads(1)  # the networks are too small for a second thread to pay
        if not times.exists():
            write_json(times, time_epochs(recipe.rows, data, images, 2 if args.quick else 7))
        trainers = {row.name: create_trainer(row, data) for row in recipe.rows}
        passes = {key: list(each.passes) for key, each in trainers.items() if isinstance(each, AdversarialTrainer)}
        networks = join_networks(chosen, recipe, earlier, networks)
        results = {"networks": networks, "seconds": read_json(times), "passes": passes, "timed": images}
        print(f"{len(networks)} of {sum(len(row.seeds) for row in recipe.rows)} networks are measured.")
    print(table(SUMMARIES[args.setup](results)))
    if args.setup in ("digits-search", "search"):
        for training, setting in choose_settings(networks).items():
            print(f"{training}: {setting}")
    if not args.quick:
        parts = list_parts(earlier, describe_command())
        print(save(name, results, recipe=recipe.table, worker_threads=1, **({"parts": parts} if parts else {})))


if __name__ == "__main__":
    main()

"""The comparison of adversarial trainings that local_ball_digits.py and local_ball_mnist.py run, each with its set-up.

Every row has the same network, epochs and batches, in the same engine: PGD-k and TRADES-k, local ball with k steps,
what is left of it without the local term (which is PGD-k), and the TRADES-k and PGD-k that cost the same. Times are
those of whole epochs, taken in turns in one process with one thread when all networks are done; a ratio is the median
over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import art.config
import torch
from art.estimators.classification import PyTorchClassifier
from record import save, table
from torch import nn

from art_robust_plugins import Evaluator, LocalBallTrainer, ThreatModel, TrainingOptions
from art_robust_plugins.checkpoint import load_classifier, save_classifier
from art_robust_plugins.data import Dataset, load_data
from art_robust_plugins.files import read_json, write_json
from art_robust_plugins.models import create_model

PGD: dict[str, Any] = {"local_weight": 0.0}
TRADES: dict[str, Any] = {"local_weight": 0.0, "global_loss": "kl"}
ROWS: dict[str, dict[str, Any]] = {
    "PGD-1": {**PGD, "steps": 1},
    "PGD-2": {**PGD, "steps": 2},
    "PGD-3": {**PGD, "steps": 3},
    "PGD-4": {**PGD, "steps": 4},
    "PGD-10": {**PGD, "steps": 10},
    "TRADES-1": {**TRADES, "steps": 1},
    "TRADES-2": {**TRADES, "steps": 2},
    "TRADES-3": {**TRADES, "steps": 3},
    "TRADES-10": {**TRADES, "steps": 10},
    "local ball, 1 step": {"steps": 1},
    "local ball, 2 steps": {"steps": 2},
    "local ball, 2 steps, local weight 18": {"steps": 2, "local_weight": 18.0},
    "local ball, 2 steps, global term KL": {"steps": 2, "global_loss": "kl"},
    "local ball, 10 steps": {"steps": 10},
}
BESIDE = "TRADES-10"
QUESTION = (
    "PGD-3",
    "TRADES-2",
    "TRADES-3",
    BESIDE,
    "local ball, 1 step",
    "local ball, 2 steps",
    "local ball, 2 steps, local weight 18",
    "local ball, 2 steps, global term KL",
    "local ball, 10 steps",
)
SEARCH: dict[str, dict[str, Any]] = {
    "local ball, 1 step": {},
    "xl not kept within B(x, eps)": {"within_threat": False},
    "global term KL, as in TRADES": {"global_loss": "kl"},
    "radius 0.25": {"radius": 0.25},
    "radius 1": {"radius": 1.0},
    "p(xa) constant": {"constant_target": True},
    "adversary from x itself": {"start": "none"},
    "2 steps": {"steps": 2},
    "2 steps, local term at both": {"steps": 2, "every_iterate": True},
    "2 steps, global term KL": {"steps": 2, "global_loss": "kl"},
    "2 steps, local weight 2": {"steps": 2, "local_weight": 2.0},
    "2 steps, radius 0.25": {"steps": 2, "radius": 0.25},
    "2 steps, clean loss too": {"steps": 2, "clean_weight": 1.0},
    "2 steps, local weight 12": {"steps": 2, "local_weight": 12.0},
    "2 steps, local weight 18": {"steps": 2, "local_weight": 18.0},
    "2 steps, radius 1": {"steps": 2, "radius": 1.0},
    "TRADES-10, to compare with": {"steps": 10, **TRADES},
}
"""What is tried: the default form, and one thing changed in each row. Judged on images of the training set that no row
is trained on."""


@dataclass(frozen=True)
class Setup:
    """What all rows of one table share."""

    data: str
    network: str
    eps: float
    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float
    train: int
    points: int
    timed: int  # images in an epoch whose time is taken
    network_arguments: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)
    context_seeds: tuple[int, ...] = (0, 1, 2)  # of the rows that the question is not about

    @property
    def threat(self) -> ThreatModel:
        return ThreatModel("Linf", self.eps)

    def quick(self) -> Setup:
        return Setup(
            **{
                **asdict(self),
                "epochs": 1,
                "train": 256,
                "points": 8,
                "timed": 128,
                "seeds": (0,),
                "context_seeds": (0,),
            }
        )


def classifier_of(setup: Setup, data: Dataset, seed: int) -> PyTorchClassifier:
    torch.manual_seed(seed)
    network = create_model(setup.network, data.input_shape, data.nb_classes, **setup.network_arguments)
    return PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        data.input_shape,
        data.nb_classes,
        optimizer=torch.optim.Adam(network.parameters(), setup.learning_rate),
        clip_values=(0, 1),
        device_type="cpu",
    )


def trainer_of(setup: Setup, row: str, classifier: PyTorchClassifier, **options: Any) -> LocalBallTrainer:
    settings = {**{**SEARCH, **ROWS}[row], "eps_warmup_epochs": setup.warmup, "overfitting": "ignore"}
    return LocalBallTrainer(classifier, threat=setup.threat, **settings, options=TrainingOptions(**options))


def seconds_per_epoch(setup: Setup, rounds: int) -> dict[str, list[float]]:
    """Of each row in each round, for ``setup.timed`` images; the order turns with the rounds."""
    data = load_data(setup.data)
    x, y = data.x_train[: setup.timed], data.y_train[: setup.timed]
    trainers = {row: trainer_of(setup, row, classifier_of(setup, data, 0), seed=0) for row in ROWS}
    seconds: dict[str, list[float]] = {row: [] for row in ROWS}
    for index in range(rounds + 1):
        names = list(ROWS)[index % len(ROWS) :] + list(ROWS)[: index % len(ROWS)]
        for row in names:
            started = time.perf_counter()
            trainers[row].fit(x, y, batch_size=setup.batch_size, nb_epochs=1, verbose=False)
            if index:  # the first round warms up
                seconds[row].append(time.perf_counter() - started)
    return seconds


def job(setup: Setup, row: str, seed: int, search: bool, data_dir: str, work: Path) -> dict[str, Any]:
    """Train one network and attack it; what is done already is taken up."""
    art.config.set_data_path(data_dir)
    folder = work / f"{row}-{seed}".replace(" ", "-").replace(",", "")
    result_file = folder / "result.json"
    if result_file.exists():
        done: dict[str, Any] = read_json(result_file)
        return done
    data = load_data(setup.data)
    if (folder / "classifier.json").exists():
        classifier = load_classifier(folder)
    else:
        classifier = classifier_of(setup, data, seed)
        steps = setup.epochs * -(-setup.train // setup.batch_size)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(classifier.optimizer, steps)
        kept = {"scheduler_interval": "step", "checkpoint_dir": folder / "training", "resume": True}
        trainer = trainer_of(setup, row, classifier, seed=seed, **kept)
        x, y = data.x_train[: setup.train], data.y_train[: setup.train]
        trainer.fit(x, y, None, setup.batch_size, setup.epochs, scheduler, verbose=False)
        save_classifier(classifier, folder, extra={"row": row, "seed": seed, "history": trainer.history})
    attacks = ["apgd-ce", "apgd-t"] if search else ["standard"]
    evaluator = Evaluator(classifier, setup.threat, attacks=attacks, state_dir=folder / "state", verbose=False)
    x, y = data.x_test[: setup.points], data.y_test[: setup.points]
    if search:
        x, y = (each[setup.train : setup.train + setup.points] for each in (data.x_train, data.y_train))
    report = evaluator.evaluate(x, y)
    result = {
        "row": row,
        "seed": seed,
        "clean": float((classifier.predict(data.x_test, 500).argmax(axis=1) == data.y_test).mean()),
        "robust": report.robust_accuracy,
        "stages": {attack.name: attack.robust_accuracy for attack in report.attacks},
        "flags": [flag.name for flag in report.flags],
    }
    write_json(result_file, result)
    print(json.dumps(result), flush=True)
    return result


def accuracies(networks: list[dict[str, Any]], row: str, attack: str) -> dict[str, str]:
    """In percent, the means over seeds, with the lowest and the highest."""
    runs = [network for network in networks if network["row"] == row]
    shown = {"seeds": str(len(runs))}
    for key, title in {"clean": "clean", "robust": attack}.items():
        values = [100 * run[key] for run in runs]
        spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
        shown[title] = f"{statistics.mean(values):.1f}{spread}"
    return shown


def summary(results: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each training, with its time beside that of TRADES-10."""
    rows = []
    for name in ROWS:
        if name not in results["seconds"]:
            continue
        ratios = [a / b for a, b in zip(results["seconds"][name], results["seconds"][BESIDE], strict=True)]
        rows.append(
            {
                "training": name,
                "passes forward, backward": "{}, {}".format(*results["passes"][name][:2]),
                **accuracies(results["networks"], name, "AutoAttack"),
                f"time / {BESIDE}": f"{statistics.median(ratios):.2f}",
                "s per 1000 images": f"{1000 * statistics.median(results['seconds'][name]) / results['timed']:.2f}",
            }
        )
    return rows


def search_summary(networks: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each form that was tried."""
    return [{"form": row, **accuracies(networks, row, "APGD-CE and APGD-T")} for row in SEARCH]


def run(name: str, setup: Setup, description: str | None) -> None:
    """The command line of a comparison."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if setup.data == "mnist":
        parser.add_argument("--data", default=art.config.ART_DATA_PATH, help="folder with mnist.npz")
    parser.add_argument("--workers", type=int, default=2)
    if setup.data == "mnist":  # the digits are all trained on
        parser.add_argument("--search", action="store_true", help="the forms of the local term, under APGD-CE and -T")
    parser.add_argument("--quick", action="store_true", help="a minute, and not recorded")
    args = parser.parse_args()
    search = getattr(args, "search", False)
    data_dir = getattr(args, "data", art.config.ART_DATA_PATH)
    art.config.set_data_path(data_dir)
    setup = setup.quick() if args.quick else setup
    cases = [(row, seed) for seed in setup.seeds for row in ROWS if seed in setup.context_seeds or row in QUESTION]
    if search:
        cases, name = [(row, 0) for row in SEARCH], f"{name}_search"
    work = Path("runs") / name / ("quick" if args.quick else "full")
    torch.set_num_threads(1)  # the networks are too small for a second thread to pay
    with ProcessPoolExecutor(args.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        jobs = [pool.submit(job, setup, *case, search, data_dir, work) for case in cases]
        networks = [each.result() for each in jobs]
    results: Any = networks
    if not search:
        data, times = load_data(setup.data), work / "seconds.json"
        passes = {row: list(trainer_of(setup, row, classifier_of(setup, data, 0)).passes) for row in ROWS}
        if not times.exists():
            write_json(times, seconds_per_epoch(setup, 2 if args.quick else 7))
        results = {"networks": networks, "seconds": read_json(times), "passes": passes, "timed": setup.timed}
    print(table(search_summary(results) if search else summary(results)))
    if not args.quick:
        print(save(name, results, setup=asdict(setup), worker_threads=1))

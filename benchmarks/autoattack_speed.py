"""The time of the standard evaluation: our AutoAttack, the reference, torchattacks (100 steps) and ART's own.

    python benchmarks/autoattack_speed.py [--quick] [--threads 2] [--data DIR] [--cifar FILE.npz] [--art] [--device cpu]

Each network is trained adversarially for a short time. The first test images that it classifies correctly are then
attacked at the two radii that leave about half and (of more images) about 2 % of them. All run on the same points in
one process, in turns; verdicts, diagnostics and reports are not timed. The verdicts of ours and the reference's are
compared point by point. A second table has the images that passed through the network, a third one each stage. MNIST
and CIFAR-10 are left out where their data are not given. ART's AutoAttack is another ensemble, needs a package that ART
does not declare (multiprocess), and takes many times as long: with --art it runs on the digits, once.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import art
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from saving import save, table
from torch import nn
from training_step import with_steady_memory

from art_robust_plugins import Evaluator, ThreatModel
from art_robust_plugins.data import load_data
from art_robust_plugins.models import create_model
from art_robust_plugins.training import PGDTrainer, TrainingOptions

SHARES = (0.5, 0.02)
# Halvings of an interval of radii; robust accuracy need only be near the share.
SEARCH = 7
BATCH = 250


@dataclass(frozen=True)
class Case:
    """A network, how it is trained, how many test images are attacked at each radius, and how often."""

    data: str
    network: str
    train_eps: float
    epochs: int
    images: int
    points: tuple[int, int]
    rounds: int
    arguments: dict[str, Any]


DIGITS = Case("digits", "small-cnn", 0.1, 15, 1437, (100, 200), 3, {})
MNIST = Case("mnist", "small-cnn", 0.15, 2, 10_000, (40, 200), 1, {})
CIFAR = Case("cifar10", "wide-resnet", 2 / 255, 4, 5_000, (40, 200), 1, {"depth": 10, "widen_factor": 1})


def train_network(case: Case, data: Any, device: str) -> PyTorchClassifier:
    torch.manual_seed(0)
    network = create_model(case.network, data.x_train.shape[1:], data.nb_classes, **case.arguments)
    classifier = PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        data.x_train.shape[1:],
        data.nb_classes,
        optimizer=torch.optim.Adam(network.parameters(), 2e-3),
        clip_values=(0, 1),
        device_type=device,
    )
    trainer = PGDTrainer(
        classifier, threat=ThreatModel("Linf", case.train_eps), steps=3, options=TrainingOptions(seed=0)
    )
    trainer.fit(data.x_train[: case.images], data.y_train[: case.images], nb_epochs=case.epochs, verbose=False)
    return classifier


def evaluate(classifier: PyTorchClassifier, eps: float, x: Any, y: Any, **arguments: Any) -> Any:
    arguments = {"batch_size": BATCH, "verbose": False, **arguments}
    return Evaluator(classifier, ThreatModel("Linf", eps), **arguments).evaluate(x, y)


def radius(classifier: PyTorchClassifier, share: float, x: Any, y: Any) -> float:
    """Find the radius at which Auto-PGD leaves about this share of the points."""
    low, high = 0.0, 0.5
    for _ in range(SEARCH):
        middle = (low + high) / 2
        left = evaluate(classifier, middle, x, y, attacks="fast").robust_accuracy
        low, high = (middle, high) if left > share else (low, middle)
    # At the upper end at most this share is left, but at least one point should be.
    return high if share > 0.1 else low


def run_art(classifier: PyTorchClassifier, eps: float, x: Any, y: Any) -> tuple[float, float]:
    """Seconds and robust accuracy of ART's AutoAttack."""
    from art.attacks.evasion import AutoAttack

    started = time.perf_counter()
    attack = AutoAttack(classifier, norm=np.inf, eps=eps, eps_step=eps / 4, batch_size=BATCH)
    found = attack.generate(x, y)
    seconds = time.perf_counter() - started
    return seconds, float((classifier.predict(found).argmax(axis=1) == y).mean())


def calls(report: Any) -> str:
    """The images that passed through the network, forward and backward."""
    kinds = ("forward", "backward")
    counts = [sum(getattr(result, f"{kind}_calls") for result in report.attacks) for kind in kinds]
    return " / ".join(f"{count:,}" for count in counts)


RUNS: dict[str, dict[str, Any]] = {
    "ours": {"attacks": "standard"},
    "reference": {"attacks": "standard", "backend": "reference"},
    "torchattacks": {"attacks": "torchattacks-autoattack"},
}


def measure(case: Case, data: Any, args: argparse.Namespace) -> list[list[dict[str, Any]]]:
    """The rows of the tables."""
    classifier = train_network(case, data, args.device)
    right = (classifier.predict(data.x_test).argmax(axis=1) == data.y_test).nonzero()[0]
    rows: list[dict[str, Any]] = []
    passes: list[dict[str, Any]] = []
    stages: list[dict[str, Any]] = []
    for share, points in zip(SHARES, case.points, strict=True):
        x, y = data.x_test[right[:points]], data.y_test[right[:points]]
        eps = radius(classifier, share, x, y)
        taken: dict[str, list[float]] = {name: [] for name in RUNS}
        for turn in range(case.rounds):
            names = list(RUNS)[turn % 3 :] + list(RUNS)[: turn % 3]
            reports = {name: evaluate(classifier, eps, x, y, **RUNS[name]) for name in names}
            for name, report in reports.items():
                taken[name].append(sum(result.seconds for result in report.attacks))
        ours, theirs = reports["ours"], reports["reference"]
        row: dict[str, Any] = {"network": f"{case.data} {case.network}", "points": len(x), "rounds": case.rounds}
        row["eps"] = round(eps, 4)
        row["robust, ours"] = f"{ours.robust_accuracy:.1%}"
        row["verdicts that differ from the reference's"] = int((ours.robust != theirs.robust).sum())
        for name in RUNS:
            row[f"{name}, s"] = round(statistics.median(taken[name]), 2)
        for name in ("reference", "torchattacks"):
            pairs = zip(taken[name], taken["ours"], strict=True)
            row[f"{name} / ours, time"] = round(statistics.median(theirs / own for theirs, own in pairs), 2)
        row["robust, torchattacks"] = f"{reports['torchattacks'].robust_accuracy:.1%}"
        result = run_art(classifier, eps, x, y) if args.art and case.data == "digits" else None
        row["ART, s"], row["robust, ART"] = (
            ("not run", "not run") if result is None else (round(result[0], 1), f"{result[1]:.1%}")
        )
        passes.append({key: row[key] for key in ("network", "eps")} | {name: calls(reports[name]) for name in RUNS})
        rows.append(row)
        print(row, flush=True)
        for own, other in zip(ours.attacks, theirs.attacks, strict=True):
            stages.append(
                {
                    "network": row["network"],
                    "eps": row["eps"],
                    "stage": own.name,
                    "left": f"{own.robust_accuracy:.1%}",
                    "ours, s": round(own.seconds, 2),
                    "reference, s": round(other.seconds, 2),
                    "ours, forward / backward": f"{own.forward_calls:,} / {own.backward_calls:,}",
                    "reference, forward / backward": f"{other.forward_calls:,} / {other.backward_calls:,}",
                }
            )
    return [rows, passes, stages]


def main() -> None:
    with_steady_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--data", help="folder with mnist.npz")
    parser.add_argument("--cifar", help="CIFAR-10, or a part, as an .npz file with x_train, y_train, x_test and y_test")
    parser.add_argument("--art", action="store_true", help="ART's AutoAttack as well")
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--quick", action="store_true", help="a minute or two, 30 digits; not recorded")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cases = [(replace(DIGITS, epochs=3, points=(30, 30), rounds=1) if args.quick else DIGITS, load_data("digits"))]
    if args.data is not None and not args.quick:
        art.config.set_data_path(args.data)
        cases.append((MNIST, load_data("mnist")))
    if args.cifar is not None and not args.quick:
        cases.append((CIFAR, load_data(Path(args.cifar))))
    results: dict[str, list[dict[str, Any]]] = {"whole": [], "images forward / backward": [], "stages": []}
    for case, data in cases:
        for so_far, found in zip(results.values(), measure(case, data, args), strict=True):
            so_far.extend(found)
    for name, rows in results.items():
        print(f"\n{name}\n\n{table(rows)}")
    if not args.quick:
        print(save("autoattack_speed", results))


if __name__ == "__main__":
    main()

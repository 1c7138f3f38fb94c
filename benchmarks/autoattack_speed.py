"""What the standard evaluation costs: our AutoAttack beside the reference, torchattacks (100 steps) and ART's own.

    python benchmarks/autoattack_speed.py [--quick] [--threads 2] [--data DIR] [--cifar FILE.npz] [--art] [--device cpu]

Each network is trained adversarially for a short time, then attacked at the two radii that leave about half and about
2 % of the points. All run on the same points in one process, in turns; verdicts, diagnostics and reports are not timed.
The verdicts of ours and the reference's are compared point by point. A second table has each stage. MNIST and CIFAR-10
are left out where their data are not given. ART's AutoAttack is another ensemble, needs a package that ART does not
declare (multiprocess), and takes many times as long: it runs with --art alone.
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
from record import save, table
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
    """A network, how it is trained, and how many test images are attacked."""

    data: str
    network: str
    train_eps: float
    epochs: int
    images: int
    points: int
    arguments: dict[str, Any]


DIGITS = Case("digits", "small-cnn", 0.1, 15, 1437, 250, {})
MNIST = Case("mnist", "small-cnn", 0.15, 2, 20_000, 250, {})
CIFAR = Case("cifar10", "wide-resnet", 8 / 255, 4, 10_000, 100, {"depth": 10, "widen_factor": 2})


def trained(case: Case, data: Any, device: str) -> PyTorchClassifier:
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


def evaluated(classifier: PyTorchClassifier, eps: float, x: Any, y: Any, **arguments: Any) -> Any:
    arguments = {"batch_size": BATCH, "verbose": False, **arguments}
    return Evaluator(classifier, ThreatModel("Linf", eps), **arguments).evaluate(x, y)


def radius(classifier: PyTorchClassifier, share: float, x: Any, y: Any) -> float:
    """The radius at which about this share of the points is left by Auto-PGD."""
    low, high = 0.0, 0.5
    for _ in range(SEARCH):
        middle = (low + high) / 2
        left = evaluated(classifier, middle, x, y, attacks="fast").robust_accuracy
        low, high = (middle, high) if left > share else (low, middle)
    # At the upper end no more than the share is left; a point should be.
    return high if share > 0.1 else low


def run_art(classifier: PyTorchClassifier, eps: float, x: Any, y: Any) -> tuple[float, float] | None:
    """Seconds and robust accuracy of ART's AutoAttack; None where it cannot be imported."""
    try:
        from art.attacks.evasion import AutoAttack
    except ImportError:
        return None
    started = time.perf_counter()
    attack = AutoAttack(classifier, norm=np.inf, eps=eps, eps_step=eps / 4, batch_size=BATCH)
    found = attack.generate(x, y)
    seconds = time.perf_counter() - started
    return seconds, float((classifier.predict(found).argmax(axis=1) == y).mean())


RUNS: dict[str, dict[str, Any]] = {
    "ours": {"attacks": "standard"},
    "reference": {"attacks": "standard", "backend": "reference"},
    "torchattacks": {"attacks": "torchattacks-autoattack"},
}


def measured(case: Case, data: Any, args: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    classifier = trained(case, data, args.device)
    x, y = data.x_test[: case.points], data.y_test[: case.points]
    rows, stages = [], []
    for share in SHARES:
        eps = radius(classifier, share, x, y)
        taken: dict[str, list[float]] = {name: [] for name in RUNS}
        for turn in range(1 if args.quick else args.rounds):
            names = list(RUNS)[turn % 3 :] + list(RUNS)[: turn % 3]
            reports = {name: evaluated(classifier, eps, x, y, **RUNS[name]) for name in names}
            for name, report in reports.items():
                taken[name].append(sum(result.seconds for result in report.attacks))
        ours, theirs = reports["ours"], reports["reference"]
        row: dict[str, Any] = {"network": f"{case.data} {case.network}", "points": len(x), "eps": round(eps, 4)}
        row["robust, ours"] = f"{ours.robust_accuracy:.1%}"
        row["verdicts that differ from the reference's"] = int((ours.robust != theirs.robust).sum())
        for name, report in reports.items():
            row[f"{name}, s"] = round(statistics.median(taken[name]), 2)
            calls = [
                sum(getattr(result, f"{kind}_calls") for result in report.attacks) for kind in ("forward", "backward")
            ]
            row[f"{name}, images forward / backward"] = " / ".join(f"{count:,}" for count in calls)
        for name in ("reference", "torchattacks"):
            pairs = zip(taken[name], taken["ours"], strict=True)
            row[f"{name} / ours, time"] = round(statistics.median(theirs / own for theirs, own in pairs), 2)
        row["robust, torchattacks"] = f"{reports['torchattacks'].robust_accuracy:.1%}"
        if args.art:
            result = run_art(classifier, eps, x, y)
            row["ART, s"] = "not installed" if result is None else round(result[0], 2)
            row["robust, ART"] = "not installed" if result is None else f"{result[1]:.1%}"
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
    return rows, stages


def main() -> None:
    with_steady_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", help="folder with mnist.npz")
    parser.add_argument("--cifar", help="CIFAR-10 as an .npz file with x_train, y_train, x_test and y_test")
    parser.add_argument("--art", action="store_true", help="ART's AutoAttack as well")
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--quick", action="store_true", help="a minute or two, 30 digits; not recorded")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cases = [(replace(DIGITS, epochs=3, points=30) if args.quick else DIGITS, load_data("digits"))]
    if args.data is not None and not args.quick:
        art.config.set_data_path(args.data)
        cases.append((MNIST, load_data("mnist")))
    if args.cifar is not None and not args.quick:
        cases.append((CIFAR, load_data(Path(args.cifar))))
    results: dict[str, list[dict[str, Any]]] = {"whole": [], "stages": []}
    for case, data in cases:
        rows, stages = measured(case, data, args)
        results["whole"] += rows
        results["stages"] += stages
    for name, rows in results.items():
        print(f"\n{name}\n\n{table(rows)}")
    if not args.quick:
        print(save("autoattack_speed", results, rounds=args.rounds))


if __name__ == "__main__":
    main()

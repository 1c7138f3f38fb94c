"""BANG's MNIST experiment: LeNet without (R0) and with BANG (B1), judged by weak and strong attacks.

    python benchmarks/bang_mnist.py --data DIR [--workers 2] [--quick]

The set-up is the paper's (Rozsa et al., arXiv 1612.00138): LeNet, pixels / 256, batch 64, 10,000 iterations, SGD with
learning rate .01 * (1 + 1e-4 it)^-.75 (twice that for biases), momentum .9, weight decay 5e-4; BANG with beta 1,
epsilon .815, ratio 1. DIR holds mnist.npz as ART's loader keeps it. Clean accuracy is on all 10,000 test images,
accuracy under attack on the first ones (see POINTS). This is no recipe because of the optimizer's groups, and because
iterations are counted instead of epochs. Work in progress is kept under runs/bang_mnist; the same command continues it.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from comparison import make_parser, measure_once, network_folder, run_jobs, train_once, work_folder
from saving import save, table
from torch import Tensor, nn

from art_robust_plugins import (
    BANGTrainer,
    EvaluationReport,
    Evaluator,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
)
from art_robust_plugins.bridge import EstimatorModule
from art_robust_plugins.data import load_data
from art_robust_plugins.models import LeNet

METHODS = {"R0": (StandardTrainer, {}), "B1": (BANGTrainer, {"beta": 1.0, "epsilon": 0.815, "ratio": 1.0})}
# The number of test images that are attacked at each eps. A robust image costs about 10,000 passes, and at the smallest
# eps nearly all are robust: fewer images there keep this within two hours on two cores.
POINTS = {0.1: 1000, 0.15: 1000, 0.05: 250}
GRADIENT_POINTS = 1000
NAMES = {
    "clean": "correct, clean",
    "zero gradients": "with a loss gradient of exactly 0",
    "fgsm": "correct under FGSM",
    "pgd-20": "correct under PGD-20",
    "apgd-t": "correct under APGD-T",
    "autoattack": "correct under AutoAttack (standard)",
}


class Iterations:
    """Batches counted in iterations instead of passes over the data: an epoch has ``steps`` batches."""

    def __init__(self, x: Tensor, y: Tensor, batch_size: int, steps: int) -> None:
        self.x, self.y, self.batch_size, self.steps = x, y, batch_size, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        needed = self.steps * self.batch_size
        orders = [torch.randperm(len(self.x)) for _ in range(-(-needed // len(self.x)))]
        for rows in torch.cat(orders)[:needed].split(self.batch_size):
            yield self.x[rows], self.y[rows]


def build_lenet() -> PyTorchClassifier:
    # Images are pixel / 255; the paper's are pixel / 256. channels_last is the faster layout for LeNet on a CPU.
    network = LeNet().to(memory_format=torch.channels_last)
    biases = [p for name, p in network.named_parameters() if name.endswith("bias")]
    weights = [p for name, p in network.named_parameters() if not name.endswith("bias")]
    groups = [{"params": weights, "lr": 0.01}, {"params": biases, "lr": 0.02}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=5e-4)
    return PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        (1, 28, 28),
        10,
        optimizer=optimizer,
        clip_values=(0, 1),
        preprocessing=(0.0, 256 / 255),
    )


def train_network(method: str, seed: int, folder: Path, quick: bool) -> PyTorchClassifier:
    """Train the LeNet of a method, or load it."""

    def train(classifier: PyTorchClassifier, options: TrainingOptions) -> RobustTrainer:
        data = load_data("mnist")
        scheduler = torch.optim.lr_scheduler.LambdaLR(classifier.optimizer, lambda it: (1 + 1e-4 * it) ** -0.75)
        kind, parameters = METHODS[method]
        trainer: RobustTrainer = kind(classifier, options=options, **parameters)
        x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
        batches = Iterations(x, y, 64, 20 if quick else 1000)
        trainer.fit_loader(batches, nb_epochs=10, scheduler=scheduler, verbose=False)
        return trainer

    classifier = train_once(folder, build_lenet, train, seed=seed, method=method)
    classifier.model.to(memory_format=torch.channels_last)
    return classifier


def measure_accuracy(classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> float:
    return float((classifier.predict(x, batch_size=1000).argmax(axis=1) == y).mean())


def measure_zero_gradients(classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray) -> float:
    """The share of images whose loss gradient is exactly zero in float32: the plainest sign of masking."""
    images = torch.from_numpy(x).requires_grad_()
    logits = EstimatorModule(classifier)(images)
    loss = nn.functional.cross_entropy(logits, torch.from_numpy(y), reduction="sum")
    (gradient,) = torch.autograd.grad(loss, images)
    return float((gradient.flatten(1).abs().amax(dim=1) == 0).float().mean())


def run_job(method: str, seed: int, eps: list[float], work: Path, quick: bool) -> dict[str, Any]:
    """Train one network, and measure it on clean images and under each attack at each eps."""
    folder = network_folder(work, method, seed)

    def measure() -> dict[str, Any]:
        classifier, data = train_network(method, seed, folder, quick), load_data("mnist")
        few = slice(GRADIENT_POINTS)
        result = {
            "method": method,
            "seed": seed,
            "clean": measure_accuracy(classifier, data.x_test, data.y_test),
            "zero gradients": measure_zero_gradients(classifier, data.x_test[few], data.y_test[few]),
        }
        for each in eps:
            points = slice(50 if quick else POINTS[each])
            result |= attack_network(classifier, data.x_test[points], data.y_test[points], each, folder)
        return result

    return measure_once(folder, measure)


def attack_network(
    classifier: PyTorchClassifier, x: np.ndarray, y: np.ndarray, eps: float, folder: Path
) -> dict[str, Any]:
    """Accuracy under each attack at one eps.

    APGD-T attacks every point once: within AutoAttack the points that APGD-CE left, afterwards those that it broke.
    """

    def evaluate(attacks: str | list[str], rows: np.ndarray) -> EvaluationReport:
        label = attacks if isinstance(attacks, str) else "-".join(attacks)
        state = folder / f"{label}-{eps}"
        evaluator = Evaluator(classifier, ThreatModel("Linf", eps), attacks=attacks, state_dir=state, verbose=False)
        return evaluator.evaluate(x[rows], y[rows])

    every = np.arange(len(x))
    weak = evaluate(["fgsm", "pgd-20"], every)
    standard = evaluate("standard", every)
    stages = {attack.name: attack for attack in standard.attacks}
    correct = classifier.predict(x).argmax(axis=1) == y
    broken_by_ce = np.flatnonzero(correct & ~stages["apgd-ce"].robust)
    left = int(stages["apgd-t"].robust.sum())
    if len(broken_by_ce):
        left += int(evaluate("apgd-t", broken_by_ce).robust.sum())
    result = {attack.name: attack.robust_accuracy for attack in weak.attacks}
    result |= {"apgd-t": left / len(x), "autoattack": standard.robust_accuracy, "clean": weak.clean_accuracy}
    return {
        **{f"{attack} {eps}": value for attack, value in result.items()},
        f"stages {eps}": {stage: attack.robust_accuracy for stage, attack in stages.items()},
        f"flags {eps}": sorted({flag.name for report in (weak, standard) for flag in report.flags}),
    }


def summary(results: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each measure, a column for each method: mean over seeds (lowest to highest), in percent."""
    measures = [key for key, value in results[0].items() if isinstance(value, float) and not key.startswith("clean ")]
    rows = []
    for measure in sorted(measures, key=lambda name: float(name.split()[-1]) if name[-1].isdigit() else 0.0):
        name, _, eps = measure.rpartition(" ") if measure[-1].isdigit() else (measure, "", "")
        images = POINTS[float(eps)] if eps else {"clean": 10_000, "zero gradients": GRADIENT_POINTS}[name]
        row = {"eps": eps or "0", "images": f"{images:,}", "share of images, %": NAMES[name]}
        for method in METHODS:
            values = [100 * run[measure] for run in results if run["method"] == method]
            row[method] = f"{statistics.mean(values):.2f} ({min(values):.1f} to {max(values):.1f})"
        rows.append(row)
    return rows


def main() -> None:
    args = make_parser(__doc__).parse_args()
    seeds, eps = ((0,), list(POINTS)[:1]) if args.quick else ((0, 1, 2), list(POINTS))
    work = work_folder("bang_mnist", args.quick)
    threads = max(1, (os.cpu_count() or 1) // args.workers)
    cases = [(method, seed, eps, work, args.quick) for seed in seeds for method in METHODS]
    results = run_jobs(run_job, cases, data=args.data, workers=args.workers, threads=threads)
    print(table(summary(results)))
    if not args.quick:
        print(save("bang_mnist", results, worker_threads=threads))


if __name__ == "__main__":
    main()

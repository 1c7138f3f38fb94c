"""Lipschitz-margin training on MNIST: what is certified, what an attack leaves, and what each lever gives.

    python benchmarks/lipschitz_mnist.py --data DIR [--workers 2] [--quick]

The paper's set-up (Tsuzuku, Sato, Sugiyama, arXiv 1802.04034): the network 2c2f, Adam 1e-3, batches of 50, 20 epochs,
He initial weights, inputs in [0, 1], c = 1. The rows after it change one thing more each. Clean accuracy, certified
accuracy and accuracy under PGD-100 (L2, one random start, steps of 2.5 eps / 100) are those of all 10,000 test images;
what broke at a smaller eps counts as broken, and what is certified is not attacked. DIR holds mnist.npz as ART's loader
keeps it. Work in progress is kept under runs/lipschitz_mnist, and taken up again when restarted.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import art.config
import torch
from art.estimators.classification import PyTorchClassifier
from record import save, table
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins.bridge import EstimatorModule
from art_robust_plugins.checkpoint import load_classifier, save_classifier
from art_robust_plugins.data import load_data
from art_robust_plugins.files import read_json, write_json
from art_robust_plugins.lipschitz import PyTorchLipschitzCertifier
from art_robust_plugins.models import create_model
from art_robust_plugins.threat import ThreatModel
from art_robust_plugins.training import LipschitzMarginTrainer, RobustTrainer, StandardTrainer, TrainingOptions

RADII = (0.3, 0.5, 1.0, 1.58)
WORK = Path("runs/lipschitz_mnist")


@dataclass(frozen=True)
class Recipe:
    """One row: how a network is made and trained."""

    what: str
    c: float | None = 1.0  # None is plain training
    warmup: int = 0  # epochs in which c grows from 0
    margin: str = "sample"
    decay: bool = False  # a cosine down to 0
    init: str = "he"
    activation: str = "relu"
    epochs: int = 20
    seeds: tuple[int, ...] = (0, 1, 2)


PAPER = Recipe("the paper's set-up, c = 1")
LARGER = replace(PAPER, what="c = 2", c=2.0, seeds=(0,))
DECAYED = replace(LARGER, what="and the learning rate falls to 0", decay=True, seeds=(0, 1, 2))
ORTHOGONAL = replace(DECAYED, what="and orthogonal initial weights", init="orthogonal", seeds=(0,))
MINMAX = replace(ORTHOGONAL, what="and MinMax for ReLU", activation="minmax")
LONGER = replace(MINMAX, what="MinMax as above, 60 epochs", epochs=60, seeds=(0, 1, 2))
RECIPES = {
    "plain": replace(PAPER, what="plain training", c=None),
    "paper": PAPER,
    "larger c": LARGER,
    "decay": DECAYED,
    "orthogonal": ORTHOGONAL,
    "minmax": MINMAX,
    "ramp": replace(MINMAX, what="MinMax as above, c growing over 10 epochs", warmup=10),
    "per class": replace(MINMAX, what="MinMax as above, a margin for each class (EMMA)", margin="class"),
    "longer": LONGER,
}


def trained(recipe: Recipe, seed: int, folder: Path, quick: bool) -> PyTorchClassifier:
    if (folder / "classifier.json").exists():
        return load_classifier(folder)
    data = load_data("mnist")
    torch.manual_seed(seed)
    network = create_model("2c2f", data.input_shape, 10, activation=recipe.activation, init=recipe.init)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    classifier = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), data.input_shape, 10, optimizer=optimizer, clip_values=(0, 1), device_type="cpu"
    )
    count, epochs = (2000, 2) if quick else (len(data.x_train), recipe.epochs)
    steps = epochs * -(-count // 50)
    scheduler = None
    if recipe.decay:
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    options = TrainingOptions(seed=seed, scheduler_interval="step", checkpoint_dir=folder / "training", resume=True)
    trainer: RobustTrainer
    if recipe.c is None:
        trainer = StandardTrainer(classifier, options=options)
    else:
        settings: dict[str, Any] = {"c": recipe.c, "c_warmup_epochs": recipe.warmup, "margin": recipe.margin}
        trainer = LipschitzMarginTrainer(classifier, **settings, options=options)
    trainer.fit(
        data.x_train[:count],
        data.y_train[:count],
        batch_size=50,
        nb_epochs=epochs,
        scheduler=scheduler,
        verbose=False,
    )
    save_classifier(classifier, folder, extra={"seed": seed, "history": trainer.history})
    return classifier


def attacked(classifier: PyTorchClassifier, x: Tensor, y: Tensor, eps: float, steps: int = 100) -> Tensor:
    """Which images L2 PGD on the cross-entropy leaves correct: bool [N]."""
    module, threat = EstimatorModule(classifier, unit_range=False), ThreatModel("L2", eps)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    left = [torch.zeros(0, dtype=torch.bool)]
    for images, labels in zip(x.split(500), y.split(500), strict=True):
        moved = threat.ascend(
            lambda z, labels=labels: functional.cross_entropy(module(z), labels, reduction="sum"),
            images,
            threat.random_start(images, 0.0, 1.0, torch.Generator().manual_seed(0)),
            steps=steps,
            step_size=2.5 * eps / steps,
            low=0.0,
            high=1.0,
        )
        with torch.no_grad():
            left.append(module(moved).argmax(dim=1) == labels)
    return torch.cat(left)


def job(name: str, seed: int, data_dir: str, quick: bool) -> dict[str, Any]:
    """Train one network, or load it, and measure it."""
    art.config.set_data_path(data_dir)
    folder = WORK / ("quick" if quick else "full") / f"{name}-{seed}".replace(" ", "-")
    result_file = folder / "result.json"
    if result_file.exists():
        result: dict[str, Any] = read_json(result_file)
        return result
    classifier, data = trained(RECIPES[name], seed, folder, quick), load_data("mnist")
    count = 200 if quick else len(data.x_test)
    x, y = data.x_test[:count], data.y_test[:count]
    certifier = PyTorchLipschitzCertifier.from_classifier(classifier)
    prediction, radius = certifier.certify(x, 1000)
    correct = prediction == y
    images, labels = torch.from_numpy(x), torch.from_numpy(y)
    standing = torch.from_numpy(correct)
    result = {"recipe": name, "seed": seed, "clean": float(correct.mean())}
    for eps in RADII:
        certified = torch.from_numpy(correct & (radius >= eps))
        # What broke in a smaller ball is broken in a larger one, and what is proven no attack can break.
        open_ones = (standing & ~certified).nonzero().flatten()
        standing[open_ones] = attacked(classifier, images[open_ones], labels[open_ones], eps)
        result |= {
            f"certified {eps}": float(certified.double().mean()),
            f"pgd-100 {eps}": float(standing.double().mean()),
        }
    result["bound"] = certifier.lipschitz_report().lipschitz
    write_json(result_file, result)
    print(json.dumps(result), flush=True)
    return result


def summary(results: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each recipe: means over seeds in percent, with the lowest and highest where there are several."""
    rows = []
    for name, recipe in RECIPES.items():
        runs = [run for run in results if run["recipe"] == name]
        if not runs:
            continue

        def shown(key: str, spread: bool = False, runs: list[dict[str, Any]] = runs) -> str:
            values = [100 * run[key] for run in runs]
            mean = f"{statistics.mean(values):.1f}"
            return f"{mean} ({min(values):.1f} to {max(values):.1f})" if spread and len(values) > 1 else mean

        row = {"training": recipe.what, "seeds": str(len(runs)), "clean": shown("clean")}
        for eps in RADII:
            last = eps == RADII[-1]
            row[f"{eps}: PGD-100"] = shown(f"pgd-100 {eps}", last)
            row[f"{eps}: certified"] = shown(f"certified {eps}", last)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=art.config.ART_DATA_PATH, help="folder with mnist.npz")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--recipes", nargs="+", default=list(RECIPES), choices=list(RECIPES))
    parser.add_argument("--quick", action="store_true", help="a minute, and not recorded: one seed, few images")
    args = parser.parse_args()
    jobs = [(name, seed) for name in args.recipes for seed in RECIPES[name].seeds if not args.quick or seed == 0]
    # The network is too small for a second thread to pay.
    with ProcessPoolExecutor(args.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(job, *each, args.data, args.quick) for each in jobs]
        results = [future.result() for future in futures]
    print(table(summary(results)))
    if not args.quick and args.recipes == list(RECIPES):
        print(save("lipschitz_mnist", results, worker_threads=1))


if __name__ == "__main__":
    main()

"""Does layerwise adversarial training regularise, when images are few and when they are not?

    python benchmarks/layerwise.py digits [--workers 2] [--quick]
    python benchmarks/layerwise.py mnist --data DIR [--workers 2] [--quick]

Layerwise adversarial training (Sankaranarayanan and others, arXiv 1705.07819) claims to regularise better than dropout.
This benchmark trains one network six ways, on few images and on many:

- plain training;
- dropout of the hidden layer;
- FGSM adversarial training: half the loss at x plus half the loss at x + eps * sign(gradient);
- layerwise perturbations of the convolutions' outputs, at two eps, and at the larger one of the hidden layer's too.

Every network is measured on all test images clean and under noise, and on the first ones under standard AutoAttack at
Linf 0.1. The digits are trained with three seeds, MNIST with one. This is no recipe because each seed trains on other
images. DIR holds mnist.npz as ART's loader keeps it. Work in progress is kept under runs/; the same command continues
it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import comparison
import torch
from art.estimators.classification import PyTorchClassifier
from comparison import MNIST_NETWORK, format_percent
from saving import save, table
from torch import nn

from art_robust_plugins import (
    Evaluator,
    LayerwiseAdversarialTrainer,
    LocalBallTrainer,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
)
from art_robust_plugins.data import load_data
from art_robust_plugins.models import create_model

ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout 0.5": {"dropout": 0.5},
    "FGSM": {"fgsm": True},
    "layerwise, eps 0.1": {"eps": 0.1},
    "layerwise, eps 0.3": {"eps": 0.3},
    "layerwise, eps 0.3, hidden layer too": {"eps": 0.3, "hidden": True},
}


@dataclass(frozen=True, kw_only=True)
class Setup(comparison.Setup):
    """The settings that all rows of a table share."""

    hidden: str = "layers.7"  # the network's hidden linear layer
    eps: float = 0.1
    noise: float = 0.3
    train: dict[int, int]  # images to train on -> epochs

    def quick(self) -> Setup:
        return replace(self, train={200: 1}, points=8, seeds=(0,))


SETUPS = {
    "digits": Setup(data="digits", train={100: 200, 1437: 30}, points=150),
    "mnist": Setup(data="mnist", network_arguments=MNIST_NETWORK, train={500: 60, 20_000: 5}, seeds=(0,)),
}


def train_network(setup: Setup, row: str, images: int, seed: int, folder: Path) -> PyTorchClassifier:
    """Train the network of one row, or load it."""
    data, settings = load_data(setup.data), ROWS[row]

    def build() -> PyTorchClassifier:
        arguments = {**setup.network_arguments, "dropout": settings.get("dropout", 0.0)}
        network = create_model(setup.network, data.input_shape, data.nb_classes, **arguments)
        optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
        return comparison.build_classifier(network, data, optimizer)

    def train(classifier: PyTorchClassifier, options: TrainingOptions) -> RobustTrainer:
        # Each seed trains on other images, since the result depends on the choice of a few images.
        rows = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(seed))[:images].numpy()
        trainer = create_trainer(setup, settings, classifier, options)
        x, y = data.x_train[rows], data.y_train[rows]
        return comparison.fit_with_cosine(trainer, x, y, batch_size=64, epochs=setup.train[images])

    return comparison.train_once(folder, build, train, seed=seed, row=row)


def create_trainer(
    setup: Setup, settings: dict[str, Any], classifier: PyTorchClassifier, options: TrainingOptions
) -> RobustTrainer:
    """The trainer of a row."""
    if "fgsm" in settings:
        return LocalBallTrainer(
            classifier,
            threat=ThreatModel("Linf", setup.eps),
            steps=1,
            step_size=setup.eps,
            start="none",
            local_weight=0.0,
            global_weight=0.5,
            clean_weight=0.5,
            overfitting="ignore",
            options=options,
        )
    if "eps" in settings:
        layers = [nn.Conv2d, setup.hidden] if "hidden" in settings else None
        return LayerwiseAdversarialTrainer(classifier, eps=settings["eps"], layers=layers, options=options)
    return StandardTrainer(classifier, options=options)


def list_cases(setup: Setup) -> Iterator[tuple[str, int, int]]:
    """The networks: row, number of training images, seed."""
    yield from ((row, images, seed) for images in setup.train for seed in setup.seeds for row in ROWS)


def run_job(setup: Setup, work: Path, row: str, images: int, seed: int) -> dict[str, Any]:
    """Train one network and measure it."""
    folder = comparison.network_folder(work, row, images, seed)

    def measure() -> dict[str, Any]:
        classifier, data = train_network(setup, row, images, seed, folder), load_data(setup.data)
        threat, noise = ThreatModel("Linf", setup.eps), f"gaussian-{setup.noise}"
        noisy = Evaluator(classifier, threat, attacks=noise, verbose=False).evaluate(data.x_test, data.y_test)
        evaluator = Evaluator(classifier, threat, attacks="standard", state_dir=folder / "state", verbose=False)
        report = evaluator.evaluate(data.x_test[: setup.points], data.y_test[: setup.points])
        return {
            "row": row,
            "images": images,
            "seed": seed,
            "clean": noisy.clean_accuracy,
            "noise": next(attack.robust_accuracy for attack in noisy.attacks),
            "autoattack": report.robust_accuracy,
            "flags": [flag.name for flag in report.flags],
        }

    return comparison.measure_once(folder, measure)


def summary(results: dict[str, Any]) -> list[dict[str, str]]:
    """A row for each training and number of images: means over seeds in percent, with the lowest and highest."""
    rows = []
    names = {
        "clean": "clean",
        "noise": f"gaussian noise {results['noise']}",
        "autoattack": f"AutoAttack {results['eps']}",
    }
    for images in sorted({run["images"] for run in results["networks"]}):
        for name in ROWS:
            runs = [run for run in results["networks"] if (run["row"], run["images"]) == (name, images)]
            row = {"training images": f"{images:,}", "training": name, "seeds": str(len(runs))}
            row |= {title: format_percent([run[key] for run in runs]) for key, title in names.items()}
            rows.append(row)
    return rows


def main() -> None:
    name, setup, networks, quick = comparison.run_setup(__doc__, "layerwise", SETUPS, run_job, list_cases)
    results = {"networks": networks, "eps": setup.eps, "noise": setup.noise}
    print(table(summary(results)))
    if not quick:
        print(save(name, results, setup=asdict(setup), worker_threads=1))


if __name__ == "__main__":
    main()

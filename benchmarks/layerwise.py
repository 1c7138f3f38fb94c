"""The comparison of regularisers that layerwise_digits.py and layerwise_mnist.py run, each with its set-up.

Layerwise adversarial training claims to regularise better than dropout. So all rows are trained on few images and on
many, and judged on clean test images, under noise, and under standard AutoAttack: plain training, dropout of the hidden
layer, FGSM adversarial training (clean loss and loss at x + eps * sign of its gradient, halves), and layerwise
perturbations of the convolutions' outputs or of those and the hidden layer's, at several eps.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import art.config
import torch
from art.estimators.classification import PyTorchClassifier
from record import save, table
from torch import nn

from art_robust_plugins import Evaluator, RobustTrainer, StandardTrainer, ThreatModel, TrainingOptions
from art_robust_plugins.checkpoint import load_classifier, save_classifier
from art_robust_plugins.data import load_data
from art_robust_plugins.files import read_json, write_json
from art_robust_plugins.models import create_model
from art_robust_plugins.training import LayerwiseAdversarialTrainer, LocalBallTrainer

ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "dropout 0.5": {"dropout": 0.5},
    "FGSM": {"fgsm": True},
    "layerwise, eps 0.1": {"eps": 0.1},
    "layerwise, eps 0.3": {"eps": 0.3},
    "layerwise, eps 0.3, hidden layer too": {"eps": 0.3, "hidden": True},
}


@dataclass(frozen=True)
class Setup:
    """What all rows of one table share."""

    data: str
    network: str
    hidden: str  # its hidden linear layer
    eps: float
    noise: float
    train: dict[int, int]  # images to train on -> epochs
    points: int
    network_arguments: dict[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)

    def quick(self) -> Setup:
        return replace(self, train={200: 1}, points=8, seeds=(0,))


def trained(setup: Setup, row: str, images: int, seed: int, folder: Path) -> PyTorchClassifier:
    if (folder / "classifier.json").exists():
        return load_classifier(folder)
    data, settings = load_data(setup.data), ROWS[row]
    torch.manual_seed(seed)
    arguments = {**setup.network_arguments, "dropout": settings.get("dropout", 0.0)}
    network = create_model(setup.network, data.input_shape, data.nb_classes, **arguments)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, momentum=0.9, weight_decay=5e-4)
    classifier = PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        data.input_shape,
        data.nb_classes,
        optimizer=optimizer,
        clip_values=(0, 1),
        device_type="cpu",
    )
    epochs, batch_size = setup.train[images], 64
    steps = epochs * -(-images // batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    options = TrainingOptions(seed=seed, scheduler_interval="step", checkpoint_dir=folder / "training", resume=True)
    trainer: RobustTrainer
    if "fgsm" in settings:
        threat = ThreatModel("Linf", setup.eps)
        fgsm: dict[str, Any] = {"steps": 1, "start": "none", "step_size": setup.eps, "overfitting": "ignore"}
        halves = {"local_weight": 0.0, "global_weight": 0.5, "clean_weight": 0.5}
        trainer = LocalBallTrainer(classifier, threat=threat, **halves, **fgsm, options=options)
    elif "eps" in settings:
        layers = [nn.Conv2d, setup.hidden] if "hidden" in settings else None
        trainer = LayerwiseAdversarialTrainer(classifier, eps=settings["eps"], layers=layers, options=options)
    else:
        trainer = StandardTrainer(classifier, options=options)
    # Few images are another few for each seed.
    rows = torch.randperm(len(data.x_train), generator=torch.Generator().manual_seed(seed))[:images].numpy()
    trainer.fit(data.x_train[rows], data.y_train[rows], None, batch_size, epochs, scheduler, verbose=False)
    save_classifier(classifier, folder, extra={"row": row, "seed": seed, "history": trainer.history})
    return classifier


def job(setup: Setup, row: str, images: int, seed: int, data_dir: str, work: Path) -> dict[str, Any]:
    """Train one network and measure it; what is done already is taken up."""
    art.config.set_data_path(data_dir)
    folder = work / f"{row}-{images}-{seed}".replace(" ", "-").replace(",", "")
    result_file = folder / "result.json"
    if result_file.exists():
        done: dict[str, Any] = read_json(result_file)
        return done
    classifier, data = trained(setup, row, images, seed, folder), load_data(setup.data)
    threat, noise = ThreatModel("Linf", setup.eps), f"gaussian-{setup.noise}"
    noisy = Evaluator(classifier, threat, attacks=noise, verbose=False).evaluate(data.x_test, data.y_test)
    evaluator = Evaluator(classifier, threat, attacks="standard", state_dir=folder / "state", verbose=False)
    report = evaluator.evaluate(data.x_test[: setup.points], data.y_test[: setup.points])
    result = {
        "row": row,
        "images": images,
        "seed": seed,
        "clean": noisy.clean_accuracy,
        "noise": next(attack.robust_accuracy for attack in noisy.attacks),
        "autoattack": report.robust_accuracy,
        "flags": [flag.name for flag in report.flags],
    }
    write_json(result_file, result)
    print(json.dumps(result), flush=True)
    return result


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
            for key, title in names.items():
                values = [100 * run[key] for run in runs]
                spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
                row[title] = f"{statistics.mean(values):.1f}{spread}"
            rows.append(row)
    return rows


def run(name: str, setup: Setup, description: str | None) -> None:
    """The command line of a comparison."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if setup.data == "mnist":
        parser.add_argument("--data", default=art.config.ART_DATA_PATH, help="folder with mnist.npz")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a minute, and not recorded")
    args = parser.parse_args()
    data_dir = getattr(args, "data", art.config.ART_DATA_PATH)
    setup = setup.quick() if args.quick else setup
    work = Path("runs") / name / ("quick" if args.quick else "full")
    cases = [(row, images, seed) for images in setup.train for seed in setup.seeds for row in ROWS]
    with ProcessPoolExecutor(args.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        networks = [each.result() for each in [pool.submit(job, setup, *case, data_dir, work) for case in cases]]
    results = {"networks": networks, "eps": setup.eps, "noise": setup.noise}
    print(table(summary(results)))
    if not args.quick:
        print(save(name, results, setup=asdict(setup), worker_threads=1))

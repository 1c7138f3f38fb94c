"""What a training step costs: beside a loop written by hand, beside ART's trainer, and BANG beside plain training.

    python benchmarks/training_step.py [--quick] [--threads 2]

All rows of a table are measured in one run, in turns; a ratio is the median over the rounds of the ratio of two times
that were taken next to each other. Images are random: only the time is looked at. Whole calls of ``fit`` are timed,
divided by their steps. glibc is told to keep freed memory: otherwise it returns some of it in every step, and fetching
it again costs up to a fifth of a small network's step, at random, in every row.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from art.defences.trainer import AdversarialTrainerMadryPGD
from art.estimators.classification import PyTorchClassifier
from record import save, table
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins.models import create_model
from art_robust_plugins.threat import ThreatModel
from art_robust_plugins.training import BANGTrainer, RobustTrainer, StandardTrainer, TrainingOptions

# network, input shape, batch size, steps in a timed call(, PGD steps)
PLAIN = [("lenet", (1, 28, 28), 64, 60), ("quick", (3, 32, 32), 100, 16), ("preact-resnet18", (3, 32, 32), 16, 8)]
PGD = [("small-cnn", (1, 28, 28), 128, 8, 7), ("preact-resnet18", (3, 32, 32), 16, 6, 2)]
EPS = 0.1


class PGDTrainer(RobustTrainer):
    """Madry et al.'s adversarial training: the classifier's loss on images moved by projected gradient ascent."""

    def __init__(self, classifier: PyTorchClassifier, *, threat: ThreatModel, steps: int, **settings: Any) -> None:
        super().__init__(classifier, threat=threat, **settings)
        self.steps = steps

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        assert self.threat is not None
        network = self.classifier.model.eval()
        start = self.threat.random_start(x, 0.0, 1.0)
        moved = self.threat.ascend(
            lambda z: self.loss(self.logits(z), y), x, start, steps=self.steps, step_size=EPS / 4, low=0.0, high=1.0
        )
        network.train()
        return self.loss(self.logits(moved), y)


def by_hand(network: nn.Module, x: Tensor, y: Tensor, batch_size: int, steps: int) -> None:
    """Plain torch: what one writes without a library. ``steps`` 0 is plain training."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    order = torch.randperm(len(x))
    network.train()
    for begin in range(0, len(x), batch_size):
        rows = order[begin : begin + batch_size]
        images, labels = x[rows], y[rows]
        if steps:
            network.eval()
            moved = (images + (2 * torch.rand_like(images) - 1) * EPS).clamp(0, 1)
            for _ in range(steps):
                moved.requires_grad_()
                (gradient,) = torch.autograd.grad(functional.cross_entropy(network(moved), labels), moved)
                moved = moved.detach() + EPS / 4 * gradient.sign()
                moved = (images + (moved - images).clamp(-EPS, EPS)).clamp(0, 1)
            network.train()
            images = moved
        optimizer.zero_grad(set_to_none=True)
        functional.cross_entropy(network(images), labels).backward()
        optimizer.step()


def seconds(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def in_turns(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round, after one round that does not count."""
    for run in runs.values():
        run()
    return {name: list(column) for name, column in zip(runs, zip(*_rounds(runs, rounds), strict=True), strict=True)}


def _rounds(runs: dict[str, Callable[[], None]], rounds: int) -> list[list[float]]:
    """The order of the runs is turned round after round, so that none is always the one after a pause."""
    rows = []
    for index in range(rounds):
        names = list(runs)[index % len(runs) :] + list(runs)[: index % len(runs)]
        taken = {name: seconds(runs[name]) for name in names}
        rows.append([taken[name] for name in runs])
    return rows


def ratio(above: list[float], below: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def classifier_and_data(name: str, shape: tuple[int, ...], samples: int) -> tuple[PyTorchClassifier, Tensor, Tensor]:
    torch.manual_seed(0)
    network = create_model(name, shape, 10)
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    classifier = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), shape, 10, optimizer=optimizer, clip_values=(0, 1), device_type="cpu"
    )
    return classifier, torch.rand(samples, *shape), torch.randint(0, 10, (samples,))


def plain_rows(rounds: int, cases: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for name, shape, batch_size, steps in cases:
        classifier, x, y = classifier_and_data(name, shape, batch_size * steps)
        options = TrainingOptions(seed=0)

        def fit(trainer: RobustTrainer, x: Tensor = x, y: Tensor = y, batch_size: int = batch_size) -> None:
            trainer.fit(x, y, batch_size=batch_size, nb_epochs=1, verbose=False)

        plain, bang = StandardTrainer(classifier, options=options), BANGTrainer(classifier, options=options)
        half = BANGTrainer(classifier, beta=0.4, epsilon=0.855, ratio=0.5, options=options)
        taken = in_turns(
            {
                "hand": lambda c=classifier, x=x, y=y, b=batch_size: by_hand(c.model, x, y, b, 0),
                "plain": lambda t=plain: fit(t),
                "bang": lambda t=bang: fit(t),
                "bang, ratio": lambda t=half: fit(t),
            },
            rounds,
        )
        rows.append(
            {
                "network": name,
                "batch": batch_size,
                "plain step, ms": round(1000 * statistics.median(taken["plain"]) / steps, 2),
                "speed of our loop / by hand": round(ratio(taken["hand"], taken["plain"]), 3),
                "BANG / plain, time": round(ratio(taken["bang"], taken["plain"]), 3),
                "BANG with ratio 0.5 / plain, time": round(ratio(taken["bang, ratio"], taken["plain"]), 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def pgd_rows(rounds: int, cases: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for name, shape, batch_size, steps, ascents in cases:
        classifier, x, y = classifier_and_data(name, shape, batch_size * steps)
        ours = PGDTrainer(classifier, threat=ThreatModel("Linf", EPS), steps=ascents, options=TrainingOptions(seed=0))
        art = AdversarialTrainerMadryPGD(classifier, 1, batch_size, eps=EPS, eps_step=EPS / 4, max_iter=ascents)
        arrays = x.numpy(), np.eye(10, dtype=np.float32)[y.numpy()]
        taken = in_turns(
            {
                "hand": lambda c=classifier, x=x, y=y, b=batch_size, k=ascents: by_hand(c.model, x, y, b, k),
                "ours": lambda t=ours, x=x, y=y, b=batch_size: t.fit(x, y, batch_size=b, nb_epochs=1, verbose=False),
                "art": lambda t=art, a=arrays: t.fit(*a),
            },
            rounds,
        )
        rows.append(
            {
                "network": name,
                "batch": batch_size,
                "PGD steps": ascents,
                "our step, ms": round(1000 * statistics.median(taken["ours"]) / steps, 1),
                "speed of our loop / by hand": round(ratio(taken["hand"], taken["ours"]), 3),
                "speed of our loop / ART's MadryPGD": round(ratio(taken["art"], taken["ours"]), 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def with_steady_memory() -> None:
    """Start this script again with settings that glibc reads when a process starts."""
    settings = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30)}
    if not settings.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})


def main() -> None:
    with_steady_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="half a minute, the small networks; not recorded")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds = 3 if args.quick else args.rounds
    results = {
        "plain and BANG": plain_rows(rounds, PLAIN[:1] if args.quick else PLAIN),
        "PGD": pgd_rows(rounds, PGD[:1] if args.quick else PGD),
    }
    for name, rows in results.items():
        print(f"\n{name}\n\n{table(rows)}")
    if not args.quick:
        print(save("training_step", results, rounds=rounds))


if __name__ == "__main__":
    main()

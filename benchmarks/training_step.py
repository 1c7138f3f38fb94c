"""What a training step costs: beside a loop written by hand, beside ART's trainers, instruments beside plain training.

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
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerMadryPGD, AdversarialTrainerTRADESPyTorch
from art.estimators.classification import PyTorchClassifier
from record import save, table
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins.models import create_model
from art_robust_plugins.threat import ThreatModel
from art_robust_plugins.training import (
    BANGTrainer,
    LayerwiseAdversarialTrainer,
    LocalBallTrainer,
    PGDTrainer,
    RobustTrainer,
    StandardTrainer,
    TRADESTrainer,
    TrainingOptions,
)

# network, input shape, batch size, steps in a timed call(, ascent steps)
PLAIN = [("lenet", (1, 28, 28), 64, 60), ("quick", (3, 32, 32), 100, 16), ("preact-resnet18", (3, 32, 32), 16, 8)]
ADVERSARIAL = [("small-cnn", (1, 28, 28), 128, 6, 7), ("preact-resnet18", (3, 32, 32), 16, 4, 2)]
EPS, STEP = 0.1, 0.025
METHODS = ("PGD", "TRADES", "local ball")


def by_hand(network: nn.Module, x: Tensor, y: Tensor, batch_size: int, loss: Callable[..., Tensor]) -> None:
    """Plain torch: what one writes without a library."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
    order = torch.randperm(len(x))
    network.train()
    for begin in range(0, len(x), batch_size):
        rows = order[begin : begin + batch_size]
        value = loss(network, x[rows], y[rows])
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()


def plain_loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(network(images), labels)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return functional.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean")


def adversarial_loss(network: nn.Module, images: Tensor, labels: Tensor, method: str, steps: int) -> Tensor:
    network.eval()
    if method == "TRADES":
        with torch.no_grad():
            clean = network(images)
    moved = (images + (2 * torch.rand_like(images) - 1) * EPS).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_()
        logits = network(moved)
        objective = divergence(clean, logits) if method == "TRADES" else functional.cross_entropy(logits, labels)
        (gradient,) = torch.autograd.grad(objective, moved)
        moved = moved.detach() + STEP * gradient.sign()
        moved = (images + (moved - images).clamp(-EPS, EPS)).clamp(0, 1)
    if method == "local ball":
        with torch.no_grad():
            center = network(moved)
        beside = (moved + (2 * torch.rand_like(images) - 1) * EPS / 4).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(center, network(beside)), beside)
        local = moved + EPS / 2 * gradient.sign()
        local = (images + (local - images).clamp(-EPS, EPS)).clamp(0, 1)
    network.train()
    if method == "TRADES":
        logits = network(images)
        return functional.cross_entropy(logits, labels) + 6 * divergence(logits, network(moved))
    logits = network(moved)
    loss = functional.cross_entropy(logits, labels)
    return loss if method == "PGD" else loss + 6 * divergence(logits, network(local))


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
        layerwise = LayerwiseAdversarialTrainer(classifier, eps=0.1, options=options)
        taken = in_turns(
            {
                "hand": lambda c=classifier, x=x, y=y, b=batch_size: by_hand(c.model, x, y, b, plain_loss),
                "plain": lambda t=plain: fit(t),
                "bang": lambda t=bang: fit(t),
                "bang, ratio": lambda t=half: fit(t),
                "layerwise": lambda t=layerwise: fit(t),
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
                "layerwise / plain, time": round(ratio(taken["layerwise"], taken["plain"]), 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def arts_trainer(method: str, classifier: PyTorchClassifier, batch_size: int, steps: int) -> Callable[..., None]:
    """ART's own trainer as a function of its arrays."""
    if method == "PGD":
        madry = AdversarialTrainerMadryPGD(classifier, 1, batch_size, eps=EPS, eps_step=STEP, max_iter=steps)
        return madry.fit
    attack = ProjectedGradientDescent(
        classifier, eps=EPS, eps_step=STEP, max_iter=steps, num_random_init=1, batch_size=batch_size, verbose=False
    )
    trades = AdversarialTrainerTRADESPyTorch(classifier, attack, beta=6.0)
    return lambda x, y: trades.fit(x, y, batch_size=batch_size, nb_epochs=1)


def adversarial_rows(rounds: int, cases: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for (name, shape, batch_size, steps, ascents), method in product(cases, METHODS):
        classifier, x, y = classifier_and_data(name, shape, batch_size * steps)
        kind = {"PGD": PGDTrainer, "TRADES": TRADESTrainer, "local ball": LocalBallTrainer}[method]
        settings: dict[str, Any] = {"steps": ascents, "step_size": STEP, "overfitting": "ignore"}
        ours = kind(classifier, threat=ThreatModel("Linf", EPS), **settings, options=TrainingOptions(seed=0))
        loss = partial(adversarial_loss, method=method, steps=ascents)
        runs: dict[str, Callable[[], None]] = {
            "hand": partial(by_hand, classifier.model, x, y, batch_size, loss),
            "ours": partial(ours.fit, x, y, batch_size=batch_size, nb_epochs=1, verbose=False),
        }
        if method != "local ball":
            arrays = x.numpy(), np.eye(10, dtype=np.float32)[y.numpy()]
            runs["art"] = partial(arts_trainer(method, classifier, batch_size, ascents), *arrays)
        taken = in_turns(runs, rounds)
        rows.append(
            {
                "network": name,
                "batch": batch_size,
                "method": f"{method}, {ascents} steps",
                "our step, ms": round(1000 * statistics.median(taken["ours"]) / steps, 1),
                "speed of our loop / by hand": round(ratio(taken["hand"], taken["ours"]), 3),
                "speed of our loop / ART's trainer": round(ratio(taken["art"], taken["ours"]), 3)
                if "art" in taken
                else "none in ART",
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
        "plain and instruments": plain_rows(rounds, PLAIN[:1] if args.quick else PLAIN),
        "adversarial": adversarial_rows(rounds, ADVERSARIAL[:1] if args.quick else ADVERSARIAL),
    }
    for name, rows in results.items():
        print(f"\n{name}\n\n{table(rows)}")
    if not args.quick:
        print(save("training_step", results, rounds=rounds))


if __name__ == "__main__":
    main()

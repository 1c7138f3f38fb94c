"""The time of certificates: in a training step, for a network's proven bound, and for each image.

    python benchmarks/certify_speed.py [--quick] [--threads 2]

Images and weights are random, since only the time matters. Training steps alternate with plain ones, as in
training_step.py. The proven bound is timed once for each network, separately from tracing. Certificates of 10,000
images are measured in turns with a bare float64 forward pass in batches of the same size, with the bound known.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from saving import save, table
from torch import nn
from training_step import classifier_and_data, in_turns, ratio, with_steady_memory

from art_robust_plugins.lipschitz import LipschitzGraph, PyTorchLipschitzCertifier
from art_robust_plugins.models import create_model
from art_robust_plugins.training import LipschitzMarginTrainer, StandardTrainer, TrainingOptions

# network, input shape, batch size, steps in a timed call
STEPS = [("2c2f", (1, 28, 28), 50, 60), ("6c2f", (3, 32, 32), 128, 6), ("preact-resnet18", (3, 32, 32), 32, 4)]
BOUNDS: list[tuple[str, tuple[int, ...], dict[str, Any]]] = [
    ("2c2f", (1, 28, 28), {}),
    ("6c2f", (3, 32, 32), {}),
    ("preact-resnet18", (3, 32, 32), {}),
    ("wide-resnet", (3, 32, 32), {"depth": 16, "widen_factor": 4}),
]
IMAGES = [("2c2f", (1, 28, 28), 10_000), ("6c2f", (3, 32, 32), 10_000)]
BATCH = 128


def step_rows(rounds: int, cases: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for name, shape, batch_size, steps in cases:
        classifier, x, y = classifier_and_data(name, shape, batch_size * steps)
        trainers = {
            "plain": StandardTrainer(classifier, options=TrainingOptions(seed=0)),
            "margin": LipschitzMarginTrainer(classifier, c=0.1, options=TrainingOptions(seed=0)),
        }
        runs = {
            kind: lambda t=trainer, x=x, y=y, b=batch_size: t.fit(x, y, batch_size=b, nb_epochs=1, verbose=False)
            for kind, trainer in trainers.items()
        }
        taken = in_turns(runs, rounds)
        rows.append(
            {
                "network": name,
                "batch": batch_size,
                "plain step, ms": round(1000 * statistics.median(taken["plain"]) / steps, 2),
                "Lipschitz-margin / plain, time": round(ratio(taken["margin"], taken["plain"]), 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def bound_rows(cases: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for name, shape, arguments in cases:
        torch.manual_seed(0)
        network = create_model(name, shape, 10, **arguments).eval()
        start = time.perf_counter()
        graph = LipschitzGraph(network, shape)
        traced = time.perf_counter()
        bound = graph.upper_bound()
        proven = time.perf_counter()
        rows.append(
            {
                "network": " ".join([name, *(f"{key} {value}" for key, value in arguments.items())]),
                "operators": len(bound.operators),
                "trace, s": round(traced - start, 2),
                "proven bound, s": round(proven - traced, 2),
            }
        )
        print(rows[-1], flush=True)
    return rows


def image_rows(rounds: int, cases: list[Any]) -> list[dict[str, Any]]:
    rows = []
    for name, shape, count in cases:
        torch.manual_seed(0)
        network = create_model(name, shape, 10).eval()
        classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), shape, 10, clip_values=(0, 1), device_type="cpu")
        certifier = PyTorchLipschitzCertifier.from_classifier(classifier)
        x = torch.rand(count, *shape)
        certifier.certify(x[:1])  # proves the bound
        twin = copy.deepcopy(network).double()

        def forward(twin: nn.Module = twin, x: torch.Tensor = x) -> None:
            with torch.no_grad():
                for batch in x.split(BATCH):
                    twin(batch.double()).argmax(dim=1)

        taken = in_turns({"forward": forward, "certify": lambda c=certifier, x=x: c.certify(x, BATCH)}, rounds)
        rows.append(
            {
                "network": name,
                "images": f"{count:,}",
                "float64 forward pass, s": round(statistics.median(taken["forward"]), 3),
                "certify / forward, time": round(ratio(taken["certify"], taken["forward"]), 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    with_steady_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="half a minute, the smallest networks; not recorded")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds, few = (3, 1) if args.quick else (args.rounds, None)
    results = {
        "training step": step_rows(rounds, STEPS[:few]),
        "proven bound": bound_rows(BOUNDS[:few]),
        "certificates": image_rows(rounds, [("2c2f", (1, 28, 28), 1000)] if args.quick else IMAGES),
    }
    for name, rows in results.items():
        print(f"\n{name}\n\n{table(rows)}")
    if not args.quick:
        print(save("certify_speed", results, rounds=rounds))


if __name__ == "__main__":
    main()

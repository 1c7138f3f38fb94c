"""The time of certificates: in a training step, for a network's proven bound, and for each image.

    python benchmarks/certify_speed.py [--quick] [--threads 2]

Images and weights are random, since only the time matters. Training steps alternate with plain ones, and certificates,
with the bound known, with bare float64 forward passes of the same batches; both are timed as in training_step.py. The
proven bound is timed once for each network, separately from tracing, in seconds of the CPU; conv_norms.py has those of
residual networks. With one thread all times are those of the CPU, so that other load does not count.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import torch
from saving import save, table
from torch import Tensor
from training_step import Bench, Fit, Setting, fit, with_steady_memory

from art_robust_plugins.lipschitz import LipschitzGraph, PyTorchLipschitzCertifier
from art_robust_plugins.models import create_model
from art_robust_plugins.training import LipschitzMarginTrainer, StandardTrainer, TrainingOptions

STEPS = [
    Setting("2c2f", (1, 28, 28), 50),
    Setting("6c2f", (3, 32, 32), 128),
    Setting("preact-resnet18", (3, 32, 32), 32),
]
BOUNDS = [("2c2f", (1, 28, 28)), ("6c2f", (3, 32, 32))]
IMAGES = [Setting("2c2f", (1, 28, 28), 128), Setting("6c2f", (3, 32, 32), 128)]


def step_row(setting: Setting, bench: Bench) -> dict[str, Any]:
    options = TrainingOptions(seed=0)

    def make_plain() -> Fit:
        return fit(StandardTrainer(setting.classifier("cpu"), options=options), setting.batch)

    def make_margin() -> Fit:
        return fit(LipschitzMarginTrainer(setting.classifier("cpu"), c=0.1, options=options), setting.batch)

    found = bench.compare({"plain": make_plain, "margin": make_margin}, setting, least=4, memory=False)
    return {
        "network": setting.network,
        "batch": setting.batch,
        "plain step, ms": found.step("plain"),
        "Lipschitz-margin / plain, time": found.slowdown("margin", "plain"),
    }


def bound_row(name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    torch.manual_seed(0)
    network = create_model(name, shape, 10).eval()
    start = time.process_time()
    graph = LipschitzGraph(network, shape)
    traced = time.process_time()
    bound = graph.upper_bound()
    proven = time.process_time()
    return {
        "network": name,
        "operators": len(bound.operators),
        "trace, s": round(traced - start, 2),
        "proven bound, s": round(proven - traced, 2),
    }


def image_row(setting: Setting, bench: Bench) -> dict[str, Any]:
    def make_forward() -> Fit:
        network = copy.deepcopy(setting.classifier("cpu").model).double().eval()

        def forward(x: Tensor, y: Tensor) -> None:
            with torch.no_grad():
                for batch in x.split(setting.batch):
                    network(batch.double()).argmax(dim=1)

        return forward

    def make_certify() -> Fit:
        certifier = PyTorchLipschitzCertifier.from_classifier(setting.classifier("cpu"))

        def certify(x: Tensor, y: Tensor) -> None:
            certifier.certify(x, setting.batch)  # the first call proves the bound, before anything is timed

        return certify

    # Each call of certify first checks, with a few passes, that the network is still the one that was traced.
    found = bench.compare({"forward": make_forward, "certify": make_certify}, setting, least=20, memory=False)
    return {
        "network": setting.network,
        "batch": setting.batch,
        "float64 forward pass, ms": found.step("forward"),
        "certify / forward, time": found.slowdown("certify", "forward"),
    }


def main() -> None:
    with_steady_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="the least number of times that each is measured")
    parser.add_argument("--lasting", type=float, default=20, help="go on with further rounds for so many seconds")
    parser.add_argument("--call", type=float, default=1.4, help="the length of a timed call in seconds")
    parser.add_argument("--quick", action="store_true", help="half a minute, the smallest networks; not recorded")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.threads == 1:
        time.perf_counter = time.process_time
    few = 1 if args.quick else None
    bench = Bench("cpu", args.threads, *((3, 0, 0.2) if args.quick else (args.rounds, args.lasting, args.call)))
    results: dict[str, list[dict[str, Any]]] = {"training step": [], "certificates": [], "proven bound": []}

    def add(kind: str, row: dict[str, Any]) -> None:
        results[kind].append(row)
        print(row, flush=True)

    for setting in STEPS[:few]:
        add("training step", step_row(setting, bench))
    for setting in IMAGES[:few]:
        add("certificates", image_row(setting, bench))
    for case in BOUNDS[:few]:
        add("proven bound", bound_row(*case))
    for name, rows in results.items():
        print(f"\n{name}\n\n{table(rows)}")
    if not args.quick:
        print(save("certify_speed", results, rounds=args.rounds, lasting=args.lasting))


if __name__ == "__main__":
    main()

"""The time of a weight map: passes of a block with and without a map after it, and whole training steps.

    python benchmarks/weight_map_speed.py [--rounds 9] [--threads 2] [--quick]

A block is a convolution with normalisation and activation where networks have them, or a residual block. Both versions
are timed in turns in one process; times and ratios are medians over rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from saving import save, table
from torch import nn
from torch.nn import functional

from art_robust_plugins.models import PreActResNet18, create_model
from art_robust_plugins.weight_map import insert_weight_maps

KERNELS = ("smoothing", "unsharp", "identity")
CIFAR, MNIST = (3, 32, 32), (1, 28, 28)


def convolution(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU())


def residual(stage: int) -> nn.Module:
    """The second block of a stage of PreActResNet-18, whose input has the output's shape."""
    blocks = [module for name, module in PreActResNet18().named_modules() if type(module).__name__ == "_PreActBlock"]
    return blocks[2 * stage + 1]


BLOCKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]] = {
    "conv 1->32, ReLU, 28x28": (lambda: convolution(1, 32), MNIST),
    "conv 3->64, ReLU, 32x32": (lambda: convolution(3, 64), CIFAR),
    "conv 64->64, ReLU, 32x32": (lambda: convolution(64, 64), (64, 32, 32)),
    "conv 128->128, ReLU, 16x16": (lambda: convolution(128, 128), (128, 16, 16)),
    "residual block 64, 32x32": (lambda: residual(0), (64, 32, 32)),
    "residual block 128, 16x16": (lambda: residual(1), (128, 16, 16)),
    "residual block 256, 8x8": (lambda: residual(2), (256, 8, 8)),
}
NETWORKS = {
    "small-cnn": ((1, 28, 28), 64),
    "lenet": ((1, 28, 28), 64),
    "quick": (CIFAR, 64),
    "preact-resnet18": (CIFAR, 32),
}


def seconds(runs: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """The seconds of each run in each round, in turns; the first round is a warm-up."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if index:
                taken[name].append(time.perf_counter() - started)
    return taken


def passes(module: nn.Module, x: torch.Tensor, repeats: int) -> Callable[[], None]:
    """Forward and backward passes to the input and the weights."""

    def run() -> None:
        for _ in range(repeats):
            x.grad = None
            module.zero_grad()
            module(x).sum().backward()

    return run


def step(network: nn.Module, x: torch.Tensor, y: torch.Tensor, repeats: int) -> Callable[[], None]:
    """Plain training steps."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)

    def run() -> None:
        for _ in range(repeats):
            optimizer.zero_grad()
            functional.cross_entropy(network(x), y).backward()
            optimizer.step()

    return run


def row(what: str, name: str, taken: dict[str, list[float]], repeats: int) -> dict[str, Any]:
    ratios = {
        kernel: statistics.median(a / b for a, b in zip(taken[kernel], taken["without"], strict=True))
        for kernel in KERNELS
    }
    plain = 1000 * statistics.median(taken["without"]) / repeats
    return {
        what: name,
        "without a map, ms": f"{plain:.2f}",
        **{f"{key} / without": f"{r:.2f}" for key, r in ratios.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="two rounds, and not recorded")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rounds = 2 if args.quick else args.rounds
    blocks, steps = [], []
    for name, (make, shape) in BLOCKS.items():
        torch.manual_seed(0)
        block, x = make().train(), torch.randn(32, *shape, requires_grad=True)
        versions = {"without": block}
        for kernel in KERNELS:
            versions[kernel] = insert_weight_maps(nn.Sequential(block), shape, where="0", kernel=kernel)
        once = seconds({"without": passes(block, x, 1)}, 1)["without"][0]
        repeats = max(1, round(0.1 / once))
        runs = {version: passes(module, x, repeats) for version, module in versions.items()}
        blocks.append(row("block, batch of 32", name, seconds(runs, rounds), repeats))
    for name, (shape, batch) in NETWORKS.items():
        torch.manual_seed(0)
        network = create_model(name, shape, 10).train()
        x, y = torch.rand(batch, *shape), torch.randint(10, (batch,))
        nets = {"without": network, **{k: insert_weight_maps(network, shape, kernel=k) for k in KERNELS}}
        once = seconds({"without": step(network, x, y, 1)}, 1)["without"][0]
        repeats = max(1, round(0.2 / once))
        runs = {version: step(module, x, y, repeats) for version, module in nets.items()}
        steps.append(row("training step", f"{name}, batch {batch}", seconds(runs, rounds), repeats))
    print(table(blocks), table(steps), sep="\n\n")
    if not args.quick:
        print(save("weight_map_speed", {"blocks": blocks, "steps": steps}))


if __name__ == "__main__":
    main()

"""What glibc's memory settings change: the same work with its defaults, and with freed memory kept.

    python benchmarks/memory_settings.py [--rounds 5]

The command line has glibc keep freed memory (`art_robust_plugins.memory.keep_freed_memory`); a script has the defaults
unless it calls this function. The settings hold for a whole process: processes with either run in turns, each with one
thread. Times are CPU times, and the ratio is the median of those of two processes that ran one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from saving import save, table
from torch import nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation.autoattack.standard import AutoAttack
from art_robust_plugins.memory import keep_freed_memory
from art_robust_plugins.models import create_model


def time_runs(run: Callable[[], object], times: int) -> float:
    """Seconds of a run, after one that is not timed."""
    run()
    started = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - started) / times


def time_step() -> float:
    """A training step of the small CNN on 128 images 1 x 28 x 28."""
    network = create_model("small-cnn", (1, 28, 28), 10)
    optimizer = torch.optim.Adam(network.parameters())
    x, y = torch.rand(128, 1, 28, 28), torch.randint(0, 10, (128,))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()

    return time_runs(step, 10)


def time_apgd(side: int, points: int) -> float:
    """Auto-PGD's 100 iterations on points that stay robust."""
    network = create_model("small-cnn", (1, side, side), 10).eval()
    x = torch.rand(points, 1, side, side)
    with torch.no_grad():
        y = network(x).argmax(dim=1)
    attack = AutoAttack(network, ThreatModel("Linf", 1e-4), version="custom", stages=["apgd-ce"])
    return time_runs(lambda: attack.run(x, y), 1)


WORK: dict[str, Callable[[], float]] = {
    "training step, small-cnn, 128 images 1 x 28 x 28": time_step,
    "apgd-ce, small-cnn, 10 images 1 x 28 x 28": lambda: time_apgd(28, 10),
    "apgd-ce, small-cnn, 30 images 1 x 8 x 8": lambda: time_apgd(8, 30),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--process", choices=["default", "kept"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if args.process is not None:
        if args.process == "kept" and not keep_freed_memory():
            raise SystemExit("glibc: got other settings or another library, expected glibc with its defaults.")
        print(json.dumps({name: work() for name, work in WORK.items()}))
        return
    taken: dict[str, list[dict[str, float]]] = {"default": [], "kept": []}
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    for turn in range(args.rounds):
        for kind in ("default", "kept") if turn % 2 == 0 else ("kept", "default"):
            command = [sys.executable, __file__, "--process", kind]
            found = subprocess.run(command, env=plain, capture_output=True, text=True, check=True)
            taken[kind].append(json.loads(found.stdout))
    rows: list[dict[str, Any]] = []
    for name in WORK:
        default, kept = ([each[name] for each in taken[kind]] for kind in ("default", "kept"))
        row: dict[str, Any] = {"work": name, "default, ms": round(1e3 * statistics.median(default), 1)}
        row["freed memory kept, ms"] = round(1e3 * statistics.median(kept), 1)
        ratios = sorted(one / other for one, other in zip(default, kept, strict=True))
        row["default / kept"] = round(statistics.median(ratios), 2)
        row["smallest and largest"] = f"{ratios[0]:.2f} and {ratios[-1]:.2f}"
        rows.append(row)
    print(table(rows))
    print(save("memory_settings", rows, rounds=args.rounds))


if __name__ == "__main__":
    main()

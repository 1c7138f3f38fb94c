"""The time of an evaluation by two processes beside that by one, with one thread each.

    python benchmarks/processes_speed.py [--rounds 3] [--mnist] [--quick]

The standard AutoAttack on correctly classified test images of one logical batch, by one process, by two that share the
points (as ``art-robust evaluate --workers 2`` starts them), and, to see what the machine gives, by two processes that
know nothing of each other and do the same work at the same time. The three take turns; seconds are those of the clock,
after the processes have started and read the network, so the machine must have nothing else to do. Every verdict is
compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from saving import save, table

POINTS = {"digits": 100, "mnist": 60}


def measure_here(name: str, folder: Path, points: int) -> None:
    """In this process, or in each of several: the seconds of the evaluation, which the main process prints."""
    import numpy as np
    import torch

    from art_robust_plugins import Evaluator, ThreatModel, load_classifier
    from art_robust_plugins.data import load_data
    from art_robust_plugins.processes import find_processes

    torch.set_num_threads(1)
    classifier, data = load_classifier(folder, device="cpu"), load_data(name)
    correct = np.flatnonzero(classifier.predict(data.x_test[:1000].copy()).argmax(axis=1) == data.y_test[:1000])[
        :points
    ]
    threat = ThreatModel("Linf", json.loads((folder / "eps.json").read_text()))
    evaluator = Evaluator(classifier, threat, verbose=False)
    started = time.perf_counter()
    report = evaluator.evaluate(data.x_test[correct], data.y_test[correct])
    seconds = time.perf_counter() - started
    if find_processes().is_main_process:
        print(json.dumps({"seconds": seconds, "robust": report.robust.tolist()}))


def train(name: str, folder: Path, *, quick: bool) -> None:
    """Train the network as autoattack_speed.py trains that of this data set, and keep it with its radius."""
    from autoattack_speed import DIGITS, MNIST, train_network

    from art_robust_plugins import save_classifier
    from art_robust_plugins.data import load_data

    case = {"digits": DIGITS, "mnist": MNIST}[name]
    case = replace(case, epochs=1, images=500) if quick else case
    save_classifier(train_network(case, load_data(name), "cpu"), folder)
    (folder / "eps.json").write_text(json.dumps(case.train_eps))


def start(name: str, folder: Path, points: int, *, processes: int) -> subprocess.Popen[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    own = [__file__, "--here", name, "--folder", str(folder), "--points", str(points)]
    command = [sys.executable, "-W", "ignore", *(launcher if processes > 1 else []), *own]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a measurement ended with {process.returncode}.")
    found: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def measure(name: str, folder: Path, points: int, rounds: int) -> dict[str, Any]:
    """A row of the table."""
    one: list[float] = []
    two: list[float] = []
    apart: list[float] = []
    differ = 0
    for _ in range(rounds):
        alone = finish(start(name, folder, points, processes=1))
        shared = finish(start(name, folder, points, processes=2))
        both = [finish(each) for each in [start(name, folder, points, processes=1) for _ in range(2)]]
        differ += sum(a != b for a, b in zip(alone["robust"], shared["robust"], strict=True))
        one.append(alone["seconds"])
        two.append(shared["seconds"])
        apart.append(statistics.mean(each["seconds"] for each in both))
    ratios = [a / b for a, b in zip(one, two, strict=True)]
    return {
        "network": f"{name} small-cnn",
        "points": points,
        "rounds": rounds,
        "robust": f"{statistics.mean(alone['robust']):.1%}",
        "one process, s": round(statistics.median(one), 2),
        "two, s": round(statistics.median(two), 2),
        "one / two": round(statistics.median(ratios), 2),
        "smallest and largest": f"{min(ratios):.2f} and {max(ratios):.2f}",
        "two evaluations one after the other / at once": round(
            statistics.median(2 * a / b for a, b in zip(one, apart, strict=True)), 2
        ),
        "verdicts that differ": differ,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mnist", action="store_true", help="also on MNIST, from where ART keeps its data")
    parser.add_argument("--quick", action="store_true", help="a few points, once, which is not recorded")
    parser.add_argument("--here", choices=list(POINTS), help="measure in this process")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--points", type=int)
    args = parser.parse_args()
    if args.here:
        measure_here(args.here, args.folder, args.points)
        return
    rows = []
    for name in ["digits", *(["mnist"] if args.mnist else [])]:
        folder = Path("runs") / "processes_speed" / ("quick" if args.quick else "full") / name
        if not (folder / "eps.json").exists():
            train(name, folder, quick=args.quick)
        rows.append(measure(name, folder, 8 if args.quick else POINTS[name], 1 if args.quick else args.rounds))
        print(rows[-1], flush=True)
    print(table(rows))
    if not args.quick:
        print(save("processes_speed", rows))


if __name__ == "__main__":
    main()

"""The peak memory of an evaluation against the number of points, of classes, and the size of images.

    python benchmarks/evaluation_memory.py [--case 0 ...] [--package PATH]

Each case runs in a process of its own, with one thread: a network of one linear layer behind averages, whose own memory
is small, and an attack on it: Auto-PGD with two iterations, or the square attack with five queries. Half of the points
have a wrong label. The peak is that of the whole process, with Python, torch and ART. ``--package PATH`` measures
another version of the package, that in this folder, which is not recorded.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from saving import save, table

ROOT = Path(__file__).parents[1]
CASES = [
    (250, 10, 224, "apgd", "Linf"),
    (500, 10, 224, "apgd", "Linf"),
    (250, 1000, 224, "apgd", "Linf"),
    (1000, 10, 64, "apgd", "Linf"),
    (4000, 10, 64, "apgd", "Linf"),
    (5000, 1000, 224, "apgd", "Linf"),
    (250, 10, 224, "square", "Linf"),
    (250, 10, 224, "square", "L2"),
    (250, 10, 224, "square", "L1"),
    (1000, 10, 64, "square", "Linf"),
    (1000, 10, 64, "square", "L1"),
]
"""Points, classes, side, attack and norm of each case."""
RADII = {"Linf": 0.003, "L2": 0.05, "L1": 1.0}
BATCH_SIZES = {500: 500}
"""The size of a logical batch, where it is not 250."""


def measure(points: int, classes: int, side: int, name: str, norm: str) -> dict[str, Any]:
    """Evaluate in this process: the case, and its memory in MiB."""
    import torch
    from torch import nn

    from art_robust_plugins import evaluate
    from art_robust_plugins.evaluation.autoattack.apgd import APGD
    from art_robust_plugins.evaluation.autoattack.square import Square
    from art_robust_plugins.evaluation.libraries import Attack

    def prepare(setting: Any) -> Any:
        sizes = {"batch_size": setting.batch_size, "physical_batch_size": setting.physical_batch_size}
        if name == "square":
            return Square(setting.model, setting.threat, queries=5, **sizes), {}
        return APGD(setting.model, setting.threat, steps=2, **sizes), {}

    torch.set_num_threads(1)
    torch.manual_seed(0)
    before = read_peak()
    x = torch.rand(points, 3, side, side)
    network = nn.Sequential(nn.AvgPool2d(side // 4), nn.Flatten(), nn.Linear(48, classes))
    with torch.no_grad():
        y = torch.cat([network(part).argmax(dim=1) for part in x.split(50)])
    y[::2] = (y[::2] + 1) % classes
    attack = Attack(f"short-{name}", "a short form of it", prepare)
    size = BATCH_SIZES.get(points, 250)
    report = evaluate(network, x, y, norm, RADII[norm], attacks=attack, batch_size=size, verbose=False)
    data = x.numel() * 4 / 2**20
    peak = read_peak()
    return {
        "points": points,
        "classes": classes,
        "attack": f"{name}, {norm}",
        "image": f"3 x {side} x {side}",
        "batch": size,
        "clean": f"{report.clean_accuracy:.1%}",
        "robust": f"{report.robust_accuracy:.1%}",
        "images, MiB": round(data),
        "before, MiB": round(before),
        "peak, MiB": round(peak),
        "(peak - before) / images": round((peak - before) / data, 2),
    }


def read_peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, default=ROOT)
    parser.add_argument("--case", type=int, choices=range(len(CASES)), action="append")
    parser.add_argument("--here", action="store_true", help="Measure one case in this process.")
    given = parser.parse_args()
    cases = given.case or range(len(CASES))
    if given.here:
        print(json.dumps(measure(*CASES[cases[0]])))
        return
    results = []
    for case in cases:
        environment = {**os.environ, "PYTHONPATH": str(given.package.resolve()), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-W", "ignore", __file__, "--here", "--case", str(case)]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
        results.append(json.loads(done.stdout.splitlines()[-1]))
        print(results[-1], flush=True)
    print(table(results))
    if given.package.resolve() == ROOT:
        print(save("evaluation_memory", results))


if __name__ == "__main__":
    main()

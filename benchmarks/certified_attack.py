"""Does an attack break a certified prediction? It must not, for one that does refutes the proof.

    python benchmarks/certified_attack.py RUN [RUN ...] [--points 1000] [--restarts 5] [--record NAME]

RUN is a folder that ``art-robust train`` or ``benchmark`` wrote. Each of the first test images that the network
classifies correctly with a radius above 0 is attacked within ``SHARE`` of its own certified radius: PGD with 100 steps
on the gap between the label's logit and the largest other one, from random starts in the ball. Counted are the
images whose prediction changes, and how close the attack comes: the smallest gap that is left, as a share of the
clean one (a tight certificate leaves little; SHARE of its radius may take all but 0.1 % of it).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from saving import save, table
from torch import Tensor, nn

from art_robust_plugins import certify, load_classifier
from art_robust_plugins.data import load_data

SHARE = 0.999
STEPS = 100


def attack_within(network: nn.Module, x: Tensor, y: Tensor, radius: Tensor, *, restarts: int) -> tuple[Tensor, Tensor]:
    """PGD within each sample's own L2 radius.

    Returns:
        the smallest gap f_y - max_i f_i found for each sample, and whether the prediction changed: both [N].
    """
    generator = torch.Generator().manual_seed(0)
    smallest = torch.full((len(x),), torch.inf)
    broken = torch.zeros(len(x), dtype=torch.bool)
    reach = radius.view(-1, 1, 1, 1)

    def project(delta: Tensor) -> Tensor:
        length = delta.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(1e-12)
        return delta * (reach / length).clamp(max=1.0)

    for _ in range(restarts):
        delta = project(torch.randn(x.shape, generator=generator) * reach)
        for step in range(STEPS + 1):
            moved = (x + delta).clamp(0, 1).requires_grad_()
            logits = network(moved)
            others = logits.scatter(1, y[:, None], -torch.inf)
            gap = logits.gather(1, y[:, None])[:, 0] - others.amax(dim=1)
            smallest = torch.minimum(smallest, gap.detach())
            broken |= logits.argmax(dim=1) != y
            if step == STEPS:
                break
            (gradient,) = torch.autograd.grad(gap.sum(), moved)
            direction = gradient / gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1).clamp_min(1e-12)
            delta = project((moved.detach() - x) - 2.5 * reach / STEPS * direction)
    return smallest, broken


def measure(run: Path, points: int, restarts: int) -> dict[str, Any]:
    """Certify the first test images of a run's data, and attack those that have a radius."""
    classifier = load_classifier(run)
    data = load_data(json.loads((run / "classifier.json").read_text())["extra"]["data"])
    x, y = data.x_test[:points], data.y_test[:points]
    predicted, radius = certify(classifier, x)
    rows = np.flatnonzero((predicted == y) & (radius > 0))
    chosen, labels = torch.from_numpy(x[rows]), torch.from_numpy(y[rows])
    network = classifier.model.cpu().eval().requires_grad_(requires_grad=False)
    with torch.nn.utils.parametrize.cached():
        clean = network(chosen)
        others = clean.scatter(1, labels[:, None], -torch.inf).amax(dim=1)
        gap = clean.gather(1, labels[:, None])[:, 0] - others
        reach = torch.from_numpy(SHARE * radius[rows]).float()
        smallest, broken = attack_within(network, chosen, labels, reach, restarts=restarts)
    return {
        "run": f"{run.parent.name}/{run.name}",
        "images": len(x),
        "certified": len(rows),
        "median radius": float(np.median(radius[rows])) if len(rows) else 0.0,
        "broken": int(broken.sum()),
        "median gap left": float((smallest / gap).median()) if len(rows) else 1.0,
        "smallest gap left": float((smallest / gap).min()) if len(rows) else 1.0,
    }


def summary(results: list[dict[str, Any]]) -> list[dict[str, str]]:
    """A row for each network."""
    return [
        {
            "network": run["run"],
            "images": str(run["images"]),
            "with a radius": str(run["certified"]),
            "median radius": f"{run['median radius']:.2f}",
            "broken": str(run["broken"]),
            "gap left, % of the clean one: median, smallest": (
                f"{100 * run['median gap left']:.1f}, {100 * run['smallest gap left']:.2f}"
            ),
        }
        for run in results
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--restarts", type=int, default=5)
    parser.add_argument("--record", help="write results/NAME.json")
    args = parser.parse_args()
    results = [measure(run, args.points, args.restarts) for run in args.runs]
    print(table(summary(results)))
    if args.record:
        print(save(args.record, results, points=args.points, restarts=args.restarts, share=SHARE))


if __name__ == "__main__":
    main()

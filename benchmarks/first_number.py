"""Time to the first AutoAttack number for a plain network: this package's `evaluate`, beside AutoAttack used directly.

python benchmarks/first_number.py [--points 100] [--eps 8/255] [--seeds 3]

Networks on scikit-learn's digits, one for each seed, plainly trained here; one thread. For each way: the lines of code
that a user writes between a trained network with its data and the number, the seconds of the CPU they take (imports
apart; the smallest and the largest over the seeds), and the accuracies. RobustBench's `benchmark` takes its own data
sets, and so its lines are counted, not run.
"""

from __future__ import annotations

import argparse
import time
import warnings

import pyautoattack
import torch
from saving import save, table
from torch import nn

from art_robust_plugins import evaluate
from art_robust_plugins.data import load_data
from art_robust_plugins.threat import parse_radius

OURS = """
report = evaluate(network, x, y, "Linf", eps, verbose=False)
clean, robust = report.clean_accuracy, report.robust_accuracy
"""
DIRECT = """
network.eval()
adversary = pyautoattack.AutoAttack(network, norm="Linf", eps=eps, version="standard")
found, _ = adversary.run_standard_evaluation(x, y, batch_size=250)
with torch.no_grad():
    clean = (network(x).argmax(1) == y).float().mean().item()
    robust = (network(found).argmax(1) == y).float().mean().item()
"""
ROBUSTBENCH = """
clean, robust = benchmark(network, dataset="cifar10", threat_model="Linf", eps=eps, device="cpu")
"""


def train(x: torch.Tensor, y: torch.Tensor, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(300):
        batch = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    return network


def count_lines(code: str) -> int:
    return len(code.strip().splitlines())


def span(values: list[float], form: str) -> str:
    """The smallest and the largest value, or the one value that both are."""
    low, high = format(min(values), form), format(max(values), form)
    return low if low == high else f"{low} to {high}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--eps", default="8/255")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("digits")
    x, y = (torch.from_numpy(values[: arguments.points]) for values in (data.x_test, data.y_test))
    names = {"evaluate": evaluate, "pyautoattack": pyautoattack, "torch": torch}
    measured: dict[str, dict[str, list[float]]] = {}
    for seed in range(arguments.seeds):
        network = train(torch.from_numpy(data.x_train), torch.from_numpy(data.y_train), seed)
        for name, code in (("evaluate", OURS), ("pyautoattack", DIRECT)):
            scope = {**names, "network": network, "x": x, "y": y, "eps": parse_radius(arguments.eps)}
            start = time.process_time()  # of one thread, and so other work on the machine counts little
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(code, scope)
            found = {"seconds": time.process_time() - start, "clean": scope["clean"], "robust": scope["robust"]}
            for key, value in found.items():
                measured.setdefault(name, {}).setdefault(key, []).append(value)
    rows = [
        {
            "way": f"`{name}`",
            "lines": str(count_lines(code)),
            "CPU, s": span(measured[name]["seconds"], ".1f"),
            "clean": span(measured[name]["clean"], ".1%"),
            "robust": span(measured[name]["robust"], ".1%"),
        }
        for name, code in (("evaluate", OURS), ("pyautoattack", DIRECT))
    ]
    rows.append(
        {
            "way": "RobustBench's `benchmark`, of its own data sets",
            "lines": str(count_lines(ROBUSTBENCH)),
            **dict.fromkeys(("CPU, s", "clean", "robust"), "not run"),
        }
    )
    print(table(rows))
    seeds = list(range(arguments.seeds))
    print(save("first_number", {"rows": rows}, points=arguments.points, eps=arguments.eps, seeds=seeds))


if __name__ == "__main__":
    main()

"""Time to the first AutoAttack number for a plain network: this package's `evaluate`, beside AutoAttack used directly.

python benchmarks/first_number.py [--points 100] [--eps 8/255]

One network on scikit-learn's digits, one thread. Prints, for each way, the lines of code that a user writes between a
trained network with its data and the number, the seconds of the CPU they take (imports apart), and the accuracies. The
network is trained here, plainly. RobustBench's `benchmark` takes its own data sets, and so its lines are counted, not
run.
"""

from __future__ import annotations

import argparse
import time
import warnings

import pyautoattack
import torch
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


def train(x: torch.Tensor, y: torch.Tensor) -> nn.Module:
    torch.manual_seed(0)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--eps", type=parse_radius, default="8/255")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data("digits")
    network = train(torch.from_numpy(data.x_train), torch.from_numpy(data.y_train))
    x, y = (torch.from_numpy(values[: arguments.points]) for values in (data.x_test, data.y_test))
    names = {"evaluate": evaluate, "pyautoattack": pyautoattack, "torch": torch}
    for name, code in (("evaluate", OURS), ("pyautoattack", DIRECT)):
        scope = {**names, "network": network, "x": x, "y": y, "eps": arguments.eps}
        start = time.process_time()  # of one thread, and so other work on the machine counts little
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(code, scope)
        seconds = time.process_time() - start
        lines = len(code.strip().splitlines())
        print(
            f"{name}: {lines} lines, {seconds:.1f} s of CPU, clean {scope['clean']:.2%}, robust {scope['robust']:.2%}"
        )
    print(
        f"RobustBench: {len(ROBUSTBENCH.strip().splitlines())} line, for cifar10, cifar100 and imagenet alone (not run)"
    )


if __name__ == "__main__":
    main()

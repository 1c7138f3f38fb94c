"""The time of a training step of 6C2F with MinMax: by today's backward pass, in channels_last, and in bfloat16.

    python benchmarks/minmax_speed.py [--quick] [--threads 1] [--trainings standard]

All are compared with the default of earlier versions: float32, images in the usual memory format, and MinMax as torch
differentiates it. They take turns, as in training_step.py. With one thread times are those of the CPU, so that other
load does not count.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from saving import save, table
from torch import Tensor, nn
from training_step import Bench, Fit, Setting, fit, with_steady_memory

from art_robust_plugins.models import MinMax
from art_robust_plugins.training import LipschitzMarginTrainer, RobustTrainer, StandardTrainer, TrainingOptions

SETTING = Setting("6c2f", (3, 32, 32), 128, {"activation": "minmax"})
OPTIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "channels_last": {"channels_last": True},
    "bf16": {"mixed_precision": "bf16"},
    "bf16 and channels_last": {"mixed_precision": "bf16", "channels_last": True},
}
Make = Callable[[PyTorchClassifier, TrainingOptions], RobustTrainer]
TRAININGS: dict[str, Make] = {
    "standard": lambda classifier, options: StandardTrainer(classifier, options=options),
    "Lipschitz margin": lambda classifier, options: LipschitzMarginTrainer(classifier, c=0.1, options=options),
}


class EarlierMinMax(MinMax):
    """MinMax of earlier versions: autograd saves both halves and compares them again."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


def take_earlier(network: nn.Module) -> None:
    for name, module in [*network.named_modules()]:
        if isinstance(module, MinMax):
            network.set_submodule(name, EarlierMinMax())


def measure(name: str, make: Make, setting: Setting, bench: Bench) -> dict[str, Any]:
    def make_earlier() -> Fit:
        classifier = setting.classifier("cpu")
        take_earlier(classifier.model)
        return fit(make(classifier, TrainingOptions(seed=0)), setting.batch)

    def make_now(options: dict[str, Any]) -> Callable[[], Fit]:
        return lambda: fit(make(setting.classifier("cpu"), TrainingOptions(seed=0, **options)), setting.batch)

    makers = {"earlier": make_earlier, **{title: make_now(options) for title, options in OPTIONS.items()}}
    found = bench.compare(makers, setting, least=3, memory=False)
    return {
        "training": name,
        "network": f"{setting.network}, MinMax",
        "batch": setting.batch,
        "earlier default, ms": found.step("earlier"),
        **{f"earlier / {title}, time": found.slowdown("earlier", title) for title in OPTIONS},
    }


def main() -> None:
    with_steady_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trainings", nargs="+", choices=list(TRAININGS), default=list(TRAININGS))
    parser.add_argument("--quick", action="store_true", help="a batch of 8, few rounds; not recorded")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.threads == 1:
        time.perf_counter = time.process_time
    setting = Setting(SETTING.network, SETTING.shape, 8, SETTING.arguments) if args.quick else SETTING
    bench = Bench("cpu", args.threads, 2 if args.quick else args.rounds, lasting=0, call=0.2 if args.quick else 1.4)
    rows = []
    for name in args.trainings:
        rows.append(measure(name, TRAININGS[name], setting, bench))
        print(rows[-1], flush=True)
    print(table(rows))
    if not args.quick:
        print(save("minmax_speed", rows, rounds=args.rounds))


if __name__ == "__main__":
    main()

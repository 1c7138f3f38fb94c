"""A comparison of our AutoAttack's verdicts with the reference's, point by point, in many settings.

    python benchmarks/autoattack_parity.py [--quick] [--workers 1]

Four networks: a small CNN on the digits (8x8, gray) and a residual one with batch normalisation on the digits as
coloured images [3, 32, 32], each trained plainly and adversarially. Each is attacked by the standard version in three
norms, at two radii, with three seeds and two logical batch sizes; with ten classes, and the first network with four as
well. The first network is also attacked by the versions plus and rand. Every stage's verdicts are compared point by
point. Ours runs with physical batches of 64 and, for the first seed at the larger radius and the smaller logical batch,
of 7 and (digits) of 1 as well. Random numbers depend on the points that are left, so that one different verdict changes
the following ones. If verdicts differ, the reference runs again with each image five times in a pass, which changes
only rounding; the number of its verdicts that this changes is reported too.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import product
from multiprocessing import get_context
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from saving import save, table
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins import ThreatModel
from art_robust_plugins.data import load_data
from art_robust_plugins.evaluation.autoattack import AutoAttack
from art_robust_plugins.evaluation.autoattack.standard import Version
from art_robust_plugins.evaluation.libraries import reference_package
from art_robust_plugins.models import create_model
from art_robust_plugins.training import PGDTrainer, StandardTrainer, TrainingOptions

RADII = {
    ("digits", "plain"): {"Linf": (0.08, 0.14), "L2": (0.4, 0.7), "L1": (1.0, 2.0)},
    ("digits", "adversarial"): {"Linf": (0.15, 0.25), "L2": (0.8, 1.3), "L1": (2.0, 4.0)},
    ("coloured", "plain"): {"Linf": (0.02, 0.035), "L2": (0.6, 0.9), "L1": (8.0, 12.0)},
    ("coloured", "adversarial"): {"Linf": (0.06, 0.1), "L2": (1.2, 1.6), "L1": (20.0, 30.0)},
}
NORMS, SEEDS = ("Linf", "L2", "L1"), (0, 1, 2)
# Points that are attacked, and logical batch sizes; the smaller one splits them.
POINTS = {"digits": (30, (12, 250)), "coloured": (12, (5, 250))}
Network = tuple[str, str, int]
FIRST: Network = ("digits", "plain", 10)


@dataclass(frozen=True)
class Case:
    """A setting of the reference, and the physical batch sizes that ours has in it."""

    threat: ThreatModel
    seed: int
    batch: int
    physical: tuple[int, ...]
    version: Version


def images(kind: str, classes: int) -> tuple[Any, ...]:
    data = load_data("digits")
    parts: list[Any] = []
    for arrays in ((data.x_train, data.y_train), (data.x_test, data.y_test)):
        x, y = (torch.from_numpy(values[arrays[1] < classes]) for values in arrays)
        if kind == "coloured":
            colours = 0.5 + 0.5 * torch.rand(len(x), 3, 1, 1, generator=torch.Generator().manual_seed(0))
            x = functional.interpolate(x, scale_factor=4) * colours
        parts += [x.numpy(), y.numpy()]
    return tuple(parts)


class Residual(nn.Module):
    """Residual blocks with batch normalisation for images [3, 32, 32], small enough for many evaluations on a CPU."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)) for _ in range(3)
        )
        self.head = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(256, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        logits: Tensor = self.head(x)
        return logits


def train_network(network: Network) -> tuple[nn.Module, Tensor, Tensor]:
    kind, training, classes = network
    x_train, y_train, x_test, y_test = images(kind, classes)
    torch.manual_seed(0)
    module = create_model("small-cnn", x_train.shape[1:], classes) if kind == "digits" else Residual(classes)
    classifier = PyTorchClassifier(
        module,
        nn.CrossEntropyLoss(),
        x_train.shape[1:],
        classes,
        optimizer=torch.optim.Adam(module.parameters(), 2e-3),
        clip_values=(0, 1),
        device_type="cpu",
    )
    options = TrainingOptions(seed=0)
    if training == "plain":
        trainer: Any = StandardTrainer(classifier, options=options)
    else:
        threat = ThreatModel("Linf", 0.1 if kind == "digits" else 0.03)
        trainer = PGDTrainer(classifier, threat=threat, steps=3, options=options)
    trainer.fit(x_train, y_train, nb_epochs=8 if kind == "digits" else 6, verbose=False)
    return module.eval(), torch.from_numpy(x_test), torch.from_numpy(y_test)


class FiveTimes(nn.Module):
    """A network that computes each image five times, in one pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(torch.cat(5 * [x]))[: len(x)]
        return logits


class _Silent:
    def warning(self, message: object) -> None:
        pass


def reference(case: Case, network: nn.Module, x: Tensor, y: Tensor) -> list[np.ndarray]:
    """Run the reference: the points that each of its stages left."""
    package, threat = reference_package()[0], case.threat
    ensemble = package.AutoAttack(
        network, norm=threat.norm, eps=threat.eps, seed=case.seed, version=case.version, device="cpu"
    )
    ensemble.apgd.logger = ensemble.apgd_targeted.logger = _Silent()
    classes = network(x[:1]).shape[1]
    ensemble.apgd_targeted.n_target_classes = min(ensemble.apgd_targeted.n_target_classes, classes - 1)
    ensemble.fab.n_target_classes = min(ensemble.fab.n_target_classes, classes - 1)
    with torch.no_grad():
        robust = network(x).argmax(dim=1) == y
        left = []
        for stage in ensemble.attacks_to_run:
            attack = ensemble.apgd
            if stage == "square":
                attack = ensemble.square
            elif stage == "apgd-t":
                attack = ensemble.apgd_targeted
            elif stage == "fab":
                attack = ensemble.fab
                attack.targeted = False
            elif stage == "fab-t":
                attack = ensemble.fab
                attack.targeted, attack.n_restarts = True, 1
            else:
                attack.loss = stage.removeprefix("apgd-")
            for points in robust.nonzero().flatten().split(case.batch):
                found = attack.perturb(x[points].clone(), y[points].clone())
                robust[points] = network(found).argmax(dim=1) == y[points]
            left.append(robust.numpy().copy())
    return left


def differences(left: list[np.ndarray], expected: list[np.ndarray]) -> int:
    """Count the verdicts that differ, over all stages."""
    return sum(int((ours != theirs).sum()) for ours, theirs in zip(left, expected, strict=True))


def list_cases(network: Network) -> list[Case]:
    kind, training, _ = network
    cases = []
    for norm, which, seed, batch in product(NORMS, (0, 1), SEEDS, POINTS[kind][1]):
        threat = ThreatModel(norm, RADII[kind, training][norm][which])
        all_sizes = (seed, which, batch) == (0, 1, POINTS[kind][1][0])
        sizes = (64,) if not all_sizes else (1, 7, 64) if kind == "digits" else (7, 64)
        cases.append(Case(threat, seed, batch, sizes, "standard"))
    if network == FIRST:
        for norm, version in product(NORMS, ("plus", "rand")):
            cases.append(Case(ThreatModel(norm, RADII[kind, training][norm][1]), 0, 12, (64,), version))
    return cases


def compare(network: Network, few: bool) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    module, x, y = train_network(network)
    kind, training, classes = network
    points = 12 if few else POINTS[kind][0]
    x, y = x[:points], y[:points]
    rows = []
    cases = list_cases(network)
    for case in cases[:1] if few else cases:
        expected = reference(case, module, x, y)
        for physical in case.physical:
            attack = AutoAttack(
                module,
                case.threat,
                version=case.version,
                seed=case.seed,
                batch_size=case.batch,
                physical_batch_size=physical,
            )
            found = list(attack.run(x, y).left.values())
            differ = differences([left.numpy() for left in found], expected)
            again = differences(reference(case, FiveTimes(module), x, y), expected) if differ else "not run"
            rows.append(
                {
                    "network": f"{kind}, {training}, {classes} classes",
                    "version": case.version,
                    "threat": f"{case.threat.norm} {case.threat.eps:g}",
                    "seed": case.seed,
                    "batch": case.batch,
                    "physical": physical,
                    "left": f"{int(expected[-1].sum())} of {len(x)}",
                    "verdicts": len(expected) * len(x),
                    "different": differ,
                    "the reference from itself": again,
                }
            )
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a minute, two networks and 12 points; not recorded")
    args = parser.parse_args()
    networks: list[Network] = [(kind, training, 10) for kind, training in RADII] + [("digits", "plain", 4)]
    if args.quick:
        networks = networks[::4]
    with ProcessPoolExecutor(args.workers, mp_context=get_context("spawn")) as pool:
        found = [pool.submit(compare, network, args.quick) for network in networks]
        rows = [row for each in found for row in each.result()]
    names = dict.fromkeys(row["network"] for row in rows)
    total = [
        {
            "network": name,
            "runs": sum(row["network"] == name for row in rows),
            "verdicts": sum(row["verdicts"] for row in rows if row["network"] == name),
            "different": sum(row["different"] for row in rows if row["network"] == name),
        }
        for name in names
    ]
    print("\n" + table(total))
    if not args.quick:
        print(save("autoattack_parity", {"total": total, "runs": rows}))


if __name__ == "__main__":
    main()

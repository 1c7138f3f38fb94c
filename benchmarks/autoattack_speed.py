"""The time of the standard evaluation: our AutoAttack, the reference, torchattacks (100 steps) and ART's own.

    python benchmarks/autoattack_speed.py [--quick] [--data DIR] [--cifar DIR] [--cases digits ... [--keep]]
    python benchmarks/autoattack_speed.py --device gpu --cases preact-resnet18 --cifar DIR [--within SECONDS]

Each network is trained adversarially for a short time. The first test images that it classifies correctly are then
attacked at the two radii that leave about half and (of more images) about 2 % of them. All run on the same points in
one process, in turns; verdicts, diagnostics and reports are not timed. The verdicts of ours and the reference's are
compared point by point. One-channel images are also evaluated without channels_last. A network trained for a Lipschitz
margin is attacked in L2, where certified points need no attack.

Further tables have the images that passed through the network, each stage, and where our seconds go, from a run of its
own: passes forward, passes backward, and the rest, which is the attack itself. With one thread on a CPU, seconds are
the process's CPU time, so that other load does not count; on a GPU, the clock is read when the device has finished.
PreActResNet-18 is attacked at 8/255 alone, and runs only if it is asked for: it is meant for a GPU. MNIST and CIFAR-10
are left out where their data are not given. torchattacks and ART run if they are asked for (--others); ART's AutoAttack
is another ensemble, needs a package that ART does not declare (multiprocess), and takes many times as long: it runs on
the digits, once. The process has the memory settings of glibc that the command line sets for itself; --default-memory
measures without them.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import art
import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from saving import RESULTS, save, table
from torch import nn
from training_step import with_steady_memory

from art_robust_plugins import Evaluator, LipschitzMarginTrainer, PyTorchLipschitzCertifier, ThreatModel
from art_robust_plugins.bridge import EstimatorModule
from art_robust_plugins.data import load_data
from art_robust_plugins.evaluation.autoattack.apgd import APGD
from art_robust_plugins.evaluation.autoattack.fab import FAB
from art_robust_plugins.evaluation.autoattack.square import Square
from art_robust_plugins.evaluation.running import AttackRunner
from art_robust_plugins.files import read_json
from art_robust_plugins.models import create_model
from art_robust_plugins.training import PGDTrainer, TrainingOptions

SHARES = (0.5, 0.02)
BATCH = 250


@dataclass(frozen=True)
class Case:
    """A network, how it is trained, how many test images are attacked at each radius, and how often.

    The radii are searched for by this many halvings of an interval, one for each of `SHARES`; or there is one, ``eps``.
    """

    data: str
    network: str
    train_eps: float
    epochs: int
    images: int
    points: tuple[int, ...]
    rounds: int
    arguments: dict[str, Any]
    eps: float | None = None
    halvings: int = 7


DIGITS = Case("digits", "small-cnn", 0.1, 15, 1437, (100, 200), 3, {})
MNIST = Case("mnist", "small-cnn", 0.15, 2, 5_000, (30, 100), 1, {})
CIFAR = Case("cifar10", "wide-resnet", 2 / 255, 2, 4_000, (20, 100), 1, {"depth": 10, "widen_factor": 1}, halvings=10)
RESNET = Case("cifar10", "preact-resnet18", 8 / 255, 1, 10_000, (100,), 1, {}, eps=8 / 255)
# The Lipschitz-margin network: its c, its radius in L2 and its points.
MARGIN, MARGIN_EPS, MARGIN_POINTS = 0.5, 0.2, 340


def train_network(case: Case, data: Any, device: str) -> PyTorchClassifier:
    torch.manual_seed(0)
    network = create_model(case.network, data.x_train.shape[1:], data.nb_classes, **case.arguments)
    return train_as(case, network, data, device)


def train_as(case: Case, network: nn.Module, data: Any, device: str) -> PyTorchClassifier:
    """Train a network as that of this case is trained."""
    classifier = PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        data.x_train.shape[1:],
        data.nb_classes,
        optimizer=torch.optim.Adam(network.parameters(), 2e-3),
        clip_values=(0, 1),
        device_type=device,
    )
    trainer = PGDTrainer(
        classifier, threat=ThreatModel("Linf", case.train_eps), steps=3, options=TrainingOptions(seed=0)
    )
    trainer.fit(data.x_train[: case.images], data.y_train[: case.images], nb_epochs=case.epochs, verbose=False)
    return classifier


def train_certifier(data: Any) -> PyTorchLipschitzCertifier:
    torch.manual_seed(0)
    shape = data.x_train.shape[1:]
    network = create_model("orthogonal-mlp", shape, data.nb_classes, width=64, depth=2)
    classifier = PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        shape,
        data.nb_classes,
        optimizer=torch.optim.Adam(network.parameters(), 5e-3),
        clip_values=(0, 1),
    )
    trainer = LipschitzMarginTrainer(classifier, c=MARGIN, options=TrainingOptions(seed=0))
    trainer.fit(data.x_train, data.y_train, nb_epochs=15, batch_size=64, verbose=False)
    return PyTorchLipschitzCertifier.from_classifier(classifier)


def evaluate(
    classifier: PyTorchClassifier, eps: float, x: Any, y: Any, *, norm: Any = "Linf", plain: bool = False, **more: Any
) -> Any:
    """Evaluate; ``plain`` without channels_last."""
    arguments = {"batch_size": BATCH, "verbose": False, **more}
    chosen = "art_robust_plugins.evaluation.preparation.choose_layout"
    with patch(chosen, lambda model, image: model) if plain else nullcontext():
        return Evaluator(classifier, ThreatModel(norm, eps), **arguments).evaluate(x, y)


@contextmanager
def split_seconds() -> Iterator[dict[str, dict[str, float]]]:
    """By stage, the seconds of passes forward and backward and of all, of the evaluation that runs inside."""
    spent: dict[str, dict[str, float]] = {}
    stages: list[str] = []
    attacking: list[str] = []
    run = AttackRunner.run

    def run_stage(runner: Any, prepared: Any, points: Any) -> Any:
        stages.append(prepared.attack.name)
        return run(runner, prepared, points)

    def call_attack(function: Any) -> Any:
        def call(*given: Any) -> Any:
            attacking.append(stages[-1])
            try:
                return timed(*given)
            finally:
                attacking.pop()

        timed = count("all", function)
        return call

    def count(kind: str, function: Any) -> Any:
        def call(*given: Any, **more: Any) -> Any:
            synchronise()
            started = time.perf_counter()
            try:
                return function(*given, **more)
            finally:
                synchronise()
                if attacking:  # else it is a pass of a verdict
                    parts = spent.setdefault(attacking[-1], {"forward": 0.0, "backward": 0.0, "all": 0.0})
                    parts[kind] += time.perf_counter() - started

        return call

    with ExitStack() as patches:
        for attack in (APGD, FAB, Square):
            patches.enter_context(patch.object(attack, "__call__", call_attack(attack.__call__)))
        patches.enter_context(patch.object(EstimatorModule, "forward", count("forward", EstimatorModule.forward)))
        patches.enter_context(patch.object(torch.autograd, "grad", count("backward", torch.autograd.grad)))
        patches.enter_context(patch.object(AttackRunner, "run", run_stage))
        yield spent


def synchronise() -> None:
    """Wait for the GPU, if there is one, so that a clock measures what was computed."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def radius(classifier: PyTorchClassifier, share: float, x: Any, y: Any, halvings: int) -> float:
    """Find the radius at which Auto-PGD leaves about this share of the points."""
    low, high = 0.0, 0.5
    for _ in range(halvings):
        middle = (low + high) / 2
        left = evaluate(classifier, middle, x, y, attacks="fast").robust_accuracy
        low, high = (middle, high) if left > share else (low, middle)
    # At the upper end at most this share is left, but at least one point should be.
    return high if share > 0.1 else low


def run_art(classifier: PyTorchClassifier, eps: float, x: Any, y: Any) -> tuple[float, float]:
    """Seconds and robust accuracy of ART's AutoAttack."""
    from art.attacks.evasion import AutoAttack

    started = time.perf_counter()
    attack = AutoAttack(classifier, norm=np.inf, eps=eps, eps_step=eps / 4, batch_size=BATCH)
    found = attack.generate(x, y)
    seconds = time.perf_counter() - started
    return seconds, float((classifier.predict(found).argmax(axis=1) == y).mean())


def calls(report: Any) -> str:
    """The images that passed through the network, forward and backward."""
    kinds = ("forward", "backward")
    counts = [sum(getattr(result, f"{kind}_calls") for result in report.attacks) for kind in kinds]
    return " / ".join(f"{count:,}" for count in counts)


OURS: dict[str, Any] = {"attacks": "standard"}
REFERENCE: dict[str, Any] = {"attacks": "standard", "backend": "reference"}
TORCHATTACKS: dict[str, Any] = {"attacks": "torchattacks-autoattack"}
PLAIN: dict[str, Any] = {"attacks": "standard", "plain": True}
NOT_RUN = "not run"


def compare(
    name: str, classifier: PyTorchClassifier, eps: float, x: Any, y: Any, runs: dict[str, dict[str, Any]], rounds: int
) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """Run in turns: the row of the tables, and the last reports."""
    taken: dict[str, list[float]] = {each: [] for each in runs}
    reports: dict[str, Any] = {}
    for turn in range(rounds):
        for each in [*list(runs)[turn % len(runs) :], *list(runs)[: turn % len(runs)]]:
            reports[each] = evaluate(classifier, eps, x, y, **runs[each])
            taken[each].append(sum(result.seconds for result in reports[each].attacks))
    ours, theirs = reports["ours"], reports["reference"]
    row: dict[str, Any] = {"network": name, "points": len(x), "rounds": rounds, "eps": round(eps, 4)}
    row["robust, ours"] = f"{ours.robust_accuracy:.1%}"
    row["verdicts that differ from the reference's"] = int((ours.robust != theirs.robust).sum())
    for each in ("ours", "reference", "torchattacks"):
        row[f"{each}, s"] = round(statistics.median(taken[each]), 2) if each in runs else NOT_RUN
    for each, title in (
        ("reference", "reference / ours, time"),
        ("torchattacks", "torchattacks / ours, time"),
        ("plain", "without channels_last / with, time"),
    ):
        row[title] = NOT_RUN
        if each in runs:
            pairs = zip(taken[each], taken["ours"], strict=True)
            row[title] = round(statistics.median(other / own for other, own in pairs), 2)
    passes = {each: sum(r.forward_calls + r.backward_calls for r in reports[each].attacks) for each in reports}
    row["reference / ours, images passed"] = round(passes["reference"] / passes["ours"], 2)
    row["robust, torchattacks"] = (
        f"{reports['torchattacks'].robust_accuracy:.1%}" if "torchattacks" in runs else NOT_RUN
    )
    stages = [
        {
            "network": name,
            "eps": row["eps"],
            "stage": own.name,
            "left": f"{own.robust_accuracy:.1%}",
            "ours, s": round(own.seconds, 2),
            "reference, s": round(other.seconds, 2),
            "ours, forward / backward": f"{own.forward_calls:,} / {own.backward_calls:,}",
            "reference, forward / backward": f"{other.forward_calls:,} / {other.backward_calls:,}",
        }
        for own, other in zip(ours.attacks, theirs.attacks, strict=True)
    ]
    images = {key: row[key] for key in ("network", "eps")} | {each: calls(reports[each]) for each in reports}
    return row, stages, images


def locate_seconds(
    name: str, classifier: PyTorchClassifier, eps: float, x: Any, y: Any, **arguments: Any
) -> list[dict[str, Any]]:
    """Rows that say where our seconds go, stage by stage."""
    with split_seconds() as spent:
        evaluate(classifier, eps, x, y, **arguments)
    return [
        {
            "network": name,
            "eps": round(eps, 4),
            "stage": stage,
            "forward, s": round(parts["forward"], 2),
            "backward, s": round(parts["backward"], 2),
            "the attack itself, s": round(parts["all"] - parts["forward"] - parts["backward"], 2),
        }
        for stage, parts in spent.items()
    ]


def measure(case: Case, data: Any, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of each radius, by table."""
    started = time.perf_counter()
    classifier = train_network(case, data, args.device)
    right = (classifier.predict(data.x_test).argmax(axis=1) == data.y_test).nonzero()[0]
    runs = {"ours": OURS, "reference": REFERENCE}
    runs |= {"torchattacks": TORCHATTACKS} if args.others else {}
    runs |= {"plain": PLAIN} if data.x_test.shape[1] == 1 else {}
    name = f"{case.data} {case.network}"
    for share, points in zip(SHARES, case.points, strict=False):  # a case with a radius of its own has one
        x, y = data.x_test[right[:points]], data.y_test[right[:points]]
        eps = radius(classifier, share, x, y, case.halvings) if case.eps is None else case.eps
        evaluate(classifier, eps, x[:1], y[:1], attacks="apgd-ce")  # a first call also loads code
        row, stages, images = compare(name, classifier, eps, x, y, runs, args.rounds or case.rounds)
        result = run_art(classifier, eps, x, y) if args.others and case.data == "digits" else None
        row["ART, s"], row["robust, ART"] = (
            (NOT_RUN, NOT_RUN) if result is None else (round(result[0], 1), f"{result[1]:.1%}")
        )
        yield {"whole": [row], IMAGES: [images], "stages": stages}
        if args.within is None or time.perf_counter() - started < args.within:
            yield {"seconds": locate_seconds(name, classifier, eps, x, y, **OURS)}


def measure_certified(data: Any, args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of the Lipschitz-margin network, by table."""
    certifier = train_certifier(data)
    right = (certifier.predict(data.x_test).argmax(axis=1) == data.y_test).nonzero()[0]
    right = right[: 30 if args.quick else MARGIN_POINTS]
    x, y = data.x_test[right], data.y_test[right]
    runs = {"ours": {**OURS, "norm": "L2"}, "reference": {**REFERENCE, "norm": "L2"}}
    name = "digits orthogonal-mlp, Lipschitz margin, L2"
    row, stages, images = compare(name, certifier, MARGIN_EPS, x, y, runs, args.rounds or 1)
    seconds = locate_seconds(name, certifier, MARGIN_EPS, x, y, **runs["ours"])
    yield {
        "whole": [row | {"ART, s": NOT_RUN, "robust, ART": NOT_RUN}],
        IMAGES: [images],
        "stages": stages,
        "seconds": seconds,
    }


IMAGES = "images forward / backward"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--data", help="folder with mnist.npz")
    parser.add_argument("--cifar", help="folder with cifar-10-batches-py, or CIFAR-10 or a part of it as an .npz file")
    parser.add_argument("--cases", nargs="+", default=["digits", "lipschitz", "mnist", "cifar10"], help="only these")
    parser.add_argument("--keep", action="store_true", help="keep the rows of other networks in the record")
    parser.add_argument("--rounds", type=int, help="how often each row is measured")
    parser.add_argument(
        "--others", action="store_true", help="torchattacks, and on the digits ART's AutoAttack, as well"
    )
    parser.add_argument("--default-memory", action="store_true", help="with glibc's default settings")
    parser.add_argument("--device", default="cpu", choices=["cpu", "gpu"])
    parser.add_argument("--within", type=float, help="after so many seconds, do not ask where our seconds go")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the record")
    parser.add_argument("--quick", action="store_true", help="a minute or two, 30 digits; not recorded")
    args = parser.parse_args()
    if not args.default_memory:
        with_steady_memory()
    torch.set_num_threads(args.threads)
    if args.device == "cpu" and args.threads == 1:
        time.perf_counter = time.process_time
    results: dict[str, list[dict[str, Any]]] = {"whole": [], IMAGES: [], "stages": [], "seconds": []}
    record = "autoattack_speed" if args.device == "cpu" else "autoattack_speed_cuda"
    known = read_json(args.results / f"{record}.json")["results"] if args.keep else {}
    for rows in find_rows(args):
        for name, some in rows.items():
            results[name].extend(some)
        print(*rows.get("whole", []), *rows.get("seconds", []), sep="\n", flush=True)
        if not args.quick:
            memory = "glibc's defaults" if args.default_memory else "freed memory is kept, as by the command line"
            whole = add_known(results, known)
            print(save(record, whole, folder=args.results, seed=0, memory=memory, cores=os.cpu_count()))
    for name, each in results.items():
        if each:
            print(f"\n{name}\n\n{table(each)}")


def add_known(results: dict[str, Any], known: dict[str, Any]) -> dict[str, Any]:
    """The tables with the known rows of networks that they do not have, which come first."""
    measured = {row["network"] for row in results["whole"]}
    return {
        name: [*(row for row in known.get(name, []) if row["network"] not in measured), *rows]
        for name, rows in results.items()
    }


def find_rows(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the rows of each network and radius."""
    if "digits" in args.cases:
        case = replace(DIGITS, epochs=3, points=(30, 30), rounds=1) if args.quick else DIGITS
        yield from measure(case, load_data("digits"), args)
    if "lipschitz" in args.cases:
        yield from measure_certified(load_data("digits"), args)
    if args.data is not None and "mnist" in args.cases and not args.quick:
        art.config.set_data_path(args.data)
        yield from measure(MNIST, load_data("mnist"), args)
    for case in (CIFAR, RESNET):
        asked = case.data if case is CIFAR else case.network
        if asked in args.cases and args.quick and case is RESNET:
            yield from measure(replace(case, epochs=1, images=64, points=(2,), eps=0.5), load_data("digits"), args)
        elif asked in args.cases and args.cifar is not None and not args.quick:
            if Path(args.cifar).is_dir():
                art.config.set_data_path(args.cifar)
            yield from measure(case, load_data("cifar10" if Path(args.cifar).is_dir() else Path(args.cifar)), args)


if __name__ == "__main__":
    main()

"""Time and memory of a training step, compared with a loop written by hand and with ART's trainers.

    python benchmarks/training_step.py [--quick] [--device cuda] [--threads 2] [--within SECONDS --networks NAME ...]

Time: the trainings of a row take turns in one process; a ratio is the median over rounds of the ratio of two successive
times, over at least five rounds, and more for short steps. In comparisons with other loops, whole calls of ``fit`` are
timed and divided by their steps; for options, the second of two epochs, since a compiler runs in the first. Memory:
each kind of training runs once; on a CPU in a separate process, as the peak of resident memory less that with all code
loaded; on CUDA as ``max_memory_allocated`` less the memory allocated before. Images are random.

glibc is set to keep freed memory: otherwise it returns some of it in every step, and allocating it again costs up to a
fifth of a small network's step, at random, in every row.

The file is long because each method stands beside its loop by hand and ART's trainer, and all are measured alike.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import os
import resource
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch._dynamo  # or each process below would load it in its first step
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.trainer import AdversarialTrainerMadryPGD, AdversarialTrainerTRADESPyTorch
from art.estimators.classification import PyTorchClassifier
from saving import RESULTS, save, table
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins.models import create_model
from art_robust_plugins.threat import ThreatModel
from art_robust_plugins.training import (
    BANG,
    BANGTrainer,
    Layerwise,
    LayerwiseAdversarialTrainer,
    LipschitzMarginTrainer,
    LocalBallTrainer,
    RobustTrainer,
    StandardTrainer,
    TrainingOptions,
)
from art_robust_plugins.weight_map import PyTorchWeightMapClassifier

EPS, STEP = 0.1, 0.025
THREAT = ThreatModel("Linf", EPS)
MMAP_THRESHOLD = -3
"""The code of this setting in glibc's malloc.h."""
WARM_UP = 2
"""The number of samples of the training that loads all code before memory is measured."""

HandLoss = Callable[[nn.Module, Tensor, Tensor], Tensor]
Fit = Callable[[Tensor, Tensor], float | None]
"""A training on tensors; it may return its own time in seconds."""


# --------------------------------------------------------------------------------------------- loops written by hand


def by_hand(classifier: PyTorchClassifier, x: Tensor, y: Tensor, batch_size: int, loss: HandLoss) -> None:
    """A training loop in plain torch, as written without a library."""
    network, optimizer = classifier.model, classifier.optimizer
    order = torch.randperm(len(x)).to(x.device)
    network.train()
    for begin in range(0, len(x), batch_size):
        rows = order[begin : begin + batch_size]
        optimizer.zero_grad(set_to_none=True)
        loss(network, x[rows], y[rows]).backward()
        optimizer.step()


def plain_loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(network(images), labels)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return functional.kl_div(q.log_softmax(1), p.softmax(1), reduction="batchmean")


def adversarial_loss(
    network: nn.Module, images: Tensor, labels: Tensor, *, steps: int, divergent: bool, local: bool
) -> Tensor:
    """The loss of PGD; with ``divergent`` that of TRADES; with ``local`` plus a local ball."""
    network.eval()
    if divergent:
        with torch.no_grad():
            clean = network(images)
    moved = (images + (2 * torch.rand_like(images) - 1) * EPS).clamp(0, 1)
    for _ in range(steps):
        moved.requires_grad_()
        logits = network(moved)
        objective = divergence(clean, logits) if divergent else functional.cross_entropy(logits, labels)
        (gradient,) = torch.autograd.grad(objective, moved)
        moved = moved.detach() + STEP * gradient.sign()
        moved = (images + (moved - images).clamp(-EPS, EPS)).clamp(0, 1)
    if local:
        with torch.no_grad():
            center = network(moved)
        beside = (moved + (2 * torch.rand_like(images) - 1) * EPS / 4).clamp(0, 1).requires_grad_()
        (gradient,) = torch.autograd.grad(divergence(center, network(beside)), beside)
        point = moved + EPS / 2 * gradient.sign()
        point = (images + (point - images).clamp(-EPS, EPS)).clamp(0, 1)
    network.train()
    if divergent:
        logits = network(images)
        at_moved = network(moved)
        loss = functional.cross_entropy(logits, labels) + 6 * divergence(logits, at_moved)
    else:
        at_moved = network(moved)
        loss = functional.cross_entropy(at_moved, labels)
    return loss + 6 * divergence(at_moved, network(point)) if local else loss


# ------------------------------------------------------------------------------------------------------- what is run


@dataclass(frozen=True)
class Method:
    """A method, the loop by hand that it is compared with, and the most that its time may be as a multiple of it."""

    make: Callable[[PyTorchClassifier, TrainingOptions], RobustTrainer]
    hand: HandLoss
    target: float
    art: str | None = None
    maps: bool = False


def preset(name: str, instruments: Sequence[Any] = (), **changes: Any) -> Callable[..., RobustTrainer]:
    """A local ball's preset, against the threat of this benchmark."""

    def make(classifier: PyTorchClassifier, options: TrainingOptions) -> RobustTrainer:
        attached = [kind() for kind in instruments]
        settings = {"threat": THREAT, "overfitting": "ignore", "instruments": attached, "options": options}
        return LocalBallTrainer.preset(name, classifier, **{**settings, **changes})

    return make


def adversarial(steps: int, *, divergent: bool = False, local: bool = False) -> HandLoss:
    return partial(adversarial_loss, steps=steps, divergent=divergent, local=local)


def methods(steps: int) -> dict[str, Method]:
    """Every method and composition; PGD, TRADES and the strong preset with ``steps`` ascent steps."""
    weak = adversarial(1, local=True)
    same, instrument, margin = 1 / 0.97, 1.10, 1.25
    return {
        "standard": Method(lambda c, o: StandardTrainer(c, options=o), plain_loss, same, "standard"),
        "BANG": Method(lambda c, o: BANGTrainer(c, options=o), plain_loss, instrument),
        "BANG, ratio 0.5": Method(lambda c, o: BANGTrainer(c, ratio=0.5, options=o), plain_loss, instrument),
        "layerwise": Method(lambda c, o: LayerwiseAdversarialTrainer(c, eps=0.1, options=o), plain_loss, instrument),
        "Lipschitz margin": Method(lambda c, o: LipschitzMarginTrainer(c, c=0.1, options=o), plain_loss, margin),
        "weight maps": Method(lambda c, o: StandardTrainer(c, options=o), plain_loss, same, maps=True),
        "local ball, weak": Method(preset("weak"), weak, same),
        "local ball, weak, KL": Method(
            preset("weak", global_loss="kl"), adversarial(1, divergent=True, local=True), same
        ),
        f"local ball, strong, {steps} steps": Method(
            preset("strong", steps=steps), adversarial(steps, local=True), same
        ),
        f"PGD, {steps} steps": Method(preset("pgd", steps=steps), adversarial(steps), same, "PGD"),
        f"TRADES, {steps} steps": Method(
            preset("trades", steps=steps), adversarial(steps, divergent=True), same, "TRADES"
        ),
        "local ball, weak + layerwise": Method(preset("weak", [Layerwise]), weak, instrument),
        "PGD, 1 step + BANG": Method(preset("pgd", [BANG], steps=1), adversarial(1), instrument),
        "TRADES, 1 step + layerwise + BANG": Method(
            preset("trades", [Layerwise, BANG], steps=1), adversarial(1, divergent=True), instrument**2
        ),
        "weight maps + local ball, weak": Method(preset("weak"), weak, same, maps=True),
    }


@dataclass(frozen=True)
class Setting:
    """A network and its batches; ``arguments`` are those of `create_model`."""

    network: str
    shape: tuple[int, int, int]
    batch: int
    arguments: dict[str, Any] = field(default_factory=dict)

    def classifier(self, device: str, *, maps: bool = False) -> PyTorchClassifier:
        torch.manual_seed(0)
        network = create_model(self.network, self.shape, 10, **self.arguments)
        optimizer = torch.optim.SGD(network.parameters(), 1e-3, momentum=0.9)
        classifier = PyTorchClassifier(
            network,
            nn.CrossEntropyLoss(),
            self.shape,
            10,
            optimizer=optimizer,
            clip_values=(0, 1),
            device_type="gpu" if device == "cuda" else "cpu",
        )
        return PyTorchWeightMapClassifier.from_classifier(classifier) if maps else classifier

    def data(self, device: str, samples: int) -> tuple[Tensor, Tensor]:
        return torch.rand(samples, *self.shape).to(device), torch.randint(0, 10, (samples,)).to(device)


def fit(trainer: RobustTrainer, batch: int) -> Fit:
    return lambda x, y: trainer.fit(x, y, batch_size=batch, nb_epochs=1, verbose=False)


def second_epoch(trainer: RobustTrainer, batch: int, *, from_host: bool = False) -> Fit:
    """Two epochs, of which the second is timed; ``from_host`` on batches in the host's memory."""

    def run(x: Tensor, y: Tensor) -> float:
        if from_host:
            batches = list(zip(x.cpu().split(batch), y.cpu().split(batch), strict=True))
            trainer.fit_loader(batches, nb_epochs=2, verbose=False)
        else:
            trainer.fit(x, y, batch_size=batch, nb_epochs=2, verbose=False)
        return trainer.history[-1]["seconds"]

    return run


def arts_trainer(name: str, classifier: PyTorchClassifier, batch: int, ascents: int) -> Fit:
    """ART's own trainer as a function of tensors, which it gets as arrays."""
    if name == "standard":
        train = partial(classifier.fit, batch_size=batch, nb_epochs=1)
    elif name == "PGD":
        train = AdversarialTrainerMadryPGD(classifier, 1, batch, eps=EPS, eps_step=STEP, max_iter=ascents).fit
    else:
        attack = ProjectedGradientDescent(
            classifier, eps=EPS, eps_step=STEP, max_iter=ascents, num_random_init=1, batch_size=batch, verbose=False
        )
        trades = AdversarialTrainerTRADESPyTorch(classifier, attack, beta=6.0)
        train = partial(trades.fit, batch_size=batch, nb_epochs=1)
    return lambda x, y: train(x.cpu().numpy(), np.eye(10, dtype=np.float32)[y.cpu().numpy()])


# ---------------------------------------------------------------------------------------------------------- measuring


def alone(measure: Callable[[], Any], device: str, threads: int) -> Any:
    """Run ``measure``, on a CPU in a process of its own; CUDA does not survive a fork, and needs none."""
    if device == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        return measure()
    processes = multiprocessing.get_context("fork")
    receiving, sending = processes.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(threads)
        sending.send(measure())

    child = processes.Process(target=run)
    child.start()
    sending.close()
    try:
        result = receiving.recv()
    except EOFError:
        raise RuntimeError("a measurement failed, see above") from None
    child.join()
    return result


def seconds(run: Fit, x: Tensor, y: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize()
    started = time.perf_counter()
    own = run(x, y)
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started if own is None else own


@dataclass(frozen=True)
class Measured:
    """Seconds of a step in each round, and MiB, of each way of training."""

    times: dict[str, list[float]]
    memory: dict[str, float]

    def step(self, name: str) -> float:
        """Milliseconds."""
        return round(1000 * statistics.median(self.times[name]), 2)

    def slowdown(self, name: str, below: str) -> float:
        pairs = zip(self.times[name], self.times[below], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    def growth(self, name: str, below: str) -> float:
        return round(self.memory[name] / self.memory[below], 2)


def times(
    runs: dict[str, Fit], setting: Setting, device: str, rounds: int, lasting: float, call: float, least: int
) -> dict[str, list[float]]:
    """Seconds of a step of each run in each round, of at least ``rounds``, and as many as begin within ``lasting`` s.

    All take as many steps as the last of them makes in ``call`` s, and at least ``least``. The order of the runs is
    turned round after round, so that none is always the one after a pause.
    """
    few = setting.data(device, 2 * setting.batch)
    for run in runs.values():
        run(*few)
    steps = 2
    for _ in range(2):  # a call of two steps has a large overhead
        taken_by_few = seconds(list(runs.values())[-1], *setting.data(device, steps * setting.batch))
        steps = min(max(round(call * steps / taken_by_few), least), 200)
    x, y = setting.data(device, steps * setting.batch)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    index, started = 0, time.perf_counter()
    while index < rounds or time.perf_counter() - started < lasting:
        for name in [*list(runs)[index % len(runs) :], *list(runs)[: index % len(runs)]]:
            taken[name].append(seconds(runs[name], x, y) / steps)
        index += 1
    return taken


def peak(run: Fit, setting: Setting, device: str) -> float:
    """The peak memory in MiB of a training of two steps, less the memory before it."""
    # For timing, glibc keeps freed memory; here only tensors in use shall count.
    ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**16)
    run(*setting.data(device, WARM_UP))
    x, y = setting.data(device, 2 * setting.batch)
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(x, y)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    run(x, y)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - pages * resource.getpagesize() / 2**20


@dataclass(frozen=True)
class Bench:
    """The settings with which all rows are measured."""

    device: str
    threads: int
    rounds: int
    lasting: float
    call: float

    def compare(
        self,
        makers: dict[str, Callable[[], Fit]],
        setting: Setting,
        *,
        least: int,
        epochs: int = 1,
        memory: bool = True,
    ) -> Measured:
        """Measure the ways of training that ``makers`` make, in epochs of at least ``least`` steps."""

        def timed() -> dict[str, list[float]]:
            runs = {name: make() for name, make in makers.items()}
            return times(runs, setting, self.device, self.rounds, self.lasting, self.call / epochs, least)

        def needed(make: Callable[[], Fit]) -> float:
            return peak(make(), setting, self.device)

        measured = partial(alone, device=self.device, threads=self.threads)
        taken = measured(timed)
        weighed = makers if memory else {}
        return Measured(taken, {name: measured(partial(needed, make)) for name, make in weighed.items()})

    def method(self, name: str, method: Method, setting: Setting, ascents: int) -> dict[str, Any]:
        """The row of a method."""

        def classifier() -> PyTorchClassifier:
            return setting.classifier(self.device, maps=method.maps)

        makers: dict[str, Callable[[], Fit]] = {
            "hand": lambda: partial(by_hand, classifier(), batch_size=setting.batch, loss=method.hand),
            "ours": lambda: fit(method.make(classifier(), TrainingOptions(seed=0)), setting.batch),
        }
        art = method.art
        if art is not None:
            makers = {"art": lambda: arts_trainer(art, classifier(), setting.batch, ascents), **makers}
        found = self.compare(makers, setting, least=10)  # a call of fit includes its checks, whatever its length
        return {
            "method": name,
            "network": setting.network,
            "batch": setting.batch,
            "our step, ms": found.step("ours"),
            "time / by hand": found.slowdown("ours", "hand"),
            "at most": round(method.target, 2),
            "memory / by hand": found.growth("ours", "hand"),
            "ART's time / ours": "none in ART" if art is None else found.slowdown("art", "ours"),
            "ART's memory / ours": "none in ART" if art is None else found.growth("art", "ours"),
        }

    def option(self, name: str, options: dict[str, Any], setting: Setting) -> dict[str, Any]:
        """The row of an option of the engine, compared with plain training without it."""

        def trainer(**chosen: Any) -> RobustTrainer:
            return StandardTrainer(setting.classifier(self.device), options=TrainingOptions(seed=0, **chosen))

        from_host = name.startswith("fit_loader")
        # On a CPU the compiler's own memory would be included.
        memory = self.device == "cuda" or "compile" not in options
        found = self.compare(
            {
                "option": lambda: second_epoch(trainer(**options), setting.batch, from_host=from_host),
                "plain": lambda: second_epoch(trainer(), setting.batch),
            },
            setting,
            least=4,
            epochs=2,
            memory=memory,
        )
        return {
            "option": name,
            "network": setting.network,
            "batch": setting.batch,
            "step, ms": found.step("option"),
            "time / without": found.slowdown("option", "plain"),
            "memory / without": found.growth("option", "plain") if memory else "not measured",
        }


OPTIONS: dict[str, dict[str, Any]] = {
    "mixed_precision='bf16'": {"mixed_precision": "bf16"},
    "channels_last": {"channels_last": True},
    "bf16 and channels_last": {"mixed_precision": "bf16", "channels_last": True},
    "compile='default'": {"compile": "default"},
    "compile='reduce-overhead'": {"compile": "reduce-overhead"},
    "bf16, channels_last and compile='default'": {
        "mixed_precision": "bf16",
        "channels_last": True,
        "compile": "default",
    },
    "fused_optimizer": {"fused_optimizer": True},
    "ema_decay=0.999": {"ema_decay": 0.999},
    "augmentation='flip'": {"augmentation": "flip"},
    "augmentation='crop-flip'": {"augmentation": "crop-flip"},
    "accumulation_steps=4": {"accumulation_steps": 4},
    "max_gradient_norm=1.0": {"max_gradient_norm": 1.0},
    "schedule='cosine'": {"schedule": "cosine"},
    "fit_loader, from host memory": {},
}


def with_steady_memory() -> None:
    """Start this script again with settings that glibc reads when a process starts, and without ART's progress bars."""
    settings = {"MALLOC_TRIM_THRESHOLD_": str(2**30), "MALLOC_MMAP_THRESHOLD_": str(2**30), "TQDM_DISABLE": "1"}
    if not settings.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **settings})


FEW = ("standard", "BANG", "layerwise", "local ball, weak", "PGD, 2 steps", "TRADES, 2 steps")
"""The methods that are measured on a large network too."""

LARGE = ("mixed_precision", "channels_last", "bf16", "compile", "augmentation='crop-flip'", "accumulation_steps")
"""The prefixes of the options whose effect depends on the network's size."""


def cases(which: str) -> tuple[list[tuple[Setting, int, Sequence[str] | None]], list[tuple[Setting, Sequence[str]]]]:
    """Networks with the ascent steps and the methods for them (None for all), and networks with their options."""
    if which == "quick":
        tiny = Setting("small-cnn", (1, 8, 8), 64)
        return [(tiny, 2, None)], [(tiny, tuple(OPTIONS))]
    small = Setting("small-cnn", (1, 28, 28), 128)
    wide = Setting("6c2f", (3, 32, 32), 128)
    large = Setting("preact-resnet18", (3, 32, 32), 16 if which == "cpu" else 128)
    methods_of = [(small, 10, None), (large, 2, FEW), (wide, 1, ("standard", "Lipschitz margin"))]
    middle = Setting("quick", (3, 32, 32), 100)
    large_options = tuple(name for name in OPTIONS if name.startswith(LARGE))
    return methods_of, [(middle, tuple(OPTIONS)), (large, large_options if which == "cpu" else tuple(OPTIONS))]


def main() -> None:
    with_steady_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="the least number of times that each is measured")
    parser.add_argument("--lasting", type=float, default=20, help="go on with further rounds for so many seconds")
    parser.add_argument("--call", type=float, default=1.4, help="the length of a timed call in seconds")
    parser.add_argument("--networks", nargs="+", help="only the rows of these networks")
    parser.add_argument("--within", type=float, help="begin no further row after so many seconds")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder for the record")
    parser.add_argument("--quick", action="store_true", help="about a minute, a tiny network; not recorded")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # ART's
    torch.set_num_threads(args.threads)
    call = 0.1 if args.quick else args.call
    rounds, lasting = (2, 0) if args.quick else (args.rounds, args.lasting)
    timing = Bench(args.device, args.threads, rounds, lasting, call)
    results: dict[str, list[dict[str, Any]]] = {"methods": [], "options": []}

    started = time.perf_counter()
    name = "training_step" if args.device == "cpu" else "training_step_cuda"

    def add(kind: str, measure: Callable[[], dict[str, Any]]) -> None:
        if args.within is not None and time.perf_counter() - started > args.within:
            return
        results[kind].append(measure())
        print(results[kind][-1], flush=True)
        if not args.quick:
            save(name, results, folder=args.results, rounds=args.rounds, lasting=args.lasting)

    def is_wanted(setting: Setting) -> bool:
        return args.networks is None or setting.network in args.networks

    with_methods, with_options = cases("quick" if args.quick else args.device)
    for setting, ascents, names in with_methods:
        for title, method in methods(ascents).items():
            if (names is None or title in names) and is_wanted(setting):
                add("methods", partial(timing.method, title, method, setting, ascents))
    for setting, chosen in with_options:
        for title in chosen:
            compiled = OPTIONS[title].get("compile")
            if (args.device == "cuda" or compiled != "reduce-overhead") and is_wanted(setting):
                add("options", partial(timing.option, title, OPTIONS[title], setting))
    for kind, rows in results.items():
        if rows:
            print(f"\n{kind}\n\n{table(rows)}")


if __name__ == "__main__":
    main()

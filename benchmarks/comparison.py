"""The shared code of comparisons that no recipe can state: command line, training and measuring with resuming.

A comparison that a recipe can state is a file in recipes/, and ``art-robust benchmark PATH`` runs it. The others
(bang_mnist.py, certified.py, layerwise.py, weight_maps.py) pass this module a job, a function that trains one network
and measures it. Each network has a folder with its checkpoints, its classifier and its result, so that a run that was
stopped continues where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import art.config
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_robust_plugins import RobustTrainer, TrainingOptions, load_classifier, save_classifier
from art_robust_plugins.data import Dataset
from art_robust_plugins.files import read_json, write_json


@dataclass(frozen=True, kw_only=True)
class Setup:
    """The settings that all rows of a table share; each comparison adds fields of its own, and `quick`.

    Attributes:
        data: name of the data set.
        network: name of the network.
        network_arguments: for the network.
        points: the number of test images that are attacked.
        seeds: each row is trained once with each seed.
    """

    data: str
    network: str = "small-cnn"
    network_arguments: dict[str, Any] = field(default_factory=dict)
    points: int = 100
    seeds: tuple[int, ...] = (0, 1, 2)


MNIST_NETWORK = {"channels": 8, "hidden": 64}
"""The arguments of the network in comparisons on MNIST, a small one that two cores train in minutes."""


class QuickSetup(Protocol):
    def quick(self: AnySetup) -> AnySetup:
        """The setup of a run of about a minute."""
        ...


AnySetup = TypeVar("AnySetup", bound=QuickSetup)


def make_parser(
    description: str | None, setups: Iterable[str] = (), *, takes_data: bool = True
) -> argparse.ArgumentParser:
    """A command line with ``setup`` (where there are several), ``data``, ``workers`` and ``quick``."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if setups:
        parser.add_argument("setup", choices=list(setups))
    if takes_data:
        parser.add_argument(
            "--data", default=art.config.ART_DATA_PATH, help="folder with mnist.npz, as ART's loader has it"
        )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="a run of about a minute, which is not recorded")
    return parser


def work_folder(name: str, quick: bool) -> Path:
    """The folder for a comparison's work in progress."""
    return Path("runs") / name / ("quick" if quick else "full")


def network_folder(work: Path, *case: object) -> Path:
    """The folder of one network, named by its row and seed."""
    return work / "-".join(map(str, case)).replace(" ", "-").replace(",", "")


def run_jobs(
    job: Callable[..., dict[str, Any]],
    cases: Iterable[Sequence[Any]],
    *,
    data: str,
    workers: int,
    threads: int = 1,
) -> list[dict[str, Any]]:
    """Call ``job(*case)`` for each case in worker processes, and return the results in the order of the cases.

    ``data`` is the folder from which ART's loader reads. One thread a worker is the fastest for small networks.
    """
    with ProcessPoolExecutor(workers, initializer=_start_worker, initargs=(data, threads)) as pool:
        return [future.result() for future in [pool.submit(job, *case) for case in cases]]


def _start_worker(data: str, threads: int) -> None:
    art.config.set_data_path(data)
    torch.set_num_threads(threads)


def run_setup(
    description: str | None,
    comparison: str,
    setups: Mapping[str, AnySetup],
    job: Callable[..., dict[str, Any]],
    list_cases: Callable[[AnySetup], Iterable[Sequence[Any]]],
) -> tuple[str, AnySetup, list[dict[str, Any]], bool]:
    """Run the setup that the command line names.

    Args:
        description: of the command.
        comparison: its name.
        setups: by their names.
        job: is called with the setup, the work folder and a case.
        list_cases: lists the cases of a setup.

    Returns:
        The name of the comparison and setup, the setup, the jobs' results, and whether this was a quick run.
    """
    args = make_parser(description, setups).parse_args()
    name, setup = f"{comparison}_{args.setup}", setups[args.setup]
    setup = setup.quick() if args.quick else setup
    work = work_folder(name, args.quick)
    cases = [(setup, work, *case) for case in list_cases(setup)]
    return name, setup, run_jobs(job, cases, data=args.data, workers=args.workers), args.quick


def build_classifier(network: nn.Module, data: Dataset, optimizer: torch.optim.Optimizer) -> PyTorchClassifier:
    """Wrap a network for images in [0, 1] as an ART classifier on the CPU."""
    return PyTorchClassifier(
        network,
        nn.CrossEntropyLoss(),
        data.input_shape,
        data.nb_classes,
        optimizer=optimizer,
        clip_values=(0, 1),
        device_type="cpu",
    )


def train_once(
    folder: Path,
    build: Callable[[], PyTorchClassifier],
    train: Callable[[PyTorchClassifier, TrainingOptions], RobustTrainer],
    *,
    seed: int,
    **extra: Any,
) -> PyTorchClassifier:
    """Load the classifier of a folder; where there is none, build it, train it (or resume its training) and save it.

    Args:
        folder: of the network.
        build: makes the untrained classifier, after torch's generator is seeded.
        train: trains it with the given options, and returns the trainer.
        seed: of the initial weights and of the training.
        extra: saved beside the classifier.
    """
    if (folder / "classifier.json").exists():
        return load_classifier(folder)
    torch.manual_seed(seed)
    classifier = build()
    options = TrainingOptions(seed=seed, scheduler_interval="step", checkpoint_dir=folder / "training", resume=True)
    trainer = train(classifier, options)
    save_classifier(classifier, folder, extra={**extra, "seed": seed, "history": trainer.history})
    return classifier


def measure_once(folder: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Read the result of a network; where there is none, measure, write and print it."""
    file = folder / "result.json"
    if file.exists():
        result: dict[str, Any] = read_json(file)
        return result
    result = measure()
    write_json(file, result)
    # Nested values, such as whole maps, are only written to the file.
    print(json.dumps({key: value for key, value in result.items() if not isinstance(value, dict)}), flush=True)
    return result


def fit_with_cosine(trainer: RobustTrainer, images: Any, labels: Any, *, batch_size: int, epochs: int) -> RobustTrainer:
    """Train with a learning rate that falls to 0 along half a cosine, and return the trainer."""
    steps = epochs * -(-len(images) // batch_size)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(trainer.classifier.optimizer, steps)
    trainer.fit(images, labels, None, batch_size, epochs, scheduler, verbose=False)
    return trainer


def format_percent(shares: Sequence[float]) -> str:
    """Shares in percent: their mean, and in parentheses the lowest and the highest of several."""
    values = [100 * share for share in shares]
    spread = f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"

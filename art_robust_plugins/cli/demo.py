"""``art-robust demo``: every installed method on one page."""

from __future__ import annotations

import inspect
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ..data import load_data
from ..evaluation.report import COMPARISON_FILES
from ..experiments import TrainingPlan, evaluate_run, is_trainable, train_run
from ..experiments.training_record import read_training_record
from ..registry import available_methods, parameters_of
from ..terminal import console
from ..threat import ThreatModel
from .arguments import OutOption, SeedOption
from .running import advise_on_interrupt, check_output, is_main
from .showing import show_comparison

DEMO_COMPOSITIONS = (("local-ball", ("layerwise",)),)
"""Methods with instruments that the demo shows after the single methods."""


def demo(
    out: OutOption = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(help="Epochs of training for each network.", min=1)] = 20,
    points: Annotated[int, typer.Option(help="Test images to attack.", min=1)] = 100,
    seed: SeedOption = 0,
) -> None:
    """Train every installed method on scikit-learn's digits, attack the networks, and compare them on one page.

    Single methods, then a composition. Each network meets the standard AutoAttack and the attacks of torchattacks at
    Linf 0.1, and is certified. About six minutes.
    """
    torch.set_num_threads(1)  # 8x8 images are too small to be shared, and threads that wait for each other are slow
    check_output("--out", out, COMPARISON_FILES)
    data = load_data("digits")
    threat = ThreatModel("Linf", 0.1)
    trained = {name: kind for name, kind in available_methods().items() if is_trainable(kind)}
    # The baseline comes first, for the others to be compared with.
    runs = [(name, ()) for name in sorted(trained, key=lambda name: name != "standard")]
    speaks = is_main()
    reports = {}
    with advise_on_interrupt(f"to continue: art-robust {shlex.join(sys.argv[1:])}"):
        for name, instruments in [*runs, *DEMO_COMPOSITIONS]:
            known = parameters_of(trained[name])
            required = {key for key, value in known.items() if value is inspect.Parameter.empty}
            parameters = {**getattr(trained[name], "demo", {}), **({"threat": threat} if "threat" in required else {})}
            missing = sorted(required - set(parameters))
            if missing:
                if speaks:
                    console.print(f"{name}: left out, it has no default for {', '.join(missing)}.")
                continue
            label = "+".join([name, *instruments])
            folder = out / label
            if (folder / "classifier.json").exists():
                _check_demo(folder, epochs, seed)
            else:
                if speaks:
                    console.print(f"{label}: training", style="bold")
                joined: dict[str, dict[str, Any]] = {instrument: {} for instrument in instruments}
                plan = TrainingPlan(name, parameters=parameters, instruments=joined, epochs=epochs)
                train_run(plan, data, folder, seed=seed, resume=True)
            attacks = ["standard", "torchattacks"]
            (reports[label],) = evaluate_run(
                folder, data, [threat], attacks, points=points, seed=seed, certify="if possible"
            )
    if speaks:
        show_comparison(reports, out)


def _check_demo(folder: Path, epochs: int, seed: int) -> None:
    """A second demo in one folder goes on with the first one's networks: they must be those that are asked for."""
    record = read_training_record(folder)
    if (record.get("epochs"), record.get("seed")) != (epochs, seed):
        raise ValueError(
            f"--out: {folder} holds a network of {record.get('epochs')} epochs and seed {record.get('seed')}, expected "
            f"{epochs} and {seed}; take another folder."
        )

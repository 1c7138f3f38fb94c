"""``art-robust evaluate``: attacks on a trained network."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from ..evaluation.libraries import Backend
from ..evaluation.report import REPORT_FILES
from ..experiments import evaluate_run
from ..experiments.runs import BATCH_SIZE, EVALUATIONS
from ..terminal import console
from ..threat import Norm, ThreatModel
from .arguments import DataOption, RunArgument, SeedOption
from .data import load_test_data
from .running import advise_on_interrupt, check_output, is_main


def evaluate(
    run: RunArgument,
    eps: Annotated[
        list[str],
        typer.Option(help="Radius of the threat in the units of the input, such as 0.1 or 8/255; repeatable."),
    ],
    norm: Norm = "Linf",
    attacks: Annotated[
        list[str] | None,
        typer.Option(help="standard, plus, rand, fast, torchattacks, noise, or an attack's name; repeatable."),
    ] = None,
    transfers: Annotated[
        list[Path] | None,
        typer.Option("--transfer", help="Another run, whose network's gradients are followed as well; repeatable."),
    ] = None,
    data: DataOption = None,
    points: Annotated[int, typer.Option(help="How many test images, the first ones.", min=1)] = 1000,
    batch_size: Annotated[
        int, typer.Option(help="Points an attack gets at once; it fixes the randomness.")
    ] = BATCH_SIZE,
    physical_batch_size: Annotated[
        int | None, typer.Option(help="The most points in a pass; by default what a GPU's memory holds.", min=1)
    ] = None,
    backend: Annotated[
        Backend, typer.Option(help="Whose AutoAttack: this package's, or its authors' where it is installed.")
    ] = "native",
    seed: SeedOption = 0,
    certify: Annotated[bool, typer.Option("--certify", help="Add the certified radii to the report.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the report; by default one inside the run's.")
    ] = None,
) -> None:
    """Attack a trained network and write a report. Stopped, the same command goes on where it was.

    With several --eps, each attacks the points that the smaller ones left; a page compares them.

    Example: art-robust evaluate runs/bang --norm Linf --eps 0.1 --attacks standard --attacks noise
    """
    threats = [ThreatModel(norm, radius) for radius in eps]
    check_output("--out", out or run / EVALUATIONS, () if out is None else REPORT_FILES)
    with advise_on_interrupt(f"to continue: art-robust {shlex.join(sys.argv[1:])}"):
        reports = evaluate_run(
            run,
            load_test_data(run, data),
            threats,
            attacks or ["standard"],
            transfers or [],
            points=points,
            seed=seed,
            batch_size=batch_size,
            physical_batch_size=physical_batch_size,
            backend=backend,
            certify="always" if certify else "never",
            out=out,
        )
    if is_main():
        for report in reports:
            console.print(str(report), markup=False, highlight=False)

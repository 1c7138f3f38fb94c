"""``art-robust evaluate``: attacks on a trained network."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..experiments.evaluation_plans import EvaluationPlan
from .arguments import (
    LARGEST_SEED,
    DeviceOption,
    NetworkArgument,
    NetworkOptions,
    QuietOption,
    Submission,
    select_device,
)
from .derived import FieldOption, take_settings
from .launching import WorkersOption, share_with_workers

EVALUATION = (
    FieldOption(EvaluationPlan, "points", help="Number of test images, the first ones.", min=1),
    FieldOption(
        EvaluationPlan,
        "batch_size",
        help="Number of points that an attack gets at once; it fixes the random numbers.",
        min=1,
    ),
    FieldOption(
        EvaluationPlan,
        "physical_batch_size",
        help="Largest number of points in a pass; by default what fits the device.",
        min=1,
    ),
    FieldOption(
        EvaluationPlan,
        "backend",
        help="Implementation of AutoAttack: native (this package's), or reference (its authors', if installed).",
    ),
    FieldOption(EvaluationPlan, "seed", help="Makes the run repeatable.", min=0, max=LARGEST_SEED),
)


@take_settings(EVALUATION)
def evaluate(
    context: typer.Context,
    run: NetworkArgument,
    eps: Annotated[
        list[str] | None,
        typer.Option(
            help="Radius of the threat in the units of the input, such as 0.1 or 8/255; repeatable. By default that of "
            "the run's training."
        ),
    ] = None,
    norm: Annotated[
        str | None, typer.Option(help="Linf, L2 or L1; by default that of the run's training, or Linf.")
    ] = None,
    attacks: Annotated[
        list[str] | None,
        typer.Option(
            help="A suite or an attack that art-robust attacks lists, standard by default; repeatable, or with commas."
        ),
    ] = None,
    transfers: Annotated[
        list[Path] | None,
        typer.Option(
            "--transfer", help="Folder of another run: attacks follow the gradients of its network as well; repeatable."
        ),
    ] = None,
    network: NetworkOptions = NetworkOptions(),
    device: DeviceOption = None,
    quiet: QuietOption = False,
    certify: Annotated[bool, typer.Option("--certify", help="Add the certified radii to the report.")] = False,
    png: Annotated[
        bool,
        typer.Option(
            "--png", help="Also write the attacked images as 8-bit PNG files, and judge these after rounding."
        ),
    ] = False,
    submission: Submission = Submission(),
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for the report; by default one in the run's, or in runs/NAME."),
    ] = None,
    workers: WorkersOption = 1,
    **settings: Any,
) -> None:
    """Attack a trained network and write a report. Stopped, the same command goes on where it was.

    With several --eps, each attacks the points that the smaller ones left; a page compares them. The last line that is
    printed is where the report is.

    Example: art-robust evaluate runs/bang --norm Linf --eps 0.1 --attacks standard --attacks noise

    Example: art-robust evaluate my_file.py:build --weights w.safetensors --data cifar10 --eps 8/255
    """
    select_device(device)
    share_with_workers(context, workers)
    # These import torch and ART, which the help does without.
    from ..evaluation.front import warn_of_guessing
    from ..evaluation.report import COMPARISON_FILES, PAGE_FILE, REPORT_FILES
    from ..experiments.runs import EVALUATIONS, evaluate_classifier
    from ..terminal import console
    from .data import check_run
    from .evaluation_files import check_pictures, check_submission, write_images, write_submission
    from .running import advise_on_interrupt, check_output, is_main
    from .targets import choose_threats, load_target

    if out is not None:
        check_output("--out", out, REPORT_FILES)
    for source_of_gradients in transfers or []:
        check_run("--transfer", source_of_gradients)
    target = load_target(run, network)
    threats, source = choose_threats(target, norm, eps or [], default="Linf")
    chosen = [name.strip() for names in attacks or ["standard"] for name in names.split(",")]
    if submission.robustbench is not None:
        check_submission(target, threats, chosen)
        check_output("--robustbench", submission.robustbench, ())
    if png:
        check_pictures(target)
    plan = EvaluationPlan(threats, chosen, transfers or [], certify="always" if certify else "never", **settings)
    if out is None:
        check_output("--out", target.home / EVALUATIONS, ())
    if source and is_main():
        console.print(f"Threat: {threats[0]}, {source}.")
    with advise_on_interrupt(f"to continue: art-robust {shlex.join(sys.argv[1:])}"):
        reports, folder = evaluate_classifier(
            target.classifier,
            target.home,
            target.data,
            plan,
            trained_on=target.trained_on,
            out=out,
            verbose=not quiet,
        )
    if not is_main():
        return
    if not target.is_run:
        warn_of_guessing(reports[0])
    if png:
        single = len(reports) == 1
        places = [folder if single else folder / f"{report.settings['threat']['eps']:g}" for report in reports]
        reports = [write_images(report, place, target) for report, place in zip(reports, places, strict=True)]
    for report in reports:
        console.print(str(report), markup=False, highlight=False)
    if submission.robustbench is not None:
        write_submission(reports[0], target, submission.robustbench, submission)
    page = folder / (PAGE_FILE if len(reports) == 1 else COMPARISON_FILES[-1])
    console.print(str(page), markup=False, highlight=False, soft_wrap=True)

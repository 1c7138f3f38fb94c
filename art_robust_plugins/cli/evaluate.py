"""``art-robust evaluate``: attacks on a trained network."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from ..bridge import input_range
from ..evaluation import EvaluationReport
from ..evaluation.front import warn_of_guessing
from ..evaluation.report import COMPARISON_FILES, PAGE_FILE, REPORT_FILES
from ..evaluation.robustbench import ROBUSTBENCH_POINTS
from ..experiments.evaluation_plans import EvaluationPlan
from ..experiments.runs import EVALUATIONS, evaluate_classifier
from ..terminal import console
from ..threat import ThreatModel
from .arguments import DeviceOption, QuietOption, select_device
from .data import check_run
from .derived import FieldOption, take_settings
from .launching import WorkersOption, share_with_workers
from .running import advise_on_interrupt, check_output, is_main
from .targets import NetworkArgument, NetworkOptions, Target, choose_threats, load_target

EVALUATION = (
    FieldOption(EvaluationPlan, "points", help="How many test images, the first ones.", min=1),
    FieldOption(EvaluationPlan, "batch_size", help="Points an attack gets at once; it fixes the randomness."),
    FieldOption(
        EvaluationPlan,
        "physical_batch_size",
        help="The most points in a pass; by default what a GPU's memory holds.",
        min=1,
    ),
    FieldOption(
        EvaluationPlan, "backend", help="Whose AutoAttack: this package's, or its authors' where it is installed."
    ),
    FieldOption(EvaluationPlan, "seed", help="Makes the run repeatable.", min=0),
)
IMAGES = "images"


@dataclass(frozen=True)
class Submission:
    """The options of what is written for RobustBench beside a report."""

    robustbench: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also write a submission to RobustBench there, as JSON and images."),
    ] = None
    title: Annotated[
        str | None, typer.Option(help="Title of the paper, for --robustbench; the network's name by default.")
    ] = None
    authors: Annotated[str, typer.Option(help="Its authors, for --robustbench.")] = "unknown"


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
            help="standard, plus, rand, fast, torchattacks, noise, or an attack's name; repeatable, or with commas."
        ),
    ] = None,
    transfers: Annotated[
        list[Path] | None,
        typer.Option("--transfer", help="Another run, whose network's gradients are followed as well; repeatable."),
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
    if out is not None:
        check_output("--out", out, REPORT_FILES)
    for source_of_gradients in transfers or []:
        check_run("--transfer", source_of_gradients)
    target = load_target(run, network)
    threats, source = choose_threats(target, norm, eps or [], default="Linf")
    chosen = [name.strip() for names in attacks or ["standard"] for name in names.split(",")]
    if submission.robustbench is not None:
        _check_submission(target, threats, chosen)
        check_output("--robustbench", submission.robustbench, ())
    if png:
        _check_pictures(target)
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
        reports = [_write_images(report, place, target) for report, place in zip(reports, places, strict=True)]
    for report in reports:
        console.print(str(report), markup=False, highlight=False)
    if submission.robustbench is not None:
        _write_submission(reports[0], target, submission.robustbench, submission)
    page = folder / (PAGE_FILE if len(reports) == 1 else COMPARISON_FILES[-1])
    console.print(str(page), markup=False, highlight=False, soft_wrap=True)


def _check_pictures(target: Target) -> None:
    """Refuse, before any attack, inputs that are no images."""
    shape, box = tuple(target.classifier.input_shape), input_range(target.classifier)
    if len(shape) != 3 or shape[0 if target.classifier.channels_first else -1] not in (1, 3) or not box.uniform:
        raise ValueError(
            f"--png: got inputs of shape {shape} in {box}, expected images of 1 or 3 channels in one range."
        )


def _write_images(report: EvaluationReport, folder: Path, target: Target) -> EvaluationReport:
    """The attacked images beside a saved report, which then says what rounding left of them."""
    judged = report.save_images(folder / IMAGES, target.classifier)
    judged.save(folder)
    return judged


def _check_submission(target: Target, threats: list[ThreatModel], attacks: list[str]) -> None:
    """Refuse, before any attack, an evaluation that RobustBench has no leaderboard for."""
    name = Path(target.data.name).stem
    if name not in ROBUSTBENCH_POINTS:
        known = ", ".join(ROBUSTBENCH_POINTS)
        raise ValueError(f"--robustbench: got the data {name}, expected {known}, or an .npz file of that name.")
    if attacks != ["standard"]:
        raise ValueError(f"--robustbench: got the attacks {', '.join(attacks)}, expected standard alone.")
    if len(threats) > 1 or threats[0].norm == "L1":
        names = ", ".join(map(str, threats))
        raise ValueError(f"--robustbench: got the threats {names}, expected a single one in Linf or L2.")


def _write_submission(report: EvaluationReport, target: Target, folder: Path, submission: Submission) -> None:
    path = report.to_robustbench(
        folder,
        name=submission.title or target.home.name,
        authors=submission.authors,
        dataset=Path(target.data.name).stem,
        architecture=report.settings["network"],
        model_id=target.home.name,
    )
    console.print(
        f"RobustBench: {path}, with its images beside it; look through its entries before you submit it.",
        soft_wrap=True,
    )

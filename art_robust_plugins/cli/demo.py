"""``art-robust demo``: every installed method on one page."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..evaluation import EvaluationReport
from ..evaluation.report import COMPARISON_FILES
from ..experiments.demo import DemoNetwork, list_networks, measure
from ..experiments.runs import find_report_folder
from ..experiments.workers import share_out
from ..processes import find_processes
from ..terminal import console
from ..training.engine.processes import Processes
from .arguments import DeviceOption, OutOption, QuietOption, SeedOption, select_device
from .running import advise_on_interrupt, check_output, is_main
from .showing import show_comparison


def demo(
    out: OutOption = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(help="Epochs of training for each network.", min=1)] = 20,
    points: Annotated[int, typer.Option(help="Test images to attack.", min=1)] = 100,
    workers: Annotated[int, typer.Option(help="Processes that share the networks, each with one thread.", min=1)] = 2,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train every installed method on scikit-learn's digits, attack the networks, and compare them on one page.

    Single methods, then a composition. Each network meets the standard AutoAttack and a few other attacks at Linf 0.1,
    and is certified. About two minutes on two cores. Stopped, the same command goes on where it was.
    """
    select_device(device)
    torch.set_num_threads(1)  # 8x8 images are too small to be shared, and threads that wait for each other are slow
    check_output("--out", out, COMPARISON_FILES)
    networks, left_out = list_networks(out, epochs=epochs, seed=seed)
    for network in networks:
        network.is_trained()  # what another demo left here is refused before any work
    if is_main():
        for name, missing in left_out.items():
            console.print(f"{name}: left out, it has no default for {', '.join(missing)}.")
    here = find_processes()
    with (
        Processes(here.device).hold_folder("--out", out, "demo", COMPARISON_FILES),
        advise_on_interrupt(f"to continue: art-robust {shlex.join(sys.argv[1:])}"),
    ):
        # Processes that a launcher started share each network.
        shared_out = workers > 1 and here.num_processes == 1
        reports = (
            _share_out(networks, points, workers, quiet) if shared_out else _measure_in_turn(networks, points, quiet)
        )
        if is_main():
            shown = {network.label: report for network, report in zip(networks, reports, strict=True)}
            runs = {network.label: network.folder for network in networks}
            found = {name: find_report_folder(run, shown[name]) for name, run in runs.items()}
            folders = {name: folder for name, folder in found.items() if folder is not None}
            show_comparison(shown, out, folders, runs)


def _measure_in_turn(networks: Sequence[DemoNetwork], points: int, quiet: bool) -> list[EvaluationReport]:
    reports = []
    for number, network in enumerate(networks, 1):
        if is_main() and not quiet:
            console.print(f"{network.label} ({number} of {len(networks)})", style="bold")
        reports.append(measure(network, points, verbose=not quiet))
    return reports


def _share_out(networks: Sequence[DemoNetwork], points: int, workers: int, quiet: bool) -> list[EvaluationReport]:
    """One bar for all, where there is a terminal, and a line for each network that is done."""
    # Those that attack while they train take longest: the last ones to begin keep fewer workers waiting.
    order = sorted(range(len(networks)), key=lambda place: "threat" not in networks[place].plan.parameters)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    said = f"{len(networks)} networks, {workers} at a time: each is trained, attacked and certified."
    if not quiet:
        console.print(said, soft_wrap=True)
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, refresh_per_second=2, disable=hidden) as progress:
        done: list[int] = []
        task = progress.add_task("", total=len(networks))

        def name_begun() -> None:
            # Jobs are begun in their order.
            at_work = [place for place in order[: len(done) + workers] if place not in done]
            progress.update(
                task, completed=len(done), description=", ".join(networks[place].label for place in at_work)
            )

        def tell(number: int, report: EvaluationReport) -> None:
            done.append(order[number])
            name_begun()
            if not quiet:
                console.print(f"{networks[order[number]].label}: {_describe(report)}", soft_wrap=True)

        name_begun()
        jobs = [(networks[place], points, False) for place in order]
        reports = dict(zip(order, share_out(measure, jobs, workers, command="demo", finished=tell), strict=True))
    return [reports[place] for place in range(len(networks))]


def _describe(report: EvaluationReport) -> str:
    found = {
        "clean": report.clean_accuracy,
        "AutoAttack": report.autoattack_accuracy,
        "certified": report.certified_accuracy,
    }
    return ", ".join(f"{name} {accuracy:.1%}" for name, accuracy in found.items() if accuracy is not None)

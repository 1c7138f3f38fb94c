"""The networks of the demo, measured in turn or by several workers, and what is said meanwhile."""

from __future__ import annotations

from collections.abc import Sequence

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ..evaluation import EvaluationReport
from ..experiments.demo import DemoNetwork, measure
from ..experiments.workers import share_out
from ..terminal import console
from .running import is_main


def measure_in_turn(networks: Sequence[DemoNetwork], points: int, quiet: bool) -> list[EvaluationReport]:
    reports = []
    for number, network in enumerate(networks, 1):
        if is_main() and not quiet:
            console.print(f"{network.label} ({number} of {len(networks)})", style="bold")
        reports.append(measure(network, points, verbose=not quiet))
    return reports


def share_networks(networks: Sequence[DemoNetwork], points: int, workers: int, quiet: bool) -> list[EvaluationReport]:
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

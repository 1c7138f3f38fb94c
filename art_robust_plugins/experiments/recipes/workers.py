"""Running the networks of a recipe one after the other, or distributed over processes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ...terminal import console
from ..workers import share_out
from .networks import measure_network
from .recipe import Recipe, Row

Job = tuple[Recipe, Row, int, Path]


def measure_in_turn(jobs: Sequence[Job], verbose: bool = True) -> list[dict[str, Any]]:
    """The results of the jobs in their order, one job after the other in this process."""
    results = []
    for number, job in enumerate(jobs, 1):
        if verbose:
            console.print(f"{job[1].name}, seed {job[2]} ({number} of {len(jobs)})", style="bold")
        results.append(measure_network(*job, verbose=verbose))
    return results


def measure_in_workers(jobs: Sequence[Job], workers: int, verbose: bool = True) -> list[dict[str, Any]]:
    """The results of the jobs in their order, from ``workers`` processes at a time."""
    done: list[int] = []

    def tell(place: int, _: dict[str, Any]) -> None:
        done.append(place)
        row, seed = jobs[place][1:3]
        if verbose:
            console.print(f"{row.name}, seed {seed}: done ({len(done)} of {len(jobs)})")

    quietly = partial(measure_network, verbose=False)
    return share_out(quietly, jobs, workers, command="benchmark", finished=tell)

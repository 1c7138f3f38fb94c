"""``art-robust demo``: every installed method on one page."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .arguments import DeviceOption, OutOption, QuietOption, SeedOption, select_device


def demo(
    out: OutOption = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(help="Number of epochs in which each network is trained.", min=1)] = 20,
    points: Annotated[int, typer.Option(help="Number of test images to attack.", min=1)] = 100,
    workers: Annotated[
        int, typer.Option(help="Number of processes that share the networks, each with one thread.", min=1)
    ] = 2,
    seed: SeedOption = 0,
    device: DeviceOption = None,
    quiet: QuietOption = False,
) -> None:
    """Train every installed method on scikit-learn's digits, attack the networks, and compare them on one page.

    Single methods, then a composition. Each network meets the standard AutoAttack and a few other attacks at Linf 0.1,
    and is certified. About two minutes on two cores. Stopped, the same command goes on where it was.
    """
    select_device(device)
    # These import torch and ART, which the help does without.
    import torch

    from ..evaluation.libraries import package_versions, resolve
    from ..evaluation.report import COMPARISON_FILES
    from ..experiments.demo import ATTACKS, list_networks
    from ..experiments.runs import find_report_folder
    from ..processes import find_processes
    from ..terminal import console
    from ..training.processes import Processes
    from .measuring import measure_in_turn, share_networks
    from .running import advise_on_interrupt, check_output, is_main
    from .showing import show_comparison

    torch.set_num_threads(1)  # 8x8 images are too small to be shared, and threads that wait for each other are slow
    check_output("--out", out, COMPARISON_FILES)
    package_versions(resolve(ATTACKS))  # a library that is missing is told before any work
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
            share_networks(networks, points, workers, quiet) if shared_out else measure_in_turn(networks, points, quiet)
        )
        if is_main():
            shown = {network.label: report for network, report in zip(networks, reports, strict=True)}
            runs = {network.label: network.folder for network in networks}
            found = {name: find_report_folder(run, shown[name]) for name, run in runs.items()}
            folders = {name: folder for name, folder in found.items() if folder is not None}
            show_comparison(shown, out, folders, runs)

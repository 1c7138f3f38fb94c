"""``art-robust certify``: proofs for a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..experiments import certify_run
from ..experiments.runs import BATCH_SIZE, CERTIFICATE_FILE, CERTIFICATES, RADII_FILE
from ..terminal import console
from ..threat import Norm, ThreatModel
from .arguments import DataOption, RunArgument
from .data import load_test_data
from .running import check_alone, check_output


def certify(
    run: RunArgument,
    eps: Annotated[
        list[str], typer.Option(help="Radius in the units of the input, such as 0.5 or 36/255; repeatable.")
    ],
    norm: Norm = "L2",
    data: DataOption = None,
    points: Annotated[int | None, typer.Option(help="How many test images, the first ones; all by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images in a forward pass.", min=1)] = BATCH_SIZE,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the certificate; by default one inside the run's.")
    ] = None,
) -> None:
    """Prove within which radius each prediction of a trained network cannot change, from its Lipschitz constants.

    Writes certificate.json (accuracies, the bound of each layer) and radii.safetensors (each image's radius).

    Example: art-robust certify runs/bang --eps 0.5 --eps 1.0
    """
    check_alone("certify")
    if points is not None and points < 1:
        raise ValueError(f"--points: got {points}, expected at least 1.")
    threats = [ThreatModel(norm, radius) for radius in eps]
    check_output("--out", out or run / CERTIFICATES, () if out is None else (CERTIFICATE_FILE, RADII_FILE))
    test = load_test_data(run, data)
    images = len(test.x_test[:points])
    name = "-".join([norm, *eps, Path(test.name).stem, str(images)]).replace("/", "_")
    folder = out or run / CERTIFICATES / name
    summary, bound = certify_run(run, test, threats, folder, points=points, batch_size=batch_size)
    console.print(str(bound), markup=False, highlight=False, soft_wrap=True)
    table = Table("radius", f"certified accuracy of {images} points")
    table.add_row("0", f"{summary['clean_accuracy']:.2%} (clean)")
    for certified in summary["certified_accuracy"]:
        table.add_row(f"{norm} {certified['eps']:g}", f"{certified['accuracy']:.2%}")
    console.print(table)
    if norm == "Linf":
        console.print("These Linf radii are L2 radii over the root of the number of features, which is loose.")
    console.print(f"Saved in {folder}.", soft_wrap=True)

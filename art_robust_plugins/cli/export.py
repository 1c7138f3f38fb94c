"""``art-robust export``: a trained network as a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..choices import Format
from .arguments import DataOption, RunArgument


def export(
    run: RunArgument,
    format: Annotated[
        Format, typer.Option(help="Format: torch-export (.pt2), onnx, or torchscript (.pt).")
    ] = "torch-export",
    batch: Annotated[str, typer.Option(metavar="N", help="Batch size that the file takes, or dynamic.")] = "dynamic",
    data: DataOption = None,
    points: Annotated[int, typer.Option(help="Number of test images to compare the outputs on.", min=2)] = 16,
    out: Annotated[Path | None, typer.Option("--out", help="The file; by default RUN/network with its suffix.")] = None,
) -> None:
    """Write a trained network with its preprocessing to a file that needs neither this package nor ART.

    Inputs are in the estimator's range, outputs are logits. The file's outputs are compared with the estimator's.

    Example: art-robust export runs/bang --format onnx
    """
    # These import torch and ART, which the help does without.
    from ..export import SUFFIXES, export_classifier
    from ..locks import check_output_file
    from ..saved_classifier import load_classifier
    from ..terminal import console
    from .data import check_run, load_test_data
    from .running import check_alone

    check_alone("export")
    if batch != "dynamic" and not batch.isdecimal():
        raise ValueError(f"--batch: got {batch!r}, expected a positive whole number or dynamic.")
    if out is not None:
        check_output_file("--out", out)
    check_run("RUN", run)
    path = out or run / f"network{SUFFIXES[format]}"
    check_output_file("--out", path)
    images = load_test_data(run, data).x_test[:points]
    size = None if batch == "dynamic" else int(batch)
    difference = export_classifier(load_classifier(run, device="cpu"), path, images, format=format, batch=size)
    console.print(f"Saved {path}: logits of {len(images)} test images differ by {difference:.2g}.", soft_wrap=True)

"""Arguments that several commands take."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

ARGUMENTS = "art_robust_plugins.arguments"
"""Where the context of a command keeps the arguments that it was given."""


def select_device(name: str | None) -> None:
    """Let the command compute on one device: others are hidden from torch, in this process and in those it starts.

    Raises:
        ValueError: an unknown device, a GPU that is not there, one GPU for several processes.
    """
    if name is None:
        return
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda") or (colon and (kind == "cpu" or not number.isdecimal())):
        raise ValueError(f"--device: got {name!r}, expected cpu, cuda, or cuda:N.")
    if colon and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(f"--device: got {name} for several processes, expected cpu or cuda; each takes a GPU.")
    # torch reads this when it first looks for GPUs; the numbers are those of what the caller lets us see.
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = [] if before is None else before.split(",")
    if kind == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        return
    if colon:
        os.environ["CUDA_VISIBLE_DEVICES"] = number if before is None else ",".join(seen[int(number) : int(number) + 1])
    import torch

    if not torch.cuda.is_available():
        if before is None:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        else:
            os.environ["CUDA_VISIBLE_DEVICES"] = before
        raise ValueError(f"--device: got {name}, which torch does not find, expected cpu or a GPU that is there.")


DeviceOption = Annotated[
    str | None,
    typer.Option(metavar="DEVICE", help="cpu, cuda or cuda:N; by default a GPU where there is one."),
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show no progress, only what came of it.")]

OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results; made when missing.")]

SeedOption = Annotated[int, typer.Option(help="Makes the run repeatable.", min=0)]

RunArgument = Annotated[Path, typer.Argument(help="A folder that art-robust train, or save_classifier, wrote.")]
DataOption = Annotated[str | None, typer.Option(help="Test data; by default that of the training.")]

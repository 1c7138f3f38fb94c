"""Arguments that several commands take."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

ARGUMENTS = "art_robust_plugins.arguments"
"""The key under which the context of a command keeps the arguments that it was given."""


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
QuietOption = Annotated[bool, typer.Option("--quiet", help="Show the results, but no progress.")]

OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results; it is made when it is missing.")]

LARGEST_SEED = 2**32 - 1
SeedOption = Annotated[int, typer.Option(help="Makes the run repeatable.", min=0, max=LARGEST_SEED)]

RunArgument = Annotated[
    Path, typer.Argument(metavar="RUN", help="A folder that art-robust train, or save_classifier, wrote.")
]
DataOption = Annotated[str | None, typer.Option(help="Test data; by default that of the training.")]

NetworkArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN | FILE.py:NAME",
        help="A folder that art-robust train, or save_classifier, wrote; or a file, or package.module, and in it a "
        "network, or a function without arguments that returns one.",
    ),
]


@dataclass(frozen=True)
class NetworkOptions:
    """The options of a command that say more about its network, and name its data."""

    data: DataOption = None
    weights: Annotated[
        Path | None, typer.Option(help="Weights for FILE.py:NAME: .safetensors, or a state dict that torch.save wrote.")
    ] = None
    bounds: Annotated[
        str | None,
        typer.Option(
            metavar="LOW,HIGH", help="Range that FILE.py:NAME takes, to which images are scaled; 0,1 by default."
        ),
    ] = None
    mean: Annotated[
        str | None,
        typer.Option(
            help="Mean that is subtracted from images before FILE.py:NAME takes them: a number, or A,B,C by channel."
        ),
    ] = None
    std: Annotated[
        str | None,
        typer.Option(help="Standard deviation by which the difference is divided: a number, or A,B,C by channel."),
    ] = None


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
    authors: Annotated[str, typer.Option(help="Authors of the paper, for --robustbench.")] = "unknown"

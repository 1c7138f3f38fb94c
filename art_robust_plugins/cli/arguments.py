"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

OutOption = Annotated[Path, typer.Option("--out", help="Folder for the results; made when missing.")]

SeedOption = Annotated[int, typer.Option(help="Makes the run repeatable.", min=0)]

RunArgument = Annotated[Path, typer.Argument(help="A folder that art-robust train, or save_classifier, wrote.")]
DataOption = Annotated[str | None, typer.Option(help="Test data; by default that of the training.")]

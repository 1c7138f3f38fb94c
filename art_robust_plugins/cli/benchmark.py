"""``art-robust benchmark``: a recipe."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .arguments import DeviceOption, QuietOption, select_device


def benchmark(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A recipe of --list, or the path of a .toml file.")
    ] = None,
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Run for about a minute, to see that it runs: few images, one epoch, one seed."),
    ] = False,
    workers: Annotated[int, typer.Option(help="Processes that share the networks.", min=1)] = 1,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for the networks and results; runs/NAME by default.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--record", help="Write results.json to this file as well, for keeping.")
    ] = None,
    device: DeviceOption = None,
    quiet: QuietOption = False,
    listed: Annotated[bool, typer.Option("--list", help="List the recipes, and run none.")] = False,
) -> None:
    """Run a recipe: train every row with every seed, attack and certify the networks, and compare them.

    Stopped, the same command goes on where it was, and what is done is not done again.

    Example: art-robust benchmark digits --quick
    """
    select_device(device)
    # These import torch and ART, which the help does without.
    from rich.table import Column, Table

    from ..escapes import escape_markdown
    from ..experiments.recipes import available_recipes, load_recipe, result_rows, run_recipe
    from ..files import write_json
    from ..locks import check_output_file
    from ..provenance import table as markdown
    from ..terminal import console
    from .running import advise_on_interrupt

    if listed:
        if name is not None:
            raise ValueError(f"NAME: got {name!r} with --list, expected one of the two.")
        recipes = Table("recipe", "networks", Column("what", overflow="fold"))
        for each in map(load_recipe, available_recipes()):
            recipes.add_row(each.name, str(sum(len(row.seeds) for row in each.rows)), each.description)
        console.print(recipes)
        return
    if name is None:
        raise ValueError(f"NAME: got none, expected one of {', '.join(available_recipes())}, or a .toml file.")
    if record is not None and quick:
        raise ValueError("--record: got it with --quick, whose results are no measurements, expected it without.")
    if record is not None and (record.is_dir() or not record.absolute().parent.is_dir()):
        raise ValueError(f"--record: got {record}, expected a file in a folder that is there.")
    if record is not None:
        check_output_file("--record", record)
    recipe = load_recipe(name, quick=quick)
    folder = out or Path("runs") / f"{recipe.name}{'-quick' if quick else ''}"
    shown = ["art-robust", "benchmark", name if Path(name).suffix != ".toml" else Path(name).name]
    shown += ["--quick"] * quick + (["--workers", str(workers)] if workers > 1 else [])
    with advise_on_interrupt(f"to continue: art-robust {shlex.join(sys.argv[1:])}"):
        results = run_recipe(recipe, folder, command=shlex.join(shown), workers=workers, verbose=not quiet)
    rows = [{escape_markdown(key): escape_markdown(cell) for key, cell in row.items()} for row in result_rows(results)]
    print(f"\n{markdown(rows)}\n")
    if quick:
        console.print("A quick run: these are no measurements.")
    if record is not None:
        write_json(record, results)

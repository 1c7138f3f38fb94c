"""``art-robust methods``: what is installed."""

from __future__ import annotations

from typing import Annotated

import typer

from ..checks import suggest


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A method or instrument, to see its parameters.")
    ] = None,
) -> None:
    """List the methods and the instruments that join any of them, or show one with its source and parameters.

    Example: art-robust methods trades
    """
    # These import torch and ART, which the help does without.
    from ..registry import available_instruments, available_methods
    from ..terminal import print_rows
    from .kinds import find_source, find_status, name_kind, read_purpose, show_kind

    trained, attached = available_methods(), available_instruments()
    if name is None:
        rows = [("method", "as an ART", "status", "source")]
        rows += [(each, name_kind(kind), find_status(kind), find_source(kind)) for each, kind in trained.items()]
        print_rows(rows)
        print()
        print_rows([("instrument", "what it does"), *((each, read_purpose(kind)) for each, kind in attached.items())])
        print("\nMore of one: art-robust methods NAME")
        return
    if name not in trained and name not in attached:
        known = list(dict.fromkeys([*trained, *attached]))
        raise ValueError(f"NAME: got {name!r}, expected one of {', '.join(known)}{suggest(name, known)}")
    if name in trained:
        kind = trained[name]
        show_kind(name, kind, f"ART {name_kind(kind)}", "--set ")
    if name in attached:
        show_kind(name, attached[name], f"instrument: --with {name}", f"--set {name}.", after=name in trained)

"""``art-robust methods``: what is installed."""

from __future__ import annotations

import inspect
from typing import Annotated

import typer

from ..checks import suggest
from ..registry import available_instruments, available_methods, parameters_of
from ..terminal import print_rows
from .showing import name_kind


def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="A method or instrument, to see its parameters.")
    ] = None,
) -> None:
    """List the methods and the instruments that join any of them, or show one with its source and parameters.

    Example: art-robust methods trades
    """
    trained, attached = available_methods(), available_instruments()
    if name is None:
        rows = [("method", "as an ART", "source")]
        rows += [(each, name_kind(kind), _find_source(kind)) for each, kind in trained.items()]
        print_rows(rows)
        print()
        print_rows([("instrument", "what it does"), *((each, _read_purpose(kind)) for each, kind in attached.items())])
        print("\nMore of one: art-robust methods NAME")
        return
    if name not in trained and name not in attached:
        known = list(dict.fromkeys([*trained, *attached]))
        raise ValueError(f"NAME: got {name!r}, expected one of {', '.join(known)}{suggest(name, known)}")
    if name in trained:
        kind = trained[name]
        _show(name, kind, f"ART {name_kind(kind)}", "--set ")
    if name in attached:
        _show(name, attached[name], f"instrument: --with {name}", f"--set {name}.", after=name in trained)


def _show(name: str, kind: type, role: str, option: str, *, after: bool = False) -> None:
    if after:
        print()
    rows = [("is", role), ("class", f"{kind.__module__}.{kind.__qualname__}"), ("does", _read_purpose(kind))]
    if "source" in dir(kind):
        rows.append(("source", _find_source(kind)))
    print(name)
    for what, text in rows:
        print(f"  {what:<8}{text}")
    parameters = parameters_of(kind)
    print(f"  parameters, for art-robust train {option}NAME=VALUE" if parameters else "  no parameters")
    for key, value in parameters.items():
        shown = "(required)" if value is inspect.Parameter.empty else f"= {value!r}"
        print(f"    {key} {shown}{', given by --norm and --eps' if key == 'threat' else ''}")


def _find_source(kind: type) -> str:
    return getattr(kind, "source", "") or "not stated"


def _read_purpose(kind: type) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(kind) or "not stated").split("\n")[0]

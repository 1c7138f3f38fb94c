"""``art-robust methods``: what is installed."""

from __future__ import annotations

from rich.table import Table

from ..registry import available_instruments, available_methods
from ..terminal import console
from .showing import list_parameters, name_kind


def methods() -> None:
    """List what is installed: each method's source and parameters, and the instruments that join any of them."""
    table = Table("method", "as an ART", "source", "parameters")
    for name, kind in available_methods().items():
        table.add_row(name, name_kind(kind), getattr(kind, "source", "") or "not stated", list_parameters(kind))
    console.print(table)
    instruments = Table("instrument", "parameters")
    for name, kind in available_instruments().items():
        instruments.add_row(name, list_parameters(kind))
    console.print(instruments)

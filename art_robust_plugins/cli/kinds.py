"""Descriptions of a method or an instrument."""

from __future__ import annotations

import inspect
import re

from art.defences.preprocessor.preprocessor import Preprocessor
from art.defences.trainer import Trainer

from ..registry import parameters_of


def name_kind(kind: type) -> str:
    """ART's name for a method of this class: Trainer, Preprocessor or estimator."""
    if issubclass(kind, Trainer):
        return "Trainer"
    return "Preprocessor" if issubclass(kind, Preprocessor) else "estimator"


def show_kind(name: str, kind: type, role: str, option: str, *, after: bool = False) -> None:
    if after:
        print()
    rows = [("is", role), ("class", f"{kind.__module__}.{kind.__qualname__}"), ("does", read_purpose(kind))]
    if "source" in dir(kind):
        rows.append(("source", find_source(kind)))
    print(name)
    for what, text in rows:
        print(f"  {what:<8}{text}")
    parameters = parameters_of(kind)
    print(f"  parameters, for art-robust train {option}NAME=VALUE" if parameters else "  no parameters")
    for key, value in parameters.items():
        shown = "(required)" if value is inspect.Parameter.empty else f"= {value!r}"
        print(f"    {key} {shown}{', given by --norm and --eps' if key == 'threat' else ''}")


def find_source(kind: type) -> str:
    return getattr(kind, "source", "") or "not stated"


def find_status(kind: type) -> str:
    """How a method stands to its source, by the first word of the source that says so."""
    found = re.search("exact|reconstructed|baseline", find_source(kind))
    return found[0] if found else "not stated"


def read_purpose(kind: type) -> str:
    """The first line of the docstring."""
    return (inspect.getdoc(kind) or "not stated").split("\n")[0]

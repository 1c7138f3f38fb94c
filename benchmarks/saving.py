"""Saving the benchmarks' results, each with its command, versions and machine."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

from art_robust_plugins.files import write_json
from art_robust_plugins.provenance import conditions, table

__all__ = ["RESULTS", "describe_command", "save", "table"]

RESULTS = Path(__file__).parent / "results"


def save(name: str, results: Any, *, folder: Path | None = None, **more: Any) -> Path:
    """Write results/``name``.json, or that file in another folder, and return its path."""
    path = (RESULTS if folder is None else folder) / f"{name}.json"
    write_json(path, {**conditions(describe_command()), **more, "results": results})
    return path


def describe_command() -> str:
    """This process's command line, without folders of this machine."""
    arguments = ["DIR" if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments])

"""Records of measured figures: JSON with the command, the versions and the machine that gave them."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("art-robust-plugins", "torch", "adversarial-robustness-toolbox", "pyautoattack", "torchattacks", "numpy")


def processor() -> str:
    """The name of the CPU, and of the GPU where there is one."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = f"{len(names)} x {names[0]}" if names else platform.processor()
    return f"{name}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name


def find_version(package: str) -> str:
    """The version of a package, or that there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def conditions(command: str) -> dict[str, Any]:
    """The command, and where and with what it ran, as JSON data."""
    return {
        "command": command,
        "date": date.today().isoformat(),
        "machine": processor(),
        "python": platform.python_version(),
        # torch's own version names the build too, for a CPU or for CUDA; that of its package may not.
        "versions": {package: find_version(package) for package in PACKAGES} | {"torch": str(torch.__version__)},
        "threads": torch.get_num_threads(),
    }


def describe_conditions(record: Mapping[str, Any]) -> str:
    """The `conditions` in a record, in a sentence."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return f"`{record['command']}`, {record['date']}, {record['machine']}, Python {record['python']}, {versions}."


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table. Their text is Markdown: escape what others wrote before.

    Example:
        >>> print(table([{"network": "lenet", "ms": 17}]))
        | network | ms |
        | --- | --- |
        | lenet | 17 |
    """
    cells = [list(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    head, *rest = [f"| {' | '.join(line)} |" for line in cells]
    return "\n".join([head, f"| {' | '.join(['---'] * len(rows[0]))} |", *rest])

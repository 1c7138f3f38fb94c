"""How a benchmark's figures are kept: JSON beside the command, the versions and the machine that gave them."""

from __future__ import annotations

import platform
import sys
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from art_robust_plugins.checkpoint import write_json

PACKAGES = ("art-robust-plugins", "torch", "adversarial-robustness-toolbox", "pyautoattack", "torchattacks", "numpy")
RESULTS = Path(__file__).parent / "results"


def processor() -> str:
    """The name of the CPU, and of the GPU where there is one."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = f"{len(names)} x {names[0]}" if names else platform.processor()
    return f"{name}, {torch.cuda.get_device_name()}" if torch.cuda.is_available() else name


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def save(name: str, results: Any, **conditions: Any) -> Path:
    """Write results/``name``.json and return its path."""
    path = RESULTS / f"{name}.json"
    arguments = ["DIR" if Path(argument).is_absolute() else argument for argument in sys.argv[1:]]
    record = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *arguments]),
        "date": date.today().isoformat(),
        "machine": processor(),
        "python": platform.python_version(),
        "versions": {package: installed(package) for package in PACKAGES},
        "threads": torch.get_num_threads(),
        **conditions,
        "results": results,
    }
    write_json(path, record)
    return path


def table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([str(value) for value in row.values()] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

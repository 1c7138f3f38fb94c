"""The data of a command: loaded once where several processes run, or those that a run was trained on."""

from __future__ import annotations

from pathlib import Path

from ..data import Dataset, load_data
from ..experiments.training_record import read_training_record
from ..processes import find_processes
from ..training.engine.processes import Processes


def load_test_data(run: Path, name: str | None) -> Dataset:
    """The test data that are asked for, or those of the run's training."""
    trained_on: str | None = read_training_record(run).get("data")
    chosen = name or trained_on
    if chosen is None:
        raise ValueError(f"--data: {run} does not say what it was trained on, expected the name of the test data.")
    return load_everywhere(chosen)


def load_everywhere(name: str) -> Dataset:
    """The data; where several processes run, one of each machine is the first, as it may have to download them."""
    processes = Processes(find_processes().device)
    try:
        data = load_data(name) if processes.is_local_main else None
    finally:
        processes.wait()
    return data or load_data(name)

"""The data of a command: loaded once where several processes run, or those that a run was trained on."""

from __future__ import annotations

from pathlib import Path

from ..checks import suggest
from ..data import Dataset, load_data
from ..experiments.training_record import read_training_record
from ..processes import find_processes
from ..saved_classifier import CLASSIFIER_FILE
from ..training.engine.checkpointer import CHECKPOINT
from ..training.processes import Processes


def check_run(name: str, run: Path) -> None:
    """Refuse a path that is no run, and say which run was meant, or what completes it.

    Raises:
        FileNotFoundError: the path, or its trained network, is not there.
    """
    if (run / CLASSIFIER_FILE).exists():
        return
    expected = "a folder that art-robust train, or save_classifier, wrote"
    if not run.exists():
        beside = run.parent.iterdir() if run.parent.is_dir() else []
        near = suggest(run.name, [each.name for each in beside if (each / CLASSIFIER_FILE).exists()])
        raise FileNotFoundError(f"{name}: got {run}, which is not there, expected {expected}{near}")
    if not run.is_dir():
        raise FileNotFoundError(
            f"{name}: got the file {run}, expected {expected}, or FILE.py:NAME, with --weights {run} for weights."
        )
    if (run / CHECKPOINT).exists():
        raise FileNotFoundError(
            f"{name}: got {run}, whose training was stopped, expected a finished one; --resume, added to the "
            f"art-robust train that began it, finishes it."
        )
    inside = sorted(each.name for each in run.iterdir() if (each / CLASSIFIER_FILE).exists())
    hint = f"; it holds the runs {', '.join(inside)}" if inside else ""
    raise FileNotFoundError(f"{name}: got {run}, which holds no {CLASSIFIER_FILE}, expected {expected}{hint}.")


def load_test_data(run: Path, name: str | None) -> Dataset:
    """The test data that are asked for, or those of the run's training."""
    check_run("RUN", run)
    trained_on: str | None = read_training_record(run).get("data")
    chosen = name or trained_on
    if chosen is None:
        raise ValueError(f"--data: {run} does not say what it was trained on, expected the name of the test data.")
    return load_everywhere(chosen, test_only=True)


def load_everywhere(name: str, *, test_only: bool = False) -> Dataset:
    """The data; where several processes run, one of each machine is the first, as it may have to download them."""
    processes = Processes(find_processes().device)
    try:
        data = load_data(name, test_only=test_only) if processes.is_local_main else None
    finally:
        processes.wait()
    return data or load_data(name, test_only=test_only)

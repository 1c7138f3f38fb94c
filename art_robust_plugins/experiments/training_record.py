"""The record of a run's training in its `classifier.json`, with checks of the entries that later commands use."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import Entry
from ..saved_classifier import CLASSIFIER_FILE, describe_classifier


def read_training_record(run: Path) -> Mapping[str, Any]:
    """Read the record kept with a saved classifier; if `train_run` did not save it, entries may be missing.

    Raises:
        FileNotFoundError: there is no saved classifier.
        ValueError: an entry of another type; the sentence names it.
    """
    record: Mapping[str, Any] = describe_classifier(run)["extra"]
    entry = Entry(record, f"{run / CLASSIFIER_FILE}: extra")
    if (data := entry.find("data")) is not None:
        data.text()
    for name in ("epochs", "seed"):
        if (number := entry.find(name)) is not None:
            number.whole(0)
    if (history := entry.find("history")) is not None:
        for epoch in history.list_of(1_000_000):
            epoch["seconds"].number(0)
    return record


def read_histories(runs: Mapping[str, Path]) -> dict[str, list[Mapping[str, Any]]]:
    """The records of the epochs of runs by their names, for those with a saved classifier that has one.

    Raises:
        ValueError: an entry of another type; the sentence names it.
    """
    saved = {name: run for name, run in runs.items() if (run / CLASSIFIER_FILE).exists()}
    histories = {name: read_training_record(run).get("history") for name, run in saved.items()}
    return {name: history for name, history in histories.items() if history}


def training_seconds(run: Path) -> float:
    """The total seconds of a run's epochs."""
    history = Entry(read_training_record(run), f"{run / CLASSIFIER_FILE}: extra")["history"]
    return sum(epoch["seconds"].number(0) for epoch in history.list_of(1_000_000))

"""What a run's `classifier.json` says of its training, with the kinds of entries that later commands rely on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import Entry
from ..saved_classifier import CLASSIFIER_FILE, describe_classifier


def read_training_record(run: Path) -> Mapping[str, Any]:
    """The record kept with a saved classifier; it may lack what `train_run` notes, where something else saved it.

    Raises:
        FileNotFoundError: there is no saved classifier.
        ValueError: an entry of another kind; the sentence names it.
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


def training_seconds(run: Path) -> float:
    """How long the epochs of a run took together."""
    history = Entry(read_training_record(run), f"{run / CLASSIFIER_FILE}: extra")["history"]
    return sum(epoch["seconds"].number(0) for epoch in history.list_of(1_000_000))

"""Checks of an evaluation's saved state before it is used: types, sizes and ranges of its entries."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..files import Entry


def check_opened(state: Any, path: Path, *, points: int, classes: int) -> None:
    """Refuse saved clean findings with an entry of a wrong type or range; ``points`` were evaluated.

    Raises:
        ValueError: the sentence names the entry.
    """
    entry = Entry(state, f"{path}:")
    entry["mark"].text()
    passes = entry["passes"].whole(1, 1000)
    entry["probabilities"].flag()
    for name in ("nan", "infinite"):
        entry[name].whole(0, points)
    outputs = _tensor(entry["outputs"], torch.float32, (None, classes))
    if not 1 <= len(outputs) <= points:
        entry["outputs"].refuse(f"the outputs of 1 to {points} points")
    for name in ("undecided", "tied"):
        entry[name].whole(0, points)
    _tensor(entry["spared"], torch.bool, (points,))
    entry["gradients"].flag()
    entry["moved"].texts()
    for name in ("difference", "memory", "seeded_difference", "batch_difference"):
        _distance(entry[name])
    if passes == 1 or entry["clean"].value is not None:
        _indices(entry["clean"], -1, classes - 1, length=points)


def read_fingerprint(state: Any, path: Path) -> dict[str, str]:
    """The fingerprint of the saved evaluation.

    Raises:
        ValueError: it is no table of texts.
    """
    fingerprint = Entry(state, f"{path}:")["fingerprint"]
    return {key: value.text() for key, value in fingerprint.items()}


def check_change(
    state: Any, path: Path, *, attacks: Collection[str], counts: Collection[str], x: Tensor
) -> dict[str, Any]:
    """Refuse a batch's saved changes with an entry of a wrong type or range; ``x`` [N, ...] are the samples.

    Raises:
        ValueError: the sentence names the entry.
    """
    entry = Entry(state, f"{path}:")
    entry["mark"].text()
    entry["attack"].text(attacks)
    batches = entry["batches"].list_of(len(x))
    if not batches:
        entry["batches"].refuse("at least one number")
    for number in batches:
        number.whole(0, len(x) - 1)
    entry["counts"].table(counts)
    for name in counts:
        entry["counts"][name].number(0)
    for name in ("farthest", "repeat_difference", "widest"):
        _distance(entry[name])
    entry["gradients"].flag()
    entry["moved"].texts()
    _indices(entry["fooled"], 0, len(x) - 1)
    broken = _indices(entry["broken"], 0, len(x) - 1)
    adversarial = _tensor(entry["adversarial"], torch.float32, (len(broken), *x.shape[1:]))
    if not bool(adversarial.isfinite().all()):
        raise ValueError(f"{path}: adversarial: got NaN or infinity, expected images.")
    return entry.table()


def _distance(entry: Entry) -> None:
    """A number of at least 0, or infinity."""
    if not (isinstance(entry.value, float) and entry.value == float("inf")):
        entry.number(0)


def _tensor(entry: Entry, kind: torch.dtype, sizes: tuple[int | None, ...]) -> Tensor:
    value = entry.value
    wanted = f"a {kind} tensor of shape {tuple('any' if size is None else size for size in sizes)}"
    if not isinstance(value, Tensor):
        raise ValueError(f"{entry.place}: got {type(value).__name__}, expected {wanted}.")
    fits = len(value.shape) == len(sizes) and all(
        size in (None, length) for size, length in zip(sizes, value.shape, strict=True)
    )
    if value.dtype != kind or not fits:
        raise ValueError(f"{entry.place}: got a {value.dtype} tensor of shape {tuple(value.shape)}, expected {wanted}.")
    return value


def _indices(entry: Entry, low: int, high: int, *, length: int | None = None) -> Tensor:
    value = _tensor(entry, torch.int64, (length,))
    if len(value) and not (low <= int(value.min()) and int(value.max()) <= high):
        raise ValueError(f"{entry.place}: got {int(value.min())} to {int(value.max())}, expected {low} to {high}.")
    return value

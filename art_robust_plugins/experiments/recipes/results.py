"""The results of a recipe's networks as files, checked when they are read: tables are made of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...files import Entry, read_sealed, write_sealed

if TYPE_CHECKING:
    from .recipe import Recipe

_FORMAT = "art-robust-plugins result 2"


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write the result of one network."""
    write_sealed(path, {"format": _FORMAT, **result})


def read_result(path: Path, recipe: Recipe, row: str, seed: int) -> dict[str, Any]:
    """Read the result of the network of this row and seed. (Files of earlier versions have no digest.)

    Raises:
        ValueError: a file that was changed, or is of another network; entries that no result has.
    """
    result = read_sealed(path, _FORMAT, (None,))
    result.pop("format", None)
    entry = Entry(result, f"{path}:")
    entry["row"].text((row,))
    entry["seed"].whole(seed, seed)
    for name in ("date", "machine"):
        entry[name].text()
    entry["threads"].whole(1)
    if "diverged" in result:
        entry["diverged"].text()
        return result
    entry["clean"].share()
    entry["training_seconds"].number(0)
    entry["threats"].table(recipe.threats)
    for text in recipe.threats:
        _check_threat(entry["threats"][text])
    entry["noise"].table(recipe.noise)
    for name in recipe.noise:
        entry["noise"][name].share()
    entry["certified"].table(recipe.certify)
    for text in recipe.certify:
        if entry["certified"][text].value is not None:
            entry["certified"][text].share()
    return result


def _check_threat(entry: Entry) -> None:
    robust = entry["robust"].share()
    if entry["autoattack"].value is not None and entry["autoattack"].share() < robust:
        entry["robust"].refuse("at most the accuracy under AutoAttack")
    for _, accuracy in entry["attacks"].items():
        accuracy.share()
    entry["flags"].texts()

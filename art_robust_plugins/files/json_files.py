"""JSON files: descriptions, records, reports."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from .reading import refuse_file, regular_file
from .strict_json import SIZE_LIMIT, UnfitError, parse_json
from .writing import write_atomically


def write_json(path: str | Path, data: Any) -> None:
    """Write ``data`` as indented JSON. NumPy numbers are written as numbers.

    Raises:
        ValueError: for NaN or infinity, which JSON does not have.
        TypeError: for values that JSON does not have, such as tensors.
    """
    text = json_text(path, data)
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def json_text(path: str | Path, data: Any) -> str:
    """``data`` as `write_json` writes it; refuses what JSON does not have."""
    try:
        return json.dumps(data, indent=2, allow_nan=False, default=_plain_number) + "\n"
    except ValueError as error:
        raise ValueError(f"{path}: got data with NaN, infinity or a cycle, expected JSON data.") from error


def _plain_number(value: object) -> Any:
    if isinstance(value, np.number | np.bool_):
        return value.item()
    raise TypeError(f"data: got a {type(value).__name__}, expected JSON data: numbers, text, lists, dicts.")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or is not JSON.
    """
    expected = "a JSON file"
    path = regular_file(path, expected)
    try:
        with path.open("rb") as file:
            return parse_json(file.read(SIZE_LIMIT + 1))
    except UnfitError as error:
        refuse_file(path, expected, str(error))

"""JSON records that carry a digest of their own content, so that a changed letter does not pass for a result.

A digest tells a change by accident from what was written. It is no signature: whoever changes a file on purpose can
compute it anew, which is why readers check kinds and ranges as well.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .entries import Entry, shorten
from .json_files import json_text, read_json, write_json

DIGEST = "sha256"
"""The entry of a record that holds the digest of all others."""


def seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with the digest of its canonical JSON: keys sorted, no white space, ASCII alone.

    Raises:
        ValueError: for NaN or infinity.
        TypeError: for what is not JSON data.

    Example:
        >>> sorted(seal({"format": "example 1"}))
        ['format', 'sha256']
    """
    plain = json.loads(json_text("record", {key: value for key, value in record.items() if key != DIGEST}))
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return {**plain, DIGEST: hashlib.sha256(canonical.encode()).hexdigest()}


def write_sealed(path: str | Path, record: Mapping[str, Any]) -> None:
    """Write a record with its digest.

    Raises:
        ValueError: for NaN or infinity.
        TypeError: for what is not JSON data.
    """
    write_json(path, seal(record))


def read_sealed(path: str | Path, format: str, unsealed: Sequence[str | None] = ()) -> dict[str, Any]:
    """Read a record of this format, without its digest, which must be right.

    Args:
        path: the file.
        format: what the record's entry ``format`` must say.
        unsealed: formats of earlier versions, which wrote no digest; None for one without the entry.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such record, or was changed after it was written.
    """
    record = Entry(read_json(path), str(path)).table()
    found = record.get("format")
    if found != format and found not in unsealed:
        raise ValueError(f"{path}: got the format {shorten(repr(found))}, expected {format!r}.")
    if DIGEST not in record:
        if found == format:
            raise ValueError(f"{path}: {DIGEST}: got no such entry, expected the digest that is written with the file.")
        return record
    if seal(record)[DIGEST] != record[DIGEST]:
        raise ValueError(f"{path}: {DIGEST}: got entries that were changed after they were written, expected the same.")
    return {key: value for key, value in record.items() if key != DIGEST}

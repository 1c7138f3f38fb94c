"""Files that can be read, and what those look like that are not as expected."""

from __future__ import annotations

import hashlib
import stat
import zipfile
from pathlib import Path
from typing import NoReturn


def regular_file(path: str | Path, expected: str) -> Path:
    """The path of a file that can be read; ``expected`` ends the sentence where there is none.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: there is a folder, a pipe, a device or a socket (which may give nothing for ever, or everything),
            or a file that may not be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file, expected {expected}.")
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
        raise ValueError(f"{path}: got {kinds.get(stat.S_IFMT(mode), 'a device')}, expected {expected}.")
    try:
        path.open("rb").close()
    except OSError as error:
        raise ValueError(f"{path}: got {error.strerror!r} when reading, expected {expected}.") from error
    return path


def refuse_file(path: Path, expected: str, found: str = "") -> NoReturn:
    """Say what a file that is not as expected looks like, where its reader has not ``found`` something better."""
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        found = "an empty file"
    elif start[0] == 0x80 and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        found = "a pickle, which is never opened"
    elif start.startswith(b"PK") and "JSON" in expected:
        found = "a zip archive" if _is_archive(path) else "a zip archive cut short or damaged"
    elif start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 2**32:
        found = "a safetensors file cut short or damaged" if "safetensors" in expected else "a safetensors file"
    elif found:
        pass
    elif start.startswith(b"PK"):
        found = "a zip archive" if _is_archive(path) else "a zip archive cut short or damaged"
    elif start[:1] in (b"{", b"["):
        found = "text"
    else:
        found = "a file of another kind"
    raise ValueError(f"{path}: got {found}, expected {expected}.") from None


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # of one that says that it spans several disks
        return False


def sha256_of(path: Path) -> str:
    """The SHA-256 digest of a file's content, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(2**20):
            total.update(part)
    return total.hexdigest()

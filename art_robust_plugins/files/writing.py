"""Writing a file so that a killed process leaves the old one or the new one."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Collection
from pathlib import Path


def _new_file_mode() -> int:
    """The mode that the user's umask gives to new files; it can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return 0o666 & ~mask


_NEW_FILE_MODE = _new_file_mode()

_RANDOM = 8  # hexadecimal digits in the name of a temporary file

_TEMPORARY = re.compile(rf"\.[0-9a-f]{{{_RANDOM}}}\.(.+)")


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file in the folder of ``path``, then move it to ``path`` in one step.

    The folder is made when it is missing. The temporary file ends in the same suffix, and is removed when ``write``
    raises; what stood at ``path`` is then still there.

    Args:
        path: where the file shall stand.
        write: gets the temporary path, and writes the whole file there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_atomically(path, lambda temporary: temporary.write_text("done"))
        >>> path.read_text()
        'done'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(_RANDOM // 2)}.{path.name}")
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.chmod(_NEW_FILE_MODE)  # writers differ in the mode that they give
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say for what
        raise


def target_of_temporary(name: str) -> str | None:
    """The name of the file that a temporary one of `write_atomically` was to become; None for any other name.

    Example:
        >>> target_of_temporary(".0f3a9c21.training.pt"), target_of_temporary(".gitignore")
        ('training.pt', None)
    """
    found = _TEMPORARY.fullmatch(name)
    return found[1] if found else None


def remove_temporaries(folder: str | Path, targets: Collection[str] | None = None) -> None:
    """Remove the temporary files that processes left in a folder when they were killed while they wrote these files.

    Nobody else may be writing them: hold the folder's lock.

    Args:
        folder: one that need not exist.
        targets: names of the files that were to be written; None for all.
    """
    for path in Path(folder).glob(".*"):
        target = target_of_temporary(path.name)
        if target is not None and (targets is None or target in targets) and path.is_file():
            path.unlink()

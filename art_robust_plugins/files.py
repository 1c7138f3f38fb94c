"""Files that survive a killed process, and that never run code when they are read.

Tensors are safetensors, descriptions are JSON, training state is a `torch.save` archive read with ``weights_only``.
Every file is written beside its place and then moved there, so that a reader meets the old file or the new one.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import stat
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .archives import check_archive, check_state
from .strict_json import SIZE_LIMIT, UnfitError, parse_json


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
    """Remove from a folder what processes that were killed while they wrote these files left there.

    Nobody else may be writing them: hold the folder's lock.

    Args:
        folder: one that need not exist.
        targets: names of the files that were to be written; None for all.
    """
    for path in Path(folder).glob(".*"):
        target = target_of_temporary(path.name)
        if target is not None and (targets is None or target in targets) and path.is_file():
            path.unlink()


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
        _refuse(path, expected, str(error))


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors as safetensors. Tensors that share memory are written once each.

    Args:
        path: the file, customarily ``*.safetensors``.
        tensors: dense tensors of any shape and device.
        metadata: text for the header of the file.

    Raises:
        TypeError: when a value is not a dense tensor.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "x.safetensors"
        >>> save_tensors(path, {"x": torch.arange(3)})
        >>> load_tensors(path)
        {'x': tensor([0, 1, 2])}
    """
    plain: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise TypeError(f"tensors: got a {type(tensor).__name__} at {name!r}, expected a dense tensor.")
        single = tensor.detach().cpu().contiguous()
        storage = single.untyped_storage().data_ptr()
        plain[name] = single.clone() if storage in storages else single
        storages.add(storage)
    header = {"format": "pt", **(metadata or {})}
    write_atomically(path, lambda temporary: temporary.write_bytes(safetensors.torch.save(plain, header)))


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, is cut short, or is not safetensors (a pickle is never opened).
    """
    expected = "a safetensors file"
    path = regular_file(path, expected)
    try:
        # Not load_file: its tensors are mapped memory, which a later change of the file would change or break.
        return safetensors.torch.load(path.read_bytes())
    # The others are of types and shapes that this torch or this safetensors does not know.
    except (SafetensorError, KeyError, ValueError, TypeError, RuntimeError, OverflowError):
        _refuse(path, expected)


def save_state(path: str | Path, state: Any) -> None:
    """Write nested training state: dicts, lists, tuples, tensors, numbers, text, booleans, None.

    Tensors keep their type and are read back on the CPU; mappings of any class become dicts.

    Raises:
        TypeError: when the state holds something else; the sentence says where.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "state.pt"
        >>> save_state(path, {"epoch": 3, "generator": torch.zeros(2)})
        >>> load_state(path)
        {'epoch': 3, 'generator': tensor([0., 0.])}
    """
    plain = _plain_state(state, "state")
    save_archive(path, plain)


def save_archive(path: str | Path, value: Any) -> None:
    """Write ``value`` as `torch.save` does, but with the OSError that a full disk deserves: torch raises another."""
    archive = io.BytesIO()
    torch.save(value, archive)
    write_atomically(path, lambda temporary: temporary.write_bytes(archive.getbuffer()))


def load_state(path: str | Path) -> Any:
    """Read what `save_state` wrote, tensors on the CPU. Only data are read: no code of the file can run.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, is cut short, is a bare pickle, or holds objects other than data.
    """
    expected = "a training state as save_state writes it"
    path = regular_file(path, expected)
    # torch.load also reads its format of before 2020, a bare pickle; that one is never opened.
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            _refuse(path, expected)
    try:
        check_archive(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
        check_state(state)
        return state
    except UnpicklingError:
        raise ValueError(
            f"{path}: got a pickle of objects other than tensors, numbers, text and their containers, which is not "
            f"opened, expected {expected}."
        ) from None
    except UnfitError as error:
        _refuse(path, expected, str(error))
    except Exception:  # whatever zipfile, pickletools and torch raise of an archive that torch.save did not write
        _refuse(path, expected)


def _plain_state(value: Any, place: str) -> Any:
    if isinstance(value, Tensor):
        single = value.detach()
        # torch.save writes the whole storage behind a view.
        whole = single.untyped_storage().nbytes() == single.numel() * single.element_size()
        return single if whole else single.clone()
    if isinstance(value, Mapping):
        return {_plain_state(key, place): _plain_state(entry, f"{place}[{key!r}]") for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain_state(entry, f"{place}[{i}]") for i, entry in enumerate(value))
    if value is None or type(value) in (bool, int, float, str, bytes):
        return value
    if isinstance(value, np.number | np.bool_):
        return value.item()
    raise TypeError(
        f"{place}: got a {type(value).__name__}, expected tensors, numbers, text, None, or dicts, lists and tuples "
        f"of them."
    )


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


def _refuse(path: Path, expected: str, found: str = "") -> NoReturn:
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

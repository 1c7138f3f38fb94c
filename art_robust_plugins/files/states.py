"""Nested training state as an archive of `torch.save`, which is read with ``weights_only``."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .archives import check_archive, check_state
from .reading import refuse_file, regular_file
from .strict_json import UnfitError
from .writing import write_atomically


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
            refuse_file(path, expected)
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
        refuse_file(path, expected, str(error))
    except Exception:  # whatever zipfile, pickletools and torch raise of an archive that torch.save did not write
        refuse_file(path, expected)


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

"""Arrays of an .npz file of unknown origin: what it declares is compared with what it has before it is read."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..memory import in_gigabytes, physical_memory
from .reading import regular_file

_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npz(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The arrays of these names. Nothing is unpickled.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, lacks an array, or holds more than half of the memory as float32.
    """
    regular_file(path, f"an .npz file with {', '.join(names)}")
    try:
        _check_sizes(path, names)
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in names}
    except Exception as error:  # whatever zipfile and NumPy raise of an archive that NumPy did not write
        reason = str(error) or type(error).__name__
        raise ValueError(f"{path}: {reason}, expected an .npz file of number arrays {', '.join(names)}.") from error


def _check_sizes(path: Path, names: Sequence[str]) -> None:
    whole = 0
    with zipfile.ZipFile(path) as archive:
        members = [member.filename for member in archive.infolist()]
        for name in names:
            count = members.count(f"{name}.npy")
            if count != 1:
                there = ", ".join(member.removesuffix(".npy") for member in members[:20]) or "nothing"
                raise ValueError(f"has no {name} but {there}" if count == 0 else f"has {name} twice")
            member = archive.getinfo(f"{name}.npy")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version not in _HEADERS:
                    raise ValueError(f"{name} is of the version {version} of NumPy's format")
                shape, _, kind = _HEADERS[version](file)
                begun = file.tell()
            values = math.prod(shape)
            if kind.hasobject:
                continue  # which NumPy refuses
            if min(shape, default=0) < 0 or begun + values * kind.itemsize != member.file_size:
                raise ValueError(f"{name} is not as large as its shape {shape} says")
            whole += values * 4
    if whole > physical_memory() // 2:
        raise ValueError(
            f"holds {in_gigabytes(whole)} as float32, more than half of the memory, {in_gigabytes(physical_memory())}"
        )

"""Named tensors as safetensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .reading import refuse_file, regular_file
from .writing import write_atomically

_NAMES = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.bool: "BOOL"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8"},
}
"""The types whose tensors are written without the library, and their names in the file."""


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
    if not _NAMES.keys() >= {tensor.dtype for tensor in plain.values()}:
        write_atomically(path, lambda temporary: temporary.write_bytes(safetensors.torch.save(plain, header)))
        return
    write_atomically(path, lambda temporary: _write_one_by_one(temporary, plain, header))


def _write_one_by_one(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write dense tensors on the CPU without a copy; the library makes two of all of them, in its own file's form."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    ordered = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))  # so that all of them are aligned
    start = 0
    for name in ordered:
        tensor = tensors[name]
        end = start + tensor.numel() * tensor.itemsize
        entries[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    header = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    header += b" " * (-len(header) % 8)
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in ordered:
            # The stride of a single number may be anything, which a view in bytes does not take.
            flat = tensors[name].as_strided((tensors[name].numel(),), (1,))
            file.write(flat.view(torch.uint8).numpy().data)


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
        refuse_file(path, expected)

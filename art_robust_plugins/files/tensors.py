"""Named tensors as safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .reading import refuse_file, regular_file
from .writing import write_atomically


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
        refuse_file(path, expected)

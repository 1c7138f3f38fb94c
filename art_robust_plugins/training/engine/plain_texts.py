"""Settings as texts that are the same in every process."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...fingerprints import digest

CODE = "code of the "
"""The beginning of the names of code entries, which are comparable only within one version of Python."""

_OF_ONE_PROCESS = re.compile(r" at 0x[0-9a-fA-F]+|, device='\w+(:\d+)?'")
_SHORT = 16


def plain_text(value: Any) -> str:
    """A setting as text without memory addresses and devices, which differ between processes and in a resumed run."""
    return _OF_ONE_PROCESS.sub("", str(value))


def describe_value(value: Any, dtype: torch.dtype | None = None) -> str:
    """A setting as a text that is the same in every process; many numbers are replaced by their digest.

    With ``dtype`` an array counts as what it is in that type.
    """
    if isinstance(value, np.generic):
        return str(value.item())
    if isinstance(value, Tensor | np.ndarray):
        return _describe_array(value, dtype)
    if isinstance(value, Mapping | list | tuple | set | frozenset):
        return _describe_container(value)
    if isinstance(value, partial):
        return f"partial({describe_value(value.func)}, {describe_value(value.args)}, {describe_value(value.keywords)})"
    named = callable(value) and hasattr(value, "__qualname__")
    kind: Any = type(value)
    if named or (kind.__repr__ is object.__repr__ and kind.__str__ is object.__str__):
        return str(value.__qualname__ if named else kind.__qualname__)
    return plain_text(repr(value))


def _describe_array(value: Tensor | np.ndarray[Any, Any], dtype: torch.dtype | None) -> str:
    if isinstance(value, np.ndarray) and value.dtype.kind not in "biufc":
        return plain_text(value.tolist())
    tensor = value.detach() if isinstance(value, Tensor) else torch.from_numpy(np.ascontiguousarray(value))
    if tensor.layout != torch.strided:
        return plain_text(tensor)
    if tensor.numel() <= _SHORT:
        return str(tensor.to(dtype or tensor.dtype).tolist())
    kind = str(dtype or tensor.dtype).removeprefix("torch.")
    return f"{kind} {list(tensor.shape)} of SHA-256 {digest(tensor, dtype=dtype)[:16]}"


def _describe_container(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{describe_value(key)}: {describe_value(held)}" for key, held in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(describe_value, value)) + "]"
    return "{" + ", ".join(sorted(map(describe_value, value))) + "}"

"""Digests that tell whether data and networks are the same as before."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# How the text of a function or an object without a text of its own ends.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
# Numbers of a tensor that are copied at once.
_AT_ONCE = 2**24


def digest(*parts: str | Tensor, dtype: torch.dtype | None = None) -> str:
    """The SHA-256 digest, in hexadecimal, of texts and of tensors with their types and shapes.

    With ``dtype`` tensors count as what they are in that type.
    """
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            total.update(f"{dtype or part.dtype} {tuple(part.shape)}".encode())
            for some in torch.split(part.detach().cpu().contiguous().flatten(), _AT_ONCE):
                total.update(some.to(dtype or part.dtype).view(torch.uint8).numpy().data)
        else:
            total.update(part.encode() + b"\0")
    return total.hexdigest()


def describe_module(module: nn.Module) -> list[str | Tensor]:
    """The text of a module and its weights with their names, for `digest`: the same in every process.

    State that is neither tensors nor plain values, such as an object of a user's class, counts by its type alone.
    """
    text = _ADDRESS.sub("", str(module))
    state = ((name, *describe_value(value)) for name, value in module.state_dict().items())
    return [text, *(part for entry in state for part in entry)]


def describe_value(value: Any) -> Iterator[str | Tensor]:
    """Tensors, numbers, text and their containers as parts for `digest`; of any other object its type."""
    if isinstance(value, Tensor):
        yield from _describe_tensor(value)
    elif isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        yield f"{value.dtype.str} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    elif isinstance(value, bytes | bytearray):
        yield f"bytes {hashlib.sha256(value).hexdigest()}"
    elif isinstance(value, np.generic):
        yield f"{value.dtype.str} {value.item()!r}"
    elif value is None or isinstance(value, bool | int | float | complex | str | torch.dtype):
        yield f"{type(value).__name__} {value!r}"
    elif isinstance(value, Mapping):
        yield f"{type(value).__name__} of {len(value)}"
        for key, held in value.items():
            yield from describe_value(key)
            yield from describe_value(held)
    elif isinstance(value, Set):
        # The order of a set differs between processes.
        yield f"{type(value).__name__} of {len(value)}"
        yield from sorted(digest(*describe_value(held)) for held in value)
    elif isinstance(value, Sequence):
        yield f"{type(value).__name__} of {len(value)}"
        for held in value:
            yield from describe_value(held)
    else:
        yield f"an object of {type(value).__module__}.{type(value).__qualname__}"


def _describe_tensor(tensor: Tensor) -> Iterator[str | Tensor]:
    if tensor.is_nested:
        yield f"nested {tensor.layout}"
        for part in tensor.unbind():
            yield from _describe_tensor(part)
    elif tensor.is_quantized:
        yield f"{tensor.dtype} {tensor.qscheme()}"
        if tensor.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
            yield tensor.q_per_channel_scales()
            yield tensor.q_per_channel_zero_points()
        else:
            yield f"{tensor.q_scale()!r} {tensor.q_zero_point()}"
        yield tensor.int_repr()
    elif tensor.layout != torch.strided:
        yield str(tensor.layout)
        yield tensor.detach().to_dense()
    else:
        yield tensor


def excerpts_at_difference(one: str, other: str, width: int = 60) -> tuple[str, str]:
    """Two texts; long ones are cut to the part around the first place where they differ.

    Example:
        >>> excerpts_at_difference("a" * 50 + "b", "a" * 50 + "c", width=10)
        ('...aaaaaaaaab', '...aaaaaaaaac')
    """
    pairs = enumerate(zip(one, other, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    return _cut_excerpt(one, at, width), _cut_excerpt(other, at, width)


def _cut_excerpt(text: str, at: int, width: int) -> str:
    start = max(0, min(at - width // 2, len(text) - width))
    end = start + width
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"

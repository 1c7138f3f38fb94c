"""Digests that tell whether data and networks are the same as before."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


def digest(*parts: str | Tensor) -> str:
    """The SHA-256 digest, in hexadecimal, of texts and of tensors with their types and shapes."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            total.update(f"{part.dtype} {tuple(part.shape)}".encode())
            total.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        else:
            total.update(part.encode() + b"\0")
    return total.hexdigest()


def describe_module(module: nn.Module) -> list[str | Tensor]:
    """The text of a module and its weights with their names, for `digest`."""
    return [str(module), *(part for pair in module.state_dict().items() for part in pair)]


def excerpts_at_difference(one: str, other: str, width: int = 60) -> tuple[str, str]:
    """Two texts, or of long ones what stands around the first place where they differ.

    Example:
        >>> excerpts_at_difference("a" * 50 + "b", "a" * 50 + "c", width=10)
        ('...aaaaaaaaab', '...aaaaaaaaac')
    """
    pairs = enumerate(zip(one, other, strict=False))
    at = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    return _excerpt(one, at, width), _excerpt(other, at, width)


def _excerpt(text: str, at: int, width: int) -> str:
    start = max(0, min(at - width // 2, len(text) - width))
    end = start + width
    return f"{'...' if start else ''}{text[start:end]}{'...' if end < len(text) else ''}"

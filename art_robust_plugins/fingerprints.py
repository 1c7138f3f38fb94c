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
            total.update(part.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            total.update(part.encode() + b"\0")
    return total.hexdigest()


def describe_module(module: nn.Module) -> list[str | Tensor]:
    """The text of a module and its weights with their names, for `digest`."""
    return [str(module), *(part for pair in module.state_dict().items() for part in pair)]

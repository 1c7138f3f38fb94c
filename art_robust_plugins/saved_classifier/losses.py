"""A loss of ``torch.nn`` as its class and arguments."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .record import is_loss


def _arguments_of(loss: nn.Module) -> dict[str, Any]:
    """A torch loss's constructor arguments, read from its attributes of the same names."""
    arguments: dict[str, Any] = {}
    for name in inspect.signature(type(loss).__init__).parameters:
        value = getattr(loss, name, None)
        if name != "self" and value is not None:
            arguments[name] = {"tensor": value.tolist()} if isinstance(value, Tensor) else value
    return arguments


def describe_loss(loss: nn.Module) -> dict[str, Any]:
    """The class of a loss, with its arguments if it is one of ``torch.nn``."""
    name = type(loss).__name__
    own = type(loss) is not getattr(nn, name, None) or not is_loss(type(loss))
    return {"class": name, "arguments": None if own else _arguments_of(loss)}


def make_loss(described: Mapping[str, Any], given: nn.Module | None, path: Path) -> nn.Module:
    """The caller's loss, or a new one."""
    name, arguments = described["class"], described["arguments"]
    if given is not None:
        if type(given).__name__ != name:
            raise ValueError(f"loss: got {type(given).__name__}, expected {name} as saved in {path}.")
        return given
    if arguments is None:
        raise ValueError(f"loss: got none, expected the {name} of the classifier saved in {path}.")
    made: nn.Module = getattr(nn, name)(**{key: _read_argument(value) for key, value in arguments.items()})
    return made


def _read_argument(value: Any) -> Any:
    return torch.tensor(value["tensor"]) if isinstance(value, dict) else value

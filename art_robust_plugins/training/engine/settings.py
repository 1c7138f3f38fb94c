"""The settings of a run as texts by name: a resumed run must have the same ones as its checkpoint.

`identity` describes the rest: data, network, code.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

import torch
from torch import Tensor

from .plain_texts import plain_text
from .prefetch import Batch
from .run_state import RunState, tensors_of

# Numbers of a tensor that are copied for its checksum.
_AT_ONCE = 2**24
_IGNORED = {"checkpoint_dir", "resume", "seed"}


def describe_settings(state: RunState, data: Mapping[str, int]) -> dict[str, str]:
    """The settings that must be the same for a checkpoint to be continued; nb_epochs may grow.

    Args:
        state: of the run.
        data: sizes of the data and of a schedule.
    """
    method, options, optimizer = state.method, state.options, state.optimizer
    described: dict[str, Any] = {"method": type(method).__name__, **method.parameters}
    described |= {f.name: asdict(options)[f.name] for f in fields(options) if f.name not in _IGNORED}
    if options.seed is not None:
        described["seed"] = options.seed
    described["instruments"] = list(method.instruments)
    described["optimizer"] = f"{type(optimizer).__name__} {optimizer.defaults}"
    described["scheduler"] = type(state.scheduler).__name__
    described["weights"] = {name: tuple(t.shape) for name, t in tensors_of(state.network.state_dict()).items()}
    described["preprocessing"] = state.preprocessing
    return {name: plain_text(value) for name, value in {**described, **data}.items()}


def describe_for_processes(
    settings: Mapping[str, str], state: RunState, nb_epochs: int, whole: Batch | None, validation: Batch | None
) -> dict[str, str]:
    """The settings that must be the same in all processes; weights need not, since the first process's are copied."""
    described = {**settings, "nb_epochs": str(nb_epochs), "resume": str(state.options.resume)}
    for number, group in enumerate(state.optimizer.param_groups):
        shapes = [tuple(weight.shape) for weight in group["params"]]
        described[f"optimizer, group {number}"] = plain_text({**group, "params": shapes})
    if hasattr(state.scheduler, "state_dict"):
        described["scheduler, state"] = plain_text(state.scheduler.state_dict())
    names = ("x", "y", "validation_data[0]", "validation_data[1]")
    for name, tensor in zip(names, (*(whole or (None, None)), *(validation or (None, None))), strict=True):
        described[f"{name}, checksum"] = "none" if tensor is None else str(checksum(tensor))
    return described


def checksum(tensor: Tensor) -> int:
    """CRC-32 of a tensor's numbers; images in uint8 count as the numbers in float32 that they become."""
    total = 0
    for some in torch.split(tensor.cpu().contiguous().flatten(), _AT_ONCE):
        total = zlib.crc32((some.float() if some.dtype == torch.uint8 else some).numpy().data, total)
    return total

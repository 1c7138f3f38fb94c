"""The processes that work together on one task, as ``accelerate launch`` or ``torchrun`` started them."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import PartialState

PATIENCE = timedelta(minutes=10)
"""The default time for which one of several processes waits for the others."""


def find_processes(device: torch.device | None = None) -> PartialState:
    """The processes that work together, as Accelerate finds them; gloo on a CPU.

    Args:
        device: where they compute; by default a GPU where there is one. Each process takes its own device of that type.

    Raises:
        ConnectionError: not all of them came within `PATIENCE`.
    """
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    except torch.distributed.DistError as error:
        raise ConnectionError(
            f"processes: not all {os.environ.get('WORLD_SIZE')} came together within {PATIENCE.seconds // 60} minutes, "
            f"expected as many as WORLD_SIZE says, on machines that reach each other."
        ) from error

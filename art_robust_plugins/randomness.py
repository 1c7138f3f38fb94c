"""The random generators of torch, NumPy and Python: seeding them, and leaving them as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch


def seed_torch(seed: int, device: torch.device) -> None:
    """Seed torch's random numbers on the CPU and on ``device``; `torch.manual_seed` would also seed all other GPUs."""
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def seed_everything(seed: int) -> None:
    """Seed torch's generators on all devices, NumPy's and Python's."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def cuda_devices() -> list[torch.device]:
    """All GPUs, once CUDA is in use; looking at them earlier would start it."""
    started = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.device("cuda", index) for index in range(torch.cuda.device_count())] if started else []


@contextmanager
def restored_random_states(devices: Sequence[torch.device]) -> Iterator[None]:
    """A context that leaves the generators of the CPU, of these GPUs, of NumPy and of Python as they were."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)

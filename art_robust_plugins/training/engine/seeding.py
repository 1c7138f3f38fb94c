"""The random numbers of a run: they depend on its seed and the epoch alone, so that a resumed run draws the same."""

from __future__ import annotations

import random

import numpy as np
import torch

from ...randomness import seed_torch
from ..processes import Processes


def choose_seed(seed: int | None, processes: Processes) -> int:
    """The seed of a run, the same in all processes: the given one, or one from torch's global random state."""
    chosen = torch.randint(2**31, ()) if seed is None else torch.tensor(seed)
    chosen = chosen.to(processes.device)
    processes.copy_from_main([chosen])
    return int(chosen)


def seed_epoch(seed: int, epoch: int, device: torch.device, processes: Processes) -> torch.Generator:
    """Seed torch, NumPy and Python for an epoch, alike in all processes.

    Returns:
        a generator, the same in all processes, for the order of the samples.
    """
    noise = _derive_seed(seed, epoch, 1, 0)
    seed_torch(noise, device)
    np.random.seed(noise)  # ART's generators shuffle with it
    random.seed(noise)
    processes.seed_own_noise(_derive_seed(seed, epoch, 1, 1 + processes.index))
    return torch.Generator().manual_seed(_derive_seed(seed, epoch, 0))


def _derive_seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])

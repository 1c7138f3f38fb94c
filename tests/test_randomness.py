"""Random generators: seeded alike, and left as they were."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from art_robust_plugins.randomness import cuda_devices, restored_random_states, seed_everything, seed_torch

CPU = torch.device("cpu")


def draw() -> tuple[float, float, float]:
    """One number of each generator."""
    return torch.rand(()).item(), float(np.random.random()), random.random()


def test_the_same_seed_draws_the_same_numbers() -> None:
    drawn = []
    with restored_random_states([]):
        for seed in (3, 4, 3, 2**32 + 3):
            seed_everything(seed)
            drawn.append(draw())
    assert drawn[0] == drawn[2]
    assert all(one != other for one, other in zip(drawn[0], drawn[1], strict=True))
    assert drawn[0][1] == drawn[3][1]  # NumPy takes the last 32 bits of a seed


def test_seeding_torch_leaves_the_other_generators() -> None:
    with restored_random_states([]):
        seed_everything(0)
        expected = draw()[1:]
        seed_everything(0)
        seed_torch(7, CPU)
        drawn = draw()
        seed_torch(7, CPU)
        assert torch.rand(()).item() == drawn[0]
    assert drawn[1:] == expected


def test_the_states_are_restored_after_an_error_too() -> None:
    with restored_random_states([]):
        seed_everything(1)
        expected = draw()
        seed_everything(1)
        with pytest.raises(KeyError), restored_random_states(cuda_devices()):  # noqa: PT012
            seed_everything(2)
            draw()
            raise KeyError
        assert draw() == expected

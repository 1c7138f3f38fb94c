"""What several test files share."""

import os

# Results are compared to the last bit, also with those of other processes: all of them take one thread.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

from art_robust_plugins.data import Dataset, load_data

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """The real digits: 1437 training and 360 test images [1, 8, 8] in [0, 1]."""
    return load_data("digits")

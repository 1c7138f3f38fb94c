"""What several test files share."""

import pytest
import torch

from art_robust_plugins.data import Dataset, load_data

torch.set_num_threads(1)  # results are compared to the last bit, also with those of other processes


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """The real digits: 1437 training and 360 test images [1, 8, 8] in [0, 1]."""
    return load_data("digits")

"""What several test files share."""

import os

# Results are compared to the last bit, also with those of other processes: all of them take one thread.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch
from hypothesis import settings

from art_robust_plugins.data import Dataset, load_data

torch.set_num_threads(1)

settings.register_profile("untimed", deadline=None)  # no test depends on how busy the machine is
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """The real digits: 1437 training and 360 test images [1, 8, 8] in [0, 1]."""
    return load_data("digits")


@pytest.fixture(scope="session")
def no_larger_file_than() -> Callable[[int], AbstractContextManager[None]]:
    """A context in which writing more bytes fails with an OSError, as on a full disk."""

    import resource

    @contextmanager
    def limit_files(size: int) -> Iterator[None]:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit_files

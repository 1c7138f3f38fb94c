"""What all tests of the evaluation share: networks on scikit-learn's digits, trained once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import Data, load_digits
from torch import nn

from art_robust_plugins.evaluation.autoattack import standard

from .builders import train_network, wrap
from .reference import train_residual


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for a second thread to pay."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def network() -> nn.Sequential:
    return train_network()


@pytest.fixture
def classifier(network: nn.Sequential) -> PyTorchClassifier:
    return wrap(network)


@pytest.fixture(scope="session")
def data() -> Data:
    x, y = load_digits()
    return x[-40:], y[-40:]


@pytest.fixture
def few(data: Data) -> Data:
    return data[0][:20], data[1][:20]


@pytest.fixture(scope="session")
def residual() -> nn.Module:
    return train_residual()


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stage with a few iterations."""
    for name, steps in (("APGD", {"steps": 10}), ("FAB", {"steps": 6}), ("Square", {"queries": 40})):
        kind = getattr(standard, name)
        monkeypatch.setattr(
            standard, name, lambda *args, kind=kind, steps=steps, **given: kind(*args, **given, **steps)
        )

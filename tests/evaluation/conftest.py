"""Small networks on scikit-learn's digits, trained once for all tests of the evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from art_robust_plugins.evaluation import Attack, Setting

Data = tuple[NDArray[np.float32], NDArray[np.int64]]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are too small for a second thread to pay."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def digits(classes: int = 10) -> Data:
    data = load_digits(n_class=classes)
    return (data.images / 16).astype(np.float32)[:, None], data.target.astype(np.int64)


def trained(classes: int = 10, steps: int = 150) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, classes),
    )
    x, y = (torch.from_numpy(values) for values in digits(classes))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(steps):
        batch = torch.randint(0, len(x) // 2, (64,))
        optimizer.zero_grad()
        functional.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    return network


def wrap(network: nn.Module, classes: int = 10, **arguments: object) -> PyTorchClassifier:
    settings = {"input_shape": (1, 8, 8), "nb_classes": classes, "clip_values": (0.0, 1.0), **arguments}
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), **settings)


@pytest.fixture(scope="session")
def network() -> nn.Sequential:
    return trained()


@pytest.fixture
def classifier(network: nn.Sequential) -> PyTorchClassifier:
    return wrap(network)


@pytest.fixture(scope="session")
def data() -> Data:
    x, y = digits()
    return x[-40:], y[-40:]


def custom(perturb: Callable[[torch.Tensor, torch.Tensor, Setting], torch.Tensor], **fields: object) -> Attack:
    """An attack of one's own."""
    fields = {"name": "custom", "summary": "a test", **fields}
    return Attack(prepare=lambda setting: (lambda x, y: perturb(x, y, setting), {}), **fields)


def strong(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
    """Steps on logit differences from several starts: stronger than the short attack of the diagnostics."""

    def margin(images: torch.Tensor) -> torch.Tensor:
        logits = setting.model(images)
        others = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
        return (others - logits.gather(1, y[:, None])[:, 0]).sum()

    best, threat = x.clone(), setting.threat
    for _ in range(4):
        start = threat.random_start(x, 0.0, 1.0)
        found = threat.ascend(margin, x, start, steps=40, step_size=threat.eps / 8, low=0.0, high=1.0)
        with torch.no_grad():
            wrong = setting.model(found).argmax(dim=1) != y
        best[wrong] = found[wrong]
    return best


def step(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
    """One gradient step, in the ball."""
    inputs = x.clone().requires_grad_()
    functional.cross_entropy(setting.model(inputs), y, reduction="sum").backward()
    return setting.threat.project(x + setting.threat.steepest_ascent(inputs.grad, setting.threat.eps), x, 0.0, 1.0)

"""What the tests of several folders build: scikit-learn's digits, linear networks, and ART's classifiers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from sklearn import datasets
from torch import nn
from torch.optim import SGD, Optimizer

Data = tuple[NDArray[np.float32], NDArray[np.int64]]


def load_digits(classes: int = 10) -> Data:
    """The real digits below ``classes`` in their own order: 1797 images [1, 8, 8] in [0, 1] of all ten, and labels."""
    data = datasets.load_digits(n_class=classes)
    return (data.images / 16).astype(np.float32)[:, None], data.target.astype(np.int64)


def make_linear(features: int = 64, classes: int = 10) -> nn.Sequential:
    """A linear network of images with so many values."""
    return nn.Sequential(nn.Flatten(), nn.Linear(features, classes))


def make_classifier(
    network: nn.Module,
    loss: nn.Module | None = None,
    *,
    optimizer: Optimizer | Callable[[Any], Optimizer] | None = None,
    **settings: Any,
) -> PyTorchClassifier:
    """ART's classifier of a network for digits in [0, 1].

    Args:
        network: what it wraps.
        loss: the cross-entropy by default.
        optimizer: an optimizer, or what makes one of the network's parameters.
        settings: arguments of ``PyTorchClassifier`` that differ.
    """
    settings = {"input_shape": (1, 8, 8), "nb_classes": 10, "clip_values": (0, 1), **settings}
    if optimizer is not None:
        made = optimizer if isinstance(optimizer, Optimizer) else optimizer(network.parameters())
        settings["optimizer"] = made
    return PyTorchClassifier(network, nn.CrossEntropyLoss() if loss is None else loss, **settings)


def make_tiny() -> PyTorchClassifier:
    """A linear classifier of images [1, 4, 4] in [0, 1] with 3 classes, and SGD."""
    optimizer = partial(SGD, lr=0.1)
    return make_classifier(make_linear(16, 3), optimizer=optimizer, input_shape=(1, 4, 4), nb_classes=3)

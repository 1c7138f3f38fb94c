"""What the tests of training share: digits, classifiers, and comparisons to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from art_robust_plugins.training.engine.validator import Validator

_DIGITS, LABELS = load_digits(return_X_y=True)
IMAGES = (_DIGITS / 16).astype(np.float32).reshape(-1, 1, 8, 8)
"""The real digits: 1797 images [1, 8, 8] in [0, 1], with LABELS from 0 to 9."""


def momentum(rate: float) -> Callable[[Any], Optimizer]:
    """SGD with momentum 0.9 for some weights."""
    return lambda weights: SGD(weights, rate, momentum=0.9)


def make_classifier(
    model: nn.Module,
    optimizer: Callable[[Any], Optimizer] | None = None,
    loss: nn.Module | None = None,
    **settings: Any,
) -> PyTorchClassifier:
    """An ART classifier of digits in [0, 1]; ``settings`` are arguments of ``PyTorchClassifier`` that differ."""
    optimizer = momentum(0.05) if optimizer is None else optimizer
    arguments = {"input_shape": (1, 8, 8), "nb_classes": 10, "clip_values": (0, 1), **settings}
    return PyTorchClassifier(model, loss or nn.CrossEntropyLoss(), optimizer=optimizer(model.parameters()), **arguments)


def make_builder(
    network: Callable[[], nn.Module], optimizer: Callable[[Any], Optimizer] | None = None, **defaults: Any
) -> Callable[..., PyTorchClassifier]:
    """A builder of classifiers: of ``network()``, or the model that it is given, with these or other settings."""

    def build(model: nn.Module | None = None, loss: nn.Module | None = None, **settings: Any) -> PyTorchClassifier:
        model = network() if model is None else model
        return make_classifier(model, loss=loss, **{"optimizer": optimizer, **defaults, **settings})

    return build


def weights(estimator: PyTorchClassifier) -> list[Tensor]:
    """Copies of the network's parameters and buffers."""
    return [tensor.detach().clone() for tensor in estimator.model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Whether tensors are equal to the last bit."""
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@contextmanager
def watch_validations(look: Callable[[Validator], None]) -> Iterator[None]:
    """A context in which ``look`` is called before each validation, when the weights are those that are validated."""
    validate = Validator.validate

    def watched(validator: Validator, batch_size: int = 500) -> dict[str, float]:
        look(validator)
        return validate(validator, batch_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validator, "validate", watched)
        yield

"""What the tests of training share: digits, classifiers, and comparisons to the last bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import load_digits, make_classifier
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from art_robust_plugins.training.engine.validator import Validator

IMAGES, LABELS = load_digits()
"""The real digits: 1797 images [1, 8, 8] in [0, 1], with LABELS from 0 to 9."""


def momentum(rate: float) -> Callable[[Any], Optimizer]:
    """SGD with momentum 0.9 for some weights."""
    return lambda weights: SGD(weights, rate, momentum=0.9)


def make_builder(
    network: Callable[[], nn.Module], optimizer: Callable[[Any], Optimizer] | None = None, **defaults: Any
) -> Callable[..., PyTorchClassifier]:
    """A builder of classifiers: of ``network()``, or the model that it is given, with these or other settings."""

    def build(model: nn.Module | None = None, loss: nn.Module | None = None, **settings: Any) -> PyTorchClassifier:
        settings = {**defaults, **settings}
        settings["optimizer"] = settings.get("optimizer") or optimizer or momentum(0.05)
        return make_classifier(network() if model is None else model, loss, **settings)

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

    def watch(validator: Validator, batch_size: int = 500) -> dict[str, float]:
        look(validator)
        return validate(validator, batch_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validator, "validate", watch)
        yield

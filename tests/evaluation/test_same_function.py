"""What is judged is what is attacked: `predict` computes the network behind its preprocessing, and nothing more."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import HuggingFaceClassifierPyTorch, PyTorchClassifier
from art.preprocessing.expectation_over_transformation import EoTBrightnessPyTorch
from builders import Data
from numpy.testing import assert_array_equal
from torch import Tensor, nn
from torch.nn import functional

from .builders import custom, wrap
from .wrapped import SETTINGS, Around, evaluate, read_flags


def subclass(network: nn.Module, change: Callable[[Any, Any, int], Any]) -> PyTorchClassifier:
    class Own(PyTorchClassifier):
        def predict(self, x: Any, batch_size: int = 128, **other: Any) -> Any:
            return change(super().predict, x, batch_size)

    return Own(network, nn.CrossEntropyLoss(), **SETTINGS)


def rolled_off_the_grid(predict: Any, x: Any, size: int) -> Any:
    """The clean images, multiples of 1/16, get their own outputs; all others those of another class."""
    outputs, grid = predict(x, size), (x * 16 == np.round(x * 16)).reshape(len(x), -1).all(axis=1)
    return np.where(grid[:, None], outputs, np.roll(outputs, 1, axis=1))


@pytest.mark.parametrize(
    "change",
    [
        lambda predict, x, size: predict((np.round(x * 255) / 255).astype(np.float32), size),
        lambda predict, x, size: predict(x, size) + predict(x[..., ::-1].copy(), size),
        lambda predict, x, size: predict(x, size) / 2,
        lambda predict, x, size: predict((x + 0.1 * np.random.randn(*x.shape)).astype(np.float32), size),
        rolled_off_the_grid,
    ],
    ids=["quantised", "flipped", "temperature", "noise", "off the grid"],
)
def test_a_predict_that_does_more_is_refused(change: Any, network: nn.Module, few: Data) -> None:
    called: list[Any] = []
    attack = custom(lambda x, y, setting: called.append(x) or x)
    with pytest.raises(ValueError, match=r"^classifier: predict of Own "):
        evaluate(subclass(network, change), few, attacks=attack)
    assert not called


def test_a_predict_that_does_the_same_is_none(network: nn.Module, classifier: PyTorchClassifier, few: Data) -> None:
    same = subclass(network, lambda predict, x, size: predict(x, size))
    assert_array_equal(evaluate(same, few).robust, evaluate(classifier, few).robust)
    noisy = Around(network, lambda self, x: self.network(x) + torch.randn(len(x), 10))
    same = subclass(noisy, lambda predict, x, size: predict(x, size))
    assert "randomised" in read_flags(evaluate(same, few))


def test_a_predict_of_an_instance_is_refused(classifier: PyTorchClassifier, few: Data) -> None:
    predict = classifier.predict
    classifier.predict = lambda x, batch_size=128, **other: predict(1 - x, batch_size)
    with pytest.raises(ValueError, match=r"^classifier: predict of PyTorchClassifier "):
        evaluate(classifier, few)


def test_attacks_follow_the_estimators_own_forward(network: nn.Module, few: Data) -> None:
    """A processor, a hook on ART's wrapper, a Sequential whose forward ART passes over: each as a plain network."""

    def blur(x: Tensor) -> Tensor:
        return functional.avg_pool2d(x, 3, 1, 1)

    class Other(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(1 - x)

    inside = evaluate(wrap(Around(network, lambda self, x: self.network(blur(x)))), few)
    processed = HuggingFaceClassifierPyTorch(copy.deepcopy(network), nn.CrossEntropyLoss(), processor=blur, **SETTINGS)
    hooked = wrap(copy.deepcopy(network))
    hooked._model.register_forward_pre_hook(lambda module, inputs: (blur(inputs[0]),))
    plain = evaluate(wrap(network), few)
    assert inside.robust_accuracy < plain.robust_accuracy
    for classifier, wanted in ((processed, inside), (hooked, inside), (wrap(Other(*network)), plain)):
        report = evaluate(classifier, few)
        assert_array_equal(report.robust, wanted.robust)
        assert_array_equal(report.adversarial, wanted.adversarial)


def test_a_hook_that_arts_predict_passes_over(network: nn.Module, few: Data) -> None:
    """On a Sequential: one that looks on is called, one that changes something is refused."""
    seen: list[int] = []
    watched, changed = copy.deepcopy(network), copy.deepcopy(network)
    watched.register_forward_hook(lambda module, inputs, outputs: seen.append(len(outputs)))
    changed.register_forward_hook(lambda module, inputs, outputs: -outputs)
    assert_array_equal(evaluate(wrap(watched), few).robust, evaluate(wrap(network), few).robust)
    assert seen
    with pytest.raises(ValueError, match=r"^classifier: predict of PyTorchClassifier "):
        evaluate(wrap(changed), few)


def test_preprocessing_that_makes_several_inputs_of_one(network: nn.Module, few: Data) -> None:
    def brighten(samples: int) -> PyTorchClassifier:
        defence = EoTBrightnessPyTorch(nb_samples=samples, delta=0.1, clip_values=(0.0, 1.0))
        return wrap(network, preprocessing_defences=defence)

    with pytest.raises(ValueError, match=r"^classifier: .*EoTBrightnessPyTorch .*6 .*2"):
        evaluate(brighten(3), few)
    assert "randomised" in read_flags(evaluate(brighten(1), few))

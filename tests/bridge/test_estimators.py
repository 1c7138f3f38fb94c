"""Which classifiers compute more in ``predict`` than their network."""

from __future__ import annotations

from typing import Any

import pytest
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_robust_plugins import PyTorchLipschitzCertifier, PyTorchWeightMapClassifier
from art_robust_plugins.bridge import overrides_predict

from .builders import SHAPE, network


class Own(PyTorchClassifier):  # type: ignore[misc]
    def predict(self, *arguments: Any, **options: Any) -> Any:
        return super().predict(*arguments, **options)


class Mixin:
    def _apply_preprocessing(self, *arguments: Any, **options: Any) -> Any:
        return super()._apply_preprocessing(*arguments, **options)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (PyTorchClassifier, False),
        (PyTorchWeightMapClassifier, False),
        (PyTorchLipschitzCertifier, False),
        (Own, True),
        (type("AboveOurs", (Mixin, PyTorchWeightMapClassifier), {}), True),
    ],
)
def test_classes_of_this_package_have_no_predict_of_their_own(kind: type, expected: bool) -> None:
    arguments: dict[str, Any] = {"clip_values": (0, 1), "device_type": "cpu"}
    classifier = kind(network(), nn.CrossEntropyLoss(), SHAPE, 4, **arguments)
    assert overrides_predict(classifier) == expected
    classifier.predict = lambda x, **_: x
    assert overrides_predict(classifier)

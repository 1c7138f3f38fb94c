"""Functions with an estimated gradient: forward the function, backward the estimate."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor import JpegCompression, SpatialSmoothing, ThermometerEncoding
from art.defences.preprocessor.preprocessor import Preprocessor
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from builders import make_classifier
from torch import nn

from art_robust_plugins.bridge import EstimatorModule, StraightThrough, clip_above

SHAPE = (3, 8, 8)


class Steps(Preprocessor):
    """Rounds to eighths in place, and estimates a gradient of its own: three times the identity."""

    def __call__(self, x: Any, y: Any = None) -> tuple[Any, Any]:
        np.round(x * 8, out=x)
        x /= 8
        return x, y

    def estimate_gradient(self, x: Any, grad: Any) -> Any:
        return 3 * grad


class Twice(Steps):
    def __call__(self, x: Any, y: Any = None) -> tuple[Any, Any]:
        return np.concatenate([x, x]), y


class Wrong(Steps):
    def estimate_gradient(self, x: Any, grad: Any) -> Any:
        return grad[:, :1]


def classifier(defence: Any, channels: int = 3, **arguments: Any) -> PyTorchClassifier:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 4))
    settings = {"input_shape": SHAPE, "nb_classes": 4, "device_type": "cpu", **arguments}
    return make_classifier(network, preprocessing_defences=defence, **settings)


@pytest.mark.parametrize(
    ("defence", "channels", "arguments"),
    [
        (JpegCompression((0, 1), channels_first=True, quality=20), 3, {}),
        (SpatialSmoothing(3, channels_first=True), 3, {"preprocessing": (0.4, 0.2)}),
        (ThermometerEncoding((0, 1), num_space=4, channels_first=True), 12, {}),
        (Steps(), 3, {"clip_values": (0, 2)}),
        (None, 3, {"preprocessing": StandardisationMeanStd(0.4, 0.2)}),
    ],
)
def test_the_module_runs_the_defence_itself(defence: Any, channels: int, arguments: Any) -> None:
    estimator = classifier(defence, channels, **arguments)
    module = EstimatorModule(estimator, straight_through=True).eval()
    x = torch.rand(5, *SHAPE)
    kept = x.clone()
    given = module.to_estimator(x).numpy().copy()
    torch.testing.assert_close(module(x).detach().numpy(), estimator.predict(given), rtol=1e-4, atol=1e-5)
    assert torch.equal(x, kept)
    if defence is not None:
        assert module.straight_through == [type(defence).__name__]
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(module(x).square().sum(), x)
    assert bool((gradient != 0).any())


def test_the_gradient_is_the_defences_own_estimate() -> None:
    x, weights = torch.rand(4, 6, requires_grad=True), torch.randn(4, 6)
    (gradient,) = torch.autograd.grad((weights * StraightThrough(Steps())(x)).sum(), x)
    torch.testing.assert_close(gradient, 3 * weights)


def test_a_gradient_passes_where_clipping_limits() -> None:
    x, high = torch.tensor([[0.2, 0.9], [0.7, 0.1]], requires_grad=True), torch.tensor([0.5, 0.6])
    clipped = clip_above(x, high)
    assert torch.equal(clipped.detach(), torch.minimum(x.detach(), high))
    (gradient,) = torch.autograd.grad((clipped * torch.tensor([1.0, 2.0])).sum(), x)
    assert torch.equal(gradient, torch.tensor([[1.0, 2.0], [1.0, 2.0]]))


def test_defences_that_cannot_be_followed() -> None:
    with pytest.raises(ValueError, match=r"^classifier: .*Twice .*4 samples"):
        EstimatorModule(classifier(Twice()), straight_through=True)
    module = EstimatorModule(classifier(Wrong()), straight_through=True)
    x = torch.rand(2, *SHAPE, requires_grad=True)
    with pytest.raises(ValueError, match=r"^classifier: .*Wrong .*\(2, 1, 8, 8\)"):
        module(x).sum().backward()


def test_lists_that_art_itself_does_not_apply() -> None:
    estimator = classifier([Steps(), SpatialSmoothing(3, channels_first=True)])
    with pytest.raises(NotImplementedError):
        estimator.predict(np.zeros((2, *SHAPE), np.float32))
    with pytest.raises(ValueError, match=r"^classifier: .*Steps, SpatialSmoothing"):
        EstimatorModule(estimator, straight_through=True)

    # One that does not act in predict takes a place in ART's list all the same.
    class Idle(Steps):
        def __init__(self) -> None:
            super().__init__(apply_predict=False)

    assert EstimatorModule(classifier(Idle()), straight_through=True).straight_through == []


def test_without_being_asked_for_they_are_refused() -> None:
    for arguments in ({}, {"fit": True, "unit_range": False}):
        with pytest.raises(ValueError, match=r"^classifier: the preprocessing Steps "):
            EstimatorModule(classifier(Steps()), **arguments)

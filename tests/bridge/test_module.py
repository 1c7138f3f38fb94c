"""An estimator as a module, and the classifiers that are refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from art.defences.postprocessor import Rounded
from art.defences.preprocessor import FeatureSqueezing, JpegCompression
from art.estimators.classification import PyTorchClassifier
from builders import make_linear
from torch import nn

from art_robust_plugins.bridge import (
    EstimatorModule,
    augmentations,
    clip_range,
    device_of,
    input_range,
    outputs_are_probabilities,
    preprocessing_operations,
)

from .builders import PER_CHANNEL, SET_UPS, SHAPE, Blur, N, Pad, classifier, network


@pytest.mark.parametrize("set_up", SET_UPS)
def test_the_module_is_the_classifiers_prediction(set_up):
    estimator = classifier(**SET_UPS[set_up])
    module = EstimatorModule(estimator).eval()
    x = torch.rand(N, *SHAPE)
    low, high = estimator.clip_values
    expected = estimator.predict((x * (high - low) + low).numpy().astype(np.float32))
    torch.testing.assert_close(module(x).detach(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    direct = EstimatorModule(estimator, unit_range=False).eval()
    torch.testing.assert_close(direct(module.to_estimator(x)), module(x))
    torch.testing.assert_close(module.from_estimator(module.to_estimator(x)), x)


@pytest.mark.parametrize("preprocessing", [(0.0, 1.0), PER_CHANNEL])
def test_channels_last_are_turned(preprocessing):
    shape = (6, 5, 3)
    estimator = classifier(network(channels_last=True), shape=shape, channels_first=False, preprocessing=preprocessing)
    module = EstimatorModule(estimator).eval()
    x = torch.rand(N, *SHAPE)
    expected = estimator.predict(x.movedim(1, -1).contiguous().numpy())
    torch.testing.assert_close(module(x).detach(), torch.from_numpy(expected), rtol=1e-4, atol=1e-5)
    assert module.to_estimator(x).shape == (N, *shape)
    assert torch.equal(module.from_estimator(module.to_estimator(x)), x)


def test_a_defence_that_changes_the_size():
    estimator = classifier(network((3, 6, 6)), preprocessing_defences=Pad(device_type="cpu"))
    x = torch.rand(N, *SHAPE)
    torch.testing.assert_close(EstimatorModule(estimator).eval()(x).detach().numpy(), estimator.predict(x.numpy()))


def test_flat_inputs():
    model = nn.Sequential(nn.Linear(6, 3))
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), (6,), 3, clip_values=(0, 2), channels_first=False)
    x = torch.rand(N, 6)
    torch.testing.assert_close(EstimatorModule(estimator)(x), model(2 * x))


def test_preprocessing_of_fit():
    both, predict, fit = Blur(), Blur(apply_fit=False), Blur(apply_predict=False)
    estimator = classifier(preprocessing_defences=[fit, both, predict])
    assert len(preprocessing_operations(estimator, fit=False)) == 2
    assert len(preprocessing_operations(estimator, fit=True)) == 1
    assert augmentations(estimator) == [fit]
    x = torch.rand(N, *SHAPE)
    module = EstimatorModule(estimator, fit=True).eval()
    torch.testing.assert_close(module(x), estimator.model(both.forward(x)[0]))


@pytest.mark.parametrize("set_up", ["plain", "0 to 255", "mean per channel", "defence"])
def test_the_gradient_is_that_of_finite_differences(set_up):
    module = EstimatorModule(classifier(**SET_UPS[set_up])).eval().double()
    x = torch.rand(2, *SHAPE, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad((weights * module(x)).sum(), x)
    assert gradient.abs().max() > 0
    step = 1e-5
    with torch.no_grad():
        for place in [(0, 0, 0, 0), (0, 2, 3, 4), (1, 1, 5, 2), (1, 0, 2, 2)]:
            shift = torch.zeros_like(x)
            shift[place] = step
            slope = (weights * (module(x + shift) - module(x - shift))).sum() / (2 * step)
            torch.testing.assert_close(slope, gradient[place], rtol=1e-6, atol=1e-8)


def test_making_a_module_leaves_network_and_randomness_alone():
    estimator = classifier()
    estimator.model.train()
    estimator.model[4].eval()
    before, random = copy.deepcopy(estimator.model.state_dict()), torch.get_rng_state()
    EstimatorModule(estimator)
    assert torch.equal(torch.get_rng_state(), random)
    assert [layer.training for layer in estimator.model] == [True] * 4 + [False] + [True] * 2
    for name, value in estimator.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_the_module_trains_the_classifiers_own_network():
    estimator = classifier()
    module = EstimatorModule(estimator)
    assert module.network is estimator.model
    assert {id(parameter) for parameter in module.parameters()} == {id(p) for p in estimator.model.parameters()}


def test_the_device_is_the_networks():
    assert device_of(nn.Linear(2, 2, device="meta")).type == "meta"
    assert device_of(nn.BatchNorm2d(2, affine=False, device="meta")).type == "meta"
    assert device_of(nn.ReLU()).type == "cpu"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_network_that_was_moved_takes_its_preprocessing_along():
    estimator = classifier(preprocessing=PER_CHANNEL)
    x = torch.rand(N, *SHAPE)
    expected = EstimatorModule(estimator).eval()(x)
    estimator.model.cuda()
    module = EstimatorModule(estimator).eval()
    assert module.device.type == "cuda"
    torch.testing.assert_close(module(x.cuda()).cpu(), expected, rtol=1e-4, atol=1e-4)


def softmax_classifier():
    return classifier(nn.Sequential(*network(), nn.Softmax(dim=1)))


@pytest.mark.parametrize(
    ("make", "error", "sentence"),
    [
        (network, TypeError, "classifier: got Sequential,"),
        (
            lambda: classifier(postprocessing_defences=[Rounded(2)]),
            ValueError,
            "classifier: postprocessing_defences (Rounded) ",
        ),
        (
            lambda: classifier(preprocessing_defences=FeatureSqueezing((0, 1))),
            ValueError,
            "classifier: the preprocessing FeatureSqueezing ",
        ),
        (
            lambda: classifier(preprocessing_defences=[Blur(), JpegCompression((0, 1), channels_first=True)]),
            ValueError,
            "classifier: the preprocessing JpegCompression ",
        ),
        (softmax_classifier, ValueError, "classifier: the network's outputs are softmax probabilities,"),
        (
            lambda: classifier(network(nb_classes=3)),
            ValueError,
            "classifier: the network's output for 2 inputs is (2, 3),",
        ),
        (
            lambda: classifier(make_linear(90, 1), nb_classes=2),
            ValueError,
            "classifier: the network's output for 2 inputs is (2, 1),",
        ),
        (lambda: classifier(clip_values=None), ValueError, "classifier: clip_values are None,"),
    ],
)
def test_classifiers_that_are_refused(make, error, sentence):
    with pytest.raises(error) as refusal:
        EstimatorModule(make())
    assert str(refusal.value).startswith(sentence)


def test_probabilities_can_be_asked_for():
    module = EstimatorModule(softmax_classifier(), probabilities=True).eval()
    assert outputs_are_probabilities(module(torch.rand(N, *SHAPE)))


@pytest.mark.parametrize(
    ("outputs", "verdict"),
    [
        (torch.randn(5, 3).softmax(1), True),
        (torch.eye(3), True),
        (torch.randn(5, 3), False),
        (torch.randn(5, 3).log_softmax(1), False),
        (torch.tensor([[0.5, 0.5], [0.5, 0.6]]), False),
        (torch.tensor([[1.5, -0.5]]), False),
        (torch.ones(4, 1), False),
    ],
)
def test_what_counts_as_probabilities(outputs, verdict):
    assert outputs_are_probabilities(outputs) is verdict


def test_ranges():
    assert clip_range(classifier(clip_values=None)) == (None, None)
    assert clip_range(classifier(clip_values=(0, 255))) == (0.0, 255.0)
    same = classifier(clip_values=(np.zeros(SHAPE), np.ones(SHAPE)))
    assert clip_range(same) == (0.0, 1.0)
    assert input_range(same).uniform
    low, high = clip_range(classifier(clip_values=(np.zeros(SHAPE), np.linspace(0.5, 1, 90).reshape(SHAPE))))
    assert low.shape == high.shape == SHAPE
    assert high[0, 0, 0] == 0.5

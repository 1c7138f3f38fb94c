import copy
import json
import logging
import math
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from art.defences.postprocessor import ReverseSigmoid
from art.defences.preprocessor import FeatureSqueezing, GaussianAugmentation
from art.defences.preprocessor.cutout.cutout_pytorch import CutoutPyTorch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

import art_robust_plugins
from art_robust_plugins import Evaluator, PyTorchLipschitzCertifier, StandardTrainer, ThreatModel
from art_robust_plugins.bridge import standardisation
from art_robust_plugins.lipschitz import LipschitzGraph, NoLipschitzRuleError, certifier

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

IMAGE = (3, 6, 6)
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def settings(network, shape=IMAGE, classes=4, **given):
    optimizer = torch.optim.SGD(network.parameters(), 0.1) if list(network.parameters()) else None
    defaults = {"clip_values": (0, 1), "optimizer": optimizer, "device_type": "cpu"}
    return {"model": network, "loss": nn.CrossEntropyLoss(), "input_shape": shape, "nb_classes": classes} | {
        **defaults,
        **given,
    }


def plain(network, *arguments, **given):
    return PyTorchClassifier(**settings(network, *arguments, **given))


def certified(network, *arguments, **given):
    return PyTorchLipschitzCertifier.from_classifier(plain(network, *arguments, **given))


def conv(seed=0):
    torch.manual_seed(seed)
    layers = [nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, stride=2), nn.ReLU()]
    network = nn.Sequential(*layers, nn.Flatten(), nn.Dropout(), nn.Linear(32, 4))
    nn.init.uniform_(network[1].running_var, 0.5, 2.0)
    nn.init.normal_(network[1].running_mean)
    return network.eval()


def linear(weight, bias=None):
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    layer.weight.data = torch.as_tensor(weight, dtype=torch.float32)
    if bias is not None:
        layer.bias.data = torch.as_tensor(bias, dtype=torch.float32)
    return layer


class Function(nn.Module):
    """A network given by a function of the input and of its modules."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


def uniform(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


X = uniform(40, *IMAGE)


def margins_over(logits, constants):
    """min over j != t of (f_t - f_j) / K_tj."""
    t = logits.argmax(axis=1)
    rows = np.arange(len(t))
    ratios = (logits[rows, t][:, None] - logits) / np.where(constants[t] == 0, np.nan, constants[t])
    ratios[rows, t] = np.inf
    return t, ratios.min(axis=1)


def pairs(weight):
    return np.linalg.norm(weight[:, None] - weight[None], axis=2)


# The formula


def test_a_linear_network_by_hand():
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(5, 12)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    x = uniform(50, 12)
    subject = certified(linear(weight, bias), (12,), 5)
    wide = weight.astype(np.float64)
    expected, radius = margins_over(x.astype(np.float64) @ wide.T + bias, pairs(wide))
    found, certificate = subject.certify(x)
    assert found.dtype == np.int64
    assert certificate.dtype == np.float64
    assert_array_equal(found, expected)
    assert_allclose(certificate, radius, rtol=1e-7, atol=1e-9)
    assert (certificate <= radius).all()
    assert_allclose(subject.lipschitz_constants(), pairs(wide), rtol=1e-7)


def test_two_layers_by_hand():
    rng = np.random.default_rng(2)
    first, last = rng.normal(size=(9, 12)).astype(np.float32), rng.normal(size=(4, 9)).astype(np.float32)
    shift = rng.normal(size=9).astype(np.float32)
    x = uniform(50, 12)
    subject = certified(nn.Sequential(linear(first, shift), nn.ReLU(), linear(last)), (12,), 4)
    first, last = first.astype(np.float64), last.astype(np.float64)
    logits = np.maximum(x.astype(np.float64) @ first.T + shift, 0) @ last.T
    constants = np.linalg.norm(first, 2) * pairs(last)
    expected, radius = margins_over(logits, constants)
    found, certificate = subject.certify(x)
    assert_array_equal(found, expected)
    assert_allclose(certificate, radius, rtol=1e-7, atol=1e-9)
    assert (certificate <= radius).all()
    # Where the last layer is not linear: sqrt(2) L.
    subject = certified(nn.Sequential(linear(first), nn.Sigmoid()), (12,), 9)
    logits = 1 / (1 + np.exp(-x.astype(np.float64) @ first.T))
    whole = np.full((9, 9), math.sqrt(2) / 4 * np.linalg.norm(first, 2))
    expected, radius = margins_over(logits, whole)
    found, certificate = subject.certify(x)
    assert_array_equal(found, expected)
    assert_allclose(certificate, radius, rtol=1e-7, atol=1e-9)


def test_the_radius_of_an_affine_network_of_two_classes_is_the_distance():
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(2, 12)).astype(np.float32), np.float32([0.3, -0.2])
    x = uniform(30, 12).astype(np.float64)
    subject = certified(linear(weight, bias), (12,), 2, clip_values=None)
    direction, offset = (weight[1] - weight[0]).astype(np.float64), float(bias[1] - bias[0])
    distance = np.abs(x @ direction + offset) / np.linalg.norm(direction)
    found, certificate = subject.certify(x)
    assert_allclose(certificate, distance, rtol=1e-6)
    towards = np.where(found == 0, 1, -1)[:, None] * direction / np.linalg.norm(direction)
    for factor, changes in ((0.999, False), (1.001, True)):
        moved = subject.certify(x + factor * certificate[:, None] * towards)[0]
        assert_array_equal(moved != found, changes)


# Units


def normalising(network, mean=MEAN, std=STD):
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))

    class Normalising(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network
            self.register_buffer("mean", mean)
            self.std = std  # a plain tensor, of float32

        def forward(self, x):
            return self.inner((x - self.mean) / self.std)

    return Normalising().eval()


def test_a_normalisation_counts_wherever_it_stands():
    network = conv()
    inside, per_channel = normalising(network), np.float32([MEAN, STD])
    expected = certified(inside).certify(X)
    assert (expected[1] > 0).all()
    forms = {
        "preprocessing": certified(network, preprocessing=tuple(per_channel)),
        "by pixel": certified(
            network, preprocessing=tuple(np.broadcast_to(v[:, None, None], IMAGE).copy() for v in per_channel)
        ),
        "as a batch": certified(network, preprocessing=tuple(v.reshape(1, 3, 1, 1) for v in per_channel)),
        "as a defence": certified(
            network,
            preprocessing_defences=StandardisationMeanStdPyTorch(*per_channel, device_type="cpu"),
            preprocessing=None,
        ),
        "mirrored": certified(
            nn.Sequential(Function(lambda x: -x), network), preprocessing=(per_channel[0], -per_channel[1])
        ),
    }
    for name, subject in forms.items():
        found, certificate = subject.certify(X)
        assert_array_equal(found, expected[0], name)
        assert_allclose(certificate, expected[1], rtol=1e-5, err_msg=name)
    # One after the other: the defence comes first.
    both = certified(
        normalising(network, (0.2, 0.2, 0.2), (2.0, 1.0, 0.5)),
        preprocessing_defences=StandardisationMeanStdPyTorch(*per_channel, device_type="cpu"),
        preprocessing=(0.5, 2.0),
    )
    shift = [m + s * (0.5 + 2 * 0.2) for m, s in zip(MEAN, STD, strict=True)]
    scale = [s * 2 * t for s, t in zip(STD, (2.0, 1.0, 0.5), strict=True)]
    found, certificate = certified(normalising(network, shift, scale)).certify(X)
    assert_array_equal(both.certify(X)[0], found)
    assert_allclose(both.certify(X)[1], certificate, rtol=1e-4)


def test_radii_are_in_the_units_of_the_input():
    network = conv()
    found, certificate = certified(network).certify(X)
    scalar = certified(nn.Sequential(Function(lambda x: 0.3 + 0.5 * x), network), preprocessing=(0.3, 0.5))
    assert_array_equal(scalar.certify(X)[0], found)
    assert_allclose(scalar.certify(X)[1], certificate, rtol=1e-5)
    bytes_ = certified(network, clip_values=(0, 255), preprocessing=(0, 255))
    assert_array_equal(bytes_.certify(X * 255)[0], found)
    assert_allclose(bytes_.certify(X * 255)[1], certificate * 255, rtol=1e-4)
    assert_allclose(bytes_.lipschitz_constants() * 255, certified(network).lipschitz_constants(), rtol=1e-6)
    raw = certified(nn.Sequential(Function(lambda x: x / 255), network), clip_values=(0, 255))
    assert_allclose(raw.certify(X * 255)[1], certificate * 255, rtol=1e-4)


def test_channels_last():
    network = conv()
    turned = nn.Sequential(Function(lambda x: x.permute(0, 3, 1, 2)), network)
    last = certified(turned, (6, 6, 3), channels_first=False, preprocessing=(np.float32(MEAN), np.float32(STD)))
    first = certified(network, preprocessing=(np.float32(MEAN), np.float32(STD)))
    found, certificate = last.certify(np.moveaxis(X, 1, -1))
    assert_array_equal(found, first.certify(X)[0])
    assert_allclose(certificate, first.certify(X)[1], rtol=0.3)  # the bound of an image that is turned may be looser
    assert (certificate <= first.certify(X)[1] * (1 + 1e-6)).all()


def test_other_norms():
    subject = certified(conv())
    found, certificate = subject.certify(X)
    for norm, factor in (("L1", 1.0), ("Linf", 1 / math.sqrt(108)), ("L2", 1.0)):
        assert_array_equal(subject.certify(X, norm=norm)[0], found)
        assert_allclose(subject.certify(X, norm=norm)[1], certificate * factor, rtol=1e-12)
    threat = ThreatModel("Linf", float(certificate[0] / math.sqrt(108)))
    assert subject.certified_accuracy(X[:1], found[:1], threat.eps * (1 - 1e-9), norm="Linf") == 1
    assert subject.certified_accuracy(X[:1], found[:1], threat.eps * 1.001, norm="Linf") == 0


def test_certified_accuracy():
    subject = certified(conv())
    found, certificate = subject.certify(X)
    y = np.where(np.arange(40) % 4 == 0, (found + 1) % 4, found)
    for eps in (0, float(np.median(certificate)), float(certificate.max()) * 1.01):
        expected = ((found == y) & (certificate >= eps)).mean()
        assert subject.certified_accuracy(X, y, eps) == expected
    assert subject.certified_accuracy(X, y, 0) == 0.75
    assert subject.certified_accuracy(torch.from_numpy(X), np.eye(4)[y], "36/255") == subject.certified_accuracy(
        X, y, 36 / 255
    )
    assert isinstance(subject.certified_accuracy(X, y, "0"), float)


# Soundness, by attack


def trained(digits, network):
    x, y = torch.from_numpy(digits.x_train), torch.from_numpy(digits.y_train)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-2)
    for _ in range(8):
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            functional.cross_entropy(network(x[batch]), y[batch]).backward()
            optimizer.step()
    return network.eval()


@pytest.fixture(scope="module")
def digit_network(digits):
    torch.manual_seed(0)
    return trained(
        digits, nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    )


def broken(logits, x, labels, radii, steps=40, restarts=3):
    """Which predictions projected-gradient ascent changes: on the margin to each other class, in each sample's ball.

    ``logits`` is a function of the estimator's input, in float64; the ball is not clipped, as the certificate is not.
    """
    n, classes = len(x), 10
    others = torch.tensor([[j for j in range(classes) if j != label] for label in labels.tolist()])
    x, labels = x.double().repeat_interleave(classes - 1, 0), labels.repeat_interleave(classes - 1)
    radius = torch.as_tensor(radii).repeat_interleave(classes - 1).view(-1, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    found = torch.zeros(n, dtype=torch.bool)

    def unit(delta):
        return delta / torch.linalg.vector_norm(delta.flatten(1), dim=1).clamp_min(1e-300).view(-1, 1, 1, 1)

    for restart in range(restarts):
        start = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        delta = unit(start) * radius * (0.01 + 0.99 * restart / max(restarts - 1, 1))
        for step in range(steps):
            delta.requires_grad_()
            outputs = logits(x + delta)
            chosen = others.flatten()[:, None]
            margin = outputs.gather(1, chosen) - outputs.gather(1, labels[:, None])
            (gradient,) = torch.autograd.grad(margin.sum(), delta)
            delta = delta.detach() + (0.5 if step < steps // 2 else 0.1) * radius * unit(gradient)
            length = torch.linalg.vector_norm(delta.flatten(1), dim=1).view(-1, 1, 1, 1)
            delta = delta * (radius / length).clamp_max(1)
            found |= (logits(x + delta).argmax(dim=1) != labels).view(n, -1).any(dim=1)
    return found.numpy()


def forms(network):
    """The same network on digits in several units, each with the factor that its inputs are multiplied by."""
    undone = nn.Sequential(Function(lambda x: x * 0.25 + 0.3), network)
    return {
        "plain": (settings(network, (1, 8, 8), 10), 1),
        "preprocessing": (settings(undone, (1, 8, 8), 10, preprocessing=(0.3, 0.25)), 1),
        "in the network": (settings(normalising(undone, (0.3,), (0.25,)), (1, 8, 8), 10), 1),
        "bytes": (settings(network, (1, 8, 8), 10, clip_values=(0, 255), preprocessing=(0, 255)), 255),
    }


def in_float64(subject):
    """The estimator's logits as a function of its input, written anew."""
    network = copy.deepcopy(subject.model).double().eval()
    mean, std = float(subject.preprocessing.mean), float(subject.preprocessing.std)
    return lambda x: network((x - mean) / std)


@pytest.mark.parametrize("form", ["plain", "preprocessing", "in the network", "bytes"])
def test_no_attack_breaks_a_certificate(digits, digit_network, form):
    arguments, scale = forms(digit_network)[form]
    subject = PyTorchLipschitzCertifier(**arguments)
    x = digits.x_test[:80] * np.float32(scale)
    found, certificate = subject.certify(x)
    assert (found == digits.y_test[:80]).mean() > 0.9
    assert (certificate > 0.02 * scale).mean() > 0.9
    logits, images, labels = in_float64(subject), torch.from_numpy(x), torch.from_numpy(found)
    assert not broken(logits, images, labels, 0.999 * certificate).any()
    # The same attack finds out a bound that is three times too small, on nearly every image.
    assert broken(logits, images, labels, 3 * certificate).mean() > 0.8


@pytest.mark.parametrize("form", ["plain", "bytes"])
def test_autoattack_breaks_no_certificate(digits, digit_network, form):
    pytest.importorskip("pyautoattack")
    arguments, scale = forms(digit_network)[form]
    subject = PyTorchLipschitzCertifier(**arguments)
    x = digits.x_test[:60] * np.float32(scale)
    found, certificate = subject.certify(x)
    for group in np.argsort(certificate).reshape(4, 15)[1::2]:
        threat = ThreatModel("L2", 0.999 * certificate[group].min())
        attacks = ["apgd-ce", "apgd-t", "fab-t"] if form == "plain" else ["apgd-t"]
        report = Evaluator(subject, threat, attacks=attacks, verbose=False).evaluate(x[group], found[group])
        assert report.robust_accuracy == report.clean_accuracy == 1
    wide = ThreatModel("L2", 3 * certificate[group].min())
    report = Evaluator(subject, wide, attacks=["apgd-t"], verbose=False).evaluate(x[group], found[group])
    assert report.robust_accuracy < 1


def test_constants_are_at_least_the_slopes():
    network = conv()
    constants = certified(network, preprocessing=(0.0, 0.5)).lipschitz_constants()
    assert constants.dtype == np.float64
    assert_array_equal(constants, constants.T)
    assert_array_equal(constants.diagonal(), 0)
    twin = conv().double()
    largest = np.zeros((4, 4))
    for x in torch.from_numpy(X).double():
        jacobian = torch.autograd.functional.jacobian(lambda z: twin(z[None] / 0.5)[0], x).flatten(1).numpy()
        largest = np.maximum(largest, pairs(jacobian))
    assert (largest <= constants).all()
    assert (constants <= 20 * largest).all()


# Limits


def test_ties_have_radius_zero():
    tied = certified(linear(np.float32([[1, 2], [1, 2], [-1, 0]]), np.float32([0.5, 0.5, 0])), (2,), 3)
    found, certificate = tied.certify(np.float32([[0.5, 0.5], [1, 0]]))
    assert_array_equal(found, 0)
    assert_array_equal(certificate, 0)
    assert tied.certified_accuracy(np.float32([[0.5, 0.5]]), [0], 0) == 1
    # Equal but for rounding: not a margin that anything follows from.
    nearly = certified(linear(np.zeros((2, 2)), np.float64([1, 1 - 1e-12])).double(), (2,), 2)
    nearly.model.bias.data = torch.tensor([1, 1 - 1e-12], dtype=torch.float64)
    assert_array_equal(nearly.certify(np.zeros((1, 2)))[1], 0)


@pytest.mark.parametrize(
    ("last", "bias", "expected"),
    [
        (np.zeros((3, 2)), [0, 1, 2], math.inf),
        (np.zeros((3, 2)), [0, 1, 1], 0),
        (np.zeros((3, 2)), [0, 0, 0], 0),
        ([[0, 0], [0, 0], [0.3, 0.4]], [2, 1, 0], (2 - 0.32) / 0.5),
        ([[0, 0], [0, 0], [0.3, 0.4]], [2, 2, 0], 0),
    ],
)
def test_differences_that_do_not_depend_on_the_input(last, bias, expected):
    subject = certified(nn.Sequential(linear(np.eye(2)), nn.ReLU(), linear(last, bias)), (2,), 3)
    _, certificate = subject.certify(np.float32([[0.8, 0.2]]))
    assert_allclose(certificate, [expected], rtol=1e-6)
    subject = certified(nn.Sequential(linear(np.zeros((2, 2))), nn.ReLU(), linear(last, bias)), (2,), 3)
    _, certificate = subject.certify(np.float32([[0.8, 0.2]]))
    assert_allclose(certificate, [math.inf if bias[0] != bias[1] and bias[1] != bias[2] else 0])
    assert not np.isnan(subject.lipschitz_constants()).any()


def test_a_network_that_ignores_its_input():
    network = Function(lambda x, last: last.bias.expand(len(x), -1), linear(np.zeros((3, 2)), [1, 3, 2]))
    found, certificate = certified(network, (2,), 3).certify(np.zeros((4, 2)))
    assert_array_equal(found, 1)
    assert_array_equal(certificate, math.inf)
    assert certified(network, (2,), 3).lipschitz_report().rows == []


def test_the_batch_size_does_not_matter():
    subject = certified(conv())
    found, certificate = subject.certify(X)
    for size in (1, 7, np.int64(40), 1000):
        assert_array_equal(subject.certify(X, size)[0], found)
        assert_allclose(subject.certify(X, size)[1], certificate, rtol=1e-9)
    for form in (torch.from_numpy(X), X.astype(np.float64), X[::-1][::-1], X.tolist()):
        assert_array_equal(subject.certify(form)[1], certificate)


# What is kept, and until when


class Counting(LipschitzGraph):
    traces = bounds = 0

    def __init__(self, *arguments, **options):
        type(self).traces += 1
        super().__init__(*arguments, **options)

    def upper_bound(self):
        type(self).bounds += 1
        return super().upper_bound()


@pytest.fixture
def counting(monkeypatch):
    Counting.traces = Counting.bounds = 0
    monkeypatch.setattr(certifier, "LipschitzGraph", Counting)

    def taken():
        result = Counting.traces, Counting.bounds
        Counting.traces = Counting.bounds = 0
        return result

    return taken


def agrees(subject, counting):
    """What the last certificate cost, when it is that of a new certifier."""
    found, certificate = subject.certify(X)
    cost = counting()
    expected = PyTorchLipschitzCertifier.from_classifier(subject).certify(X)
    assert_array_equal(found, expected[0])
    assert_allclose(certificate, expected[1], rtol=1e-12)
    counting()
    return cost


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.scale, self._deviation = conv(), 2.0, torch.tensor([1.0, 2.0, 3.0]).view(3, 1, 1)
        self.register_buffer("shift", torch.zeros(3, 1, 1), persistent=False)
        factors = {"array": np.ones(3, np.float32), "tensors": [torch.ones(2000)]}
        self.settings = SimpleNamespace(scale=1.0, factors=factors)

    def forward(self, x):
        factors = self.settings.factors
        x = x * torch.from_numpy(factors["array"]).view(3, 1, 1) * factors["tensors"][0][-1] * self.settings.scale
        return self.inner(self.scale * (x - self.shift) / self._deviation)


def test_a_second_certificate_costs_a_forward_pass(counting):
    subject = certified(conv())
    assert counting() == (1, 0)
    first = subject.certify(X)
    assert counting() == (0, 1)
    second = subject.certify(X)
    subject.certified_accuracy(X, first[0], 0.1)
    subject.lipschitz_constants()
    subject.lipschitz_report()
    subject.predict(X)
    subject.model.train()
    subject.certify(X)
    assert counting() == (0, 0)
    assert_array_equal(first[1], second[1])


def step(subject):
    subject.model.train()
    functional.cross_entropy(subject.model(torch.from_numpy(X)), torch.arange(40) % 4).backward()
    subject.optimizer.step()


def statistics(subject):
    subject.model.inner[1].running_var.mul_(0.5)


def loaded(subject):
    subject.model.inner.load_state_dict(conv(seed=1).state_dict())


def in_place(subject):
    subject.model.inner[0].weight.data[0, 0, 0, 0] += 1e-3


def assigned(subject):
    subject.model.inner[7].weight.data = subject.model.inner[7].weight.data * 1.5


def another_parameter(subject):
    subject.model.inner[7].bias = nn.Parameter(torch.tensor([1.0, 0, 0, 0]))


def shifted(subject):
    subject.model.shift += 0.25


def activation(subject):
    subject.model.inner[2] = nn.LeakyReLU(1.5)


def slope(subject):
    subject.model.inner[2].forward = lambda x: functional.leaky_relu(x, 1.5)


def number(subject):
    subject.model.scale = 3.0


def tensor(subject):
    subject.model._deviation[0] = 0.5


def number_in_an_object(subject):
    subject.model.settings.scale = 2.0


def array(subject):
    subject.model.settings.factors["array"][0] = 2.0


def long_list(subject):
    subject.model.settings.factors["tensors"][0][-1] = 2.0


def hook(subject):
    subject.model.inner[4].register_forward_hook(lambda module, inputs, output: output * 3)


def width(subject):
    del subject.model.inner[3:5]
    subject.model.inner[-1] = nn.Linear(216, 4)


def preprocessing(subject):
    subject.set_params(preprocessing=StandardisationMeanStdPyTorch(0.3, 0.5, device_type="cpu"))


def another_network(subject):
    subject._model = subject._make_model_wrapper(Scaled())
    subject.model.inner.load_state_dict(conv(seed=2).state_dict())


@pytest.mark.parametrize(
    ("change", "cost"),
    [(f, (0, 1)) for f in (step, statistics, loaded, in_place, assigned, another_parameter, shifted)]
    + [
        (f, (1, 1))
        for f in (
            activation,
            slope,
            number,
            tensor,
            number_in_an_object,
            array,
            long_list,
            hook,
            width,
            preprocessing,
            another_network,
        )
    ],
)
def test_what_changes_the_network_changes_the_certificate(change, cost, counting):
    subject = certified(Scaled())
    before = subject.certify(X)[1]
    counting()
    change(subject)
    assert agrees(subject, counting) == cost
    assert not np.array_equal(subject.certify(X)[1], before)
    assert counting() == (0, 0)


def test_attributes_that_hold_much_or_themselves_are_compared_quickly(counting):
    network = Scaled()
    nested = SimpleNamespace()
    for _ in range(60):
        nested = SimpleNamespace(one=nested, other=nested)
    network.nested, network.logger = nested, logging.getLogger("a network's own")
    network.settings.itself = network.settings
    subject = certified(network)
    subject.certify(X)
    counting()
    subject.certify(X)
    assert counting() == (0, 0)
    network.settings.scale = 2.0
    subject.certify(X)
    assert counting() == (1, 1)


def test_the_same_weights_loaded_again_change_nothing(counting):
    subject = certified(conv())
    subject.certify(X)
    counting()
    subject.model.load_state_dict(conv().state_dict())
    subject.certify(X)
    assert counting() == (0, 0)


def test_weights_that_become_nan_and_recover():
    subject = certified(conv())
    expected = subject.certify(X)[1]
    weight = subject.model[0].weight.data
    kept = weight[0, 0, 0, 0].clone()
    weight[0, 0, 0, 0] = math.nan
    for _ in range(2):
        with pytest.raises(ValueError, match="weight: got NaN or infinity"):
            subject.certify(X)
    weight[0, 0, 0, 0] = kept
    assert_array_equal(subject.certify(X)[1], expected)


def test_the_live_network_is_left_as_it_is():
    network = conv().train()
    network[1].eval()
    network[0].weight.requires_grad_(False)
    network[3].weight.grad = torch.full_like(network[3].weight, 7.0)
    state = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    subject = certified(network)
    for _ in range(2):
        subject.certify(X)
        subject.lipschitz_report()
        network[0].weight.data.mul_(1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert [module.training for module in network.modules()] == modes
    assert [p.requires_grad for p in network.parameters()].count(False) == 1
    assert [p.grad is None for p in network.parameters()].count(False) == 1
    assert bool((network[3].weight.grad == 7).all())
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_in_inference_mode_and_mixed_precision():
    subject = certified(conv())
    expected = subject.certify(X)[1]
    with torch.inference_mode():
        assert_array_equal(certified(conv()).certify(torch.from_numpy(X) + 0)[1], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_array_equal(certified(conv()).certify(X)[1], expected)


@pytest.mark.filterwarnings("ignore")
def test_weights_that_hooks_compute():
    for wrap in (
        nn.utils.weight_norm,
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        nn.utils.parametrizations.spectral_norm,
    ):
        network = conv()
        wrap(network[3])
        network(torch.from_numpy(X)).sum().backward()
        assert not network[3].weight.is_leaf
        found, certificate = certified(network).certify(X)
        twin = conv()
        twin[3].weight.data, twin[3].bias.data = network[3].weight.detach(), network[3].bias.detach()
        assert_array_equal(certified(twin).certify(X)[0], found)
        assert_allclose(certified(twin).certify(X)[1], certificate, rtol=1e-5)


# An ART estimator


def test_from_classifier_shares_everything():
    classifier = plain(conv().train(), preprocessing=(0.5, 0.5), loss=nn.CrossEntropyLoss(label_smoothing=0.1))
    subject = PyTorchLipschitzCertifier.from_classifier(classifier)
    assert subject.model is classifier.model
    assert subject.model.training
    assert subject.loss is classifier.loss
    assert subject.optimizer is classifier.optimizer
    shared = set(PyTorchClassifier.estimator_params)
    assert shared == set(PyTorchLipschitzCertifier.estimator_params)
    for name in shared - {"clip_values"}:
        assert getattr(subject, name) is getattr(classifier, name), name
    assert_array_equal(subject.clip_values, classifier.clip_values)
    assert len(subject.preprocessing_operations) == 1
    assert_array_equal(subject.predict(X), classifier.predict(X))
    assert type(PyTorchLipschitzCertifier.from_classifier(subject)) is PyTorchLipschitzCertifier
    smoothed = PyTorchRandomizedSmoothing(conv(), nn.CrossEntropyLoss(), IMAGE, 4, clip_values=(0, 1))
    assert PyTorchLipschitzCertifier.from_classifier(smoothed).model is smoothed.model
    none = certified(conv(), preprocessing=None, clip_values=None, optimizer=None)
    assert none.preprocessing is None
    assert none.certify(X * 5)[1].min() > 0


def test_defences_of_training_alone_do_not_matter():
    cutout = CutoutPyTorch(length=2, channels_first=True, apply_fit=True, apply_predict=False, device_type="cpu")
    noise = GaussianAugmentation(apply_fit=True, apply_predict=False)
    expected = certified(conv()).certify(X)[1]
    for defence in (cutout, noise):
        subject = certified(conv(), preprocessing_defences=defence)
        assert_array_equal(subject.certify(X)[1], expected)
        assert subject.preprocessing_defences == [defence]


def test_by_its_name():
    classifier = plain(conv())
    subject = art_robust_plugins.create("lipschitz-certifier", classifier)
    assert type(subject) is PyTorchLipschitzCertifier
    assert subject.model is classifier.model


def test_clone_for_refitting():
    subject = certified(conv(), preprocessing=(0.5, 0.5))
    clone = subject.clone_for_refitting()
    assert type(clone) is PyTorchLipschitzCertifier
    assert clone.model is not subject.model
    assert not torch.equal(clone.model[0].weight, subject.model[0].weight)
    assert clone.certify(X)[1].shape == (40,)
    clone.model.load_state_dict(subject.model.state_dict())
    assert_array_equal(clone.certify(X)[1], subject.certify(X)[1])


def test_pickle(tmp_path, monkeypatch):
    monkeypatch.setattr("art.config.ART_DATA_PATH", str(tmp_path))
    subject = certified(conv())
    expected = subject.certify(X)[1]
    assert_array_equal(pickle.loads(pickle.dumps(subject)).certify(X)[1], expected)


def test_it_is_attacked_and_trained_as_any_classifier(digits):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    subject = certified(network, (1, 8, 8), 10, optimizer=optimizer)
    x, y = digits.x_test[:50], digits.y_test[:50]
    before = subject.certify(x)[1]
    StandardTrainer(subject).fit(digits.x_train, digits.y_train, nb_epochs=3, verbose=False)
    found, after = subject.certify(x)
    assert np.median(after) > 1.2 * np.median(before)
    assert (found == y).mean() > 0.75
    subject.fit(digits.x_train, np.eye(10)[digits.y_train], nb_epochs=1, batch_size=64)
    found, certificate = subject.certify(x)
    assert not np.array_equal(certificate, after)
    assert_array_equal(found, subject.predict(x).argmax(axis=1))
    eps = float(np.median(certificate))
    attack = ProjectedGradientDescent(subject, norm=2, eps=eps, eps_step=eps / 4, max_iter=20, verbose=False)
    changed = subject.predict(attack.generate(x)).argmax(axis=1) != found
    assert changed[certificate < eps * 0.8].any()
    assert not changed[certificate > eps * 1.001].any()


# The report


def test_report_of_a_chain():
    weights = [np.diag([3.0, 1.0]), np.diag([1.0, 0.5]) * 0.5, np.float32([[2, 0], [0, 1], [0, 0]])]
    network = nn.Sequential(linear(weights[0]), nn.ReLU(), linear(weights[1]), nn.ReLU(), linear(weights[2]))
    report = certified(network, (2,), 3).lipschitz_report()
    logs = np.log([3, 0.5, 2])
    rows = json.loads(json.dumps(report.rows))
    assert [row["module"] for row in rows] == ["0", "2", "4"]
    assert {row["kind"] for row in rows} == {"Linear"}
    assert [row["output_shape"] for row in rows] == [[2], [2], [3]]
    assert_allclose([row["norm"] for row in rows], [3, 0.5, 2], rtol=1e-8)
    assert_allclose([row["share"] for row in rows], logs / np.abs(logs).sum(), rtol=1e-6)
    assert rows[1]["share"] < 0
    assert report.lipschitz == pytest.approx(3)
    assert report.largest_pair == pytest.approx(1.5 * math.sqrt(5))
    lines = str(report).splitlines()
    assert len(lines) == 5
    assert len({line.index("svd") for line in lines[1:4]}) == 1
    assert "+50.0%" not in lines[2]
    assert "all logits: 3, difference of two: at most 3.3541" in lines[-1]


def test_report_of_a_residual_network():
    def forward(x, first, second, last):
        x = first(x)
        return last(torch.relu(x + 2 * torch.relu(second(x))))

    network = Function(forward, linear(np.eye(2) * 4), linear(np.eye(2) * 3), linear(np.eye(2) * 5))
    report = certified(network, (2,), 2).lipschitz_report()
    assert report.lipschitz == pytest.approx(4 * (1 + 2 * 3) * 5)
    assert [row["kind"] for row in report.rows] == ["Linear", "Linear", "Scale", "Linear"]
    # d ln (1 + s n) / d ln n = d ln (1 + s n) / d ln s = 6 / 7 at n = 3, s = 2
    logs = np.array([math.log(4), 6 / 7 * math.log(3), 6 / 7 * math.log(2), math.log(5)])
    assert_allclose([row["share"] for row in report.rows], logs / logs.sum(), rtol=1e-6)
    assert sum(abs(row["share"]) for row in certified(conv()).lipschitz_report().rows) == pytest.approx(1)


# Refusals, by name


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"postprocessing_defences": ReverseSigmoid()}, r"postprocessing_defences \(ReverseSigmoid\)"),
        ({"preprocessing_defences": FeatureSqueezing((0, 1))}, "the preprocessing FeatureSqueezing acts in predict"),
        (
            {"preprocessing_defences": CutoutPyTorch(2, True, apply_predict=True, device_type="cpu")},
            "the preprocessing CutoutPyTorch acts in predict",
        ),
        ({"preprocessing": (np.zeros(5), np.ones(5))}, r"mean \[0.* that broadcast against \(3, 6, 6\)"),
        ({"preprocessing": (0.5, 0.0)}, "standard deviation 0.0, expected finite numbers"),
        ({"preprocessing": (np.nan, 1.0)}, "mean nan and standard deviation 1.0"),
    ],
)
def test_defences_that_are_refused(given, message):
    for make in (PyTorchLipschitzCertifier, PyTorchClassifier):
        with pytest.raises(ValueError, match=message):
            PyTorchLipschitzCertifier.from_classifier(make(**settings(conv(), **given)))
    subject = certified(conv())
    name, value = next(iter(given.items()))
    if name == "postprocessing_defences":
        subject.set_params(**given)
        with pytest.raises(ValueError, match=message):
            subject.certify(X)
    elif name == "preprocessing_defences":
        subject.set_params(preprocessing_defences=[value])
        with pytest.raises(ValueError, match=message):
            subject.certify(X)


def test_a_standardisation_of_ones_own_is_refused():
    class Jumping(StandardisationMeanStdPyTorch):
        def forward(self, x, y=None):
            return x.round(), y

    with pytest.raises(ValueError, match="the preprocessing Jumping acts in predict"):
        certified(conv(), preprocessing=Jumping(0.0, 1.0, device_type="cpu"))


class Unpicklable(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.generator = conv(), (number for number in range(3))

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (nn.Sequential(conv(), nn.Hardshrink()), "aten.hardshrink.default .*module '1'"),
        (nn.Sequential(conv(), nn.RMSNorm(4)), "aten.rms_norm.default .*module '1'"),
        (
            Function(lambda x, inner: inner(x.float()), conv()),
            r"float64 fails on inputs \(2, 3, 6, 6\) \(Runtime",
        ),
        (Function(lambda x, inner: inner(x).float(), conv()), "in float64 still computes in torch.float32"),
        (Function(lambda x, inner: inner(x.float().to(x.dtype)), conv()), "in float64 still computes in torch.float32"),
        (Function(lambda x, inner: inner(x.half().to(x.dtype)), conv()), "a conversion to torch.float16 rounds"),
        (Function(lambda x, inner: (inner(x), x), conv()), r"output for 2 inputs is tuple, expected a tensor \(2, 4\)"),
        (nn.Sequential(conv(), nn.Linear(4, 3)), r"output for 2 inputs is \(2, 3\), expected a tensor \(2, 4\)"),
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 4)), "fails on inputs"),
        (Unpicklable(), "the network cannot be copied .*generator"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_networks_that_are_refused(network, message):
    with pytest.raises(ValueError, match=message) as refusal:
        certified(network)
    assert isinstance(refusal.value, NoLipschitzRuleError) == ("aten." in message or "conversion" in message)
    subject = PyTorchLipschitzCertifier(**settings(network))  # nothing is traced yet
    with pytest.raises(ValueError, match=message):
        subject.certify(X)


@pytest.fixture(scope="module")
def traced():
    return certified(conv())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, r"x: got an array of shape \(3, 6, 6\), expected \(N, 3, 6, 6\)"),
        ({"x": X[:, :2]}, "x: got an array of shape"),
        ({"x": X[:0]}, "x: got no samples"),
        ({"x": X * 2}, "x: got values in .* expected the classifier's clip_values"),
        ({"x": X * np.nan}, "x: got NaN or infinity"),
        ({"norm": "L0"}, "norm: got 'L0', expected one of"),
        ({"norm": None}, "norm: got None"),
        ({"batch_size": 0}, "batch_size: got 0, expected a positive whole number"),
        ({"batch_size": 2.5}, "batch_size: got 2.5"),
        ({"batch_size": True}, "batch_size: got True"),
        ({"y": np.full(40, 4)}, "y: got labels from 4 to 4, expected 0 to 3"),
        ({"y": np.zeros(39)}, "y: got 39 labels for 40 samples"),
        ({"eps": -0.1}, "eps: got -0.1, expected a number that is not negative"),
        ({"eps": "8/0"}, "eps: got '8/0'"),
        ({"eps": "much"}, "eps: got 'much'"),
        ({"eps": math.nan}, "eps: got nan"),
        ({"eps": math.inf}, "eps: got inf"),
        ({"eps": None}, "eps: got None"),
    ],
)
def test_arguments_that_are_refused(change, message, traced):
    arguments = {"x": X, "y": np.zeros(40), "eps": 0.1} | change
    with pytest.raises(ValueError, match=message):
        traced.certified_accuracy(**arguments)
    arguments.pop("y")
    arguments.pop("eps")
    if "y" not in change and "eps" not in change:
        with pytest.raises(ValueError, match=message):
            traced.certify(**arguments)


def test_other_refusals():
    with pytest.raises(TypeError, match="classifier: got Sequential, expected an ART PyTorchClassifier"):
        PyTorchLipschitzCertifier.from_classifier(conv())
    subject = certified(conv())
    subject.model[7].bias.data[0] = math.inf
    with pytest.raises(ValueError, match="x: the network's logits for it hold NaN or infinity"):
        subject.certify(X)
    with pytest.raises(ValueError, match="network: its outputs hold NaN or infinity"):
        certified(subject.model)


def test_standardisation_of_a_classifier():
    assert standardisation(plain(conv())) is None
    assert standardisation(plain(conv(), preprocessing=None)) is None
    mean, std = standardisation(plain(conv(), preprocessing=(np.float32(MEAN), np.float32(STD))))
    assert mean.dtype == std.dtype == torch.float64
    assert mean.shape == std.shape == (3, 1, 1)
    assert_array_equal(std.flatten(), np.float32(STD))
    mean, std = standardisation(plain(conv(), preprocessing=(0.25, 0.5)))
    assert (mean.item(), std.item()) == (0.25, 0.5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu():
    expected = certified(conv(), preprocessing=(np.float32(MEAN), np.float32(STD))).certify(X)
    classifier = plain(conv().cuda(), preprocessing=(np.float32(MEAN), np.float32(STD)), device_type="gpu")
    subject = PyTorchLipschitzCertifier.from_classifier(classifier)
    assert next(subject.model.parameters()).is_cuda
    for x in (X, torch.from_numpy(X).cuda()):
        found, certificate = subject.certify(x)
        assert_array_equal(found, expected[0])
        assert_allclose(certificate, expected[1], rtol=1e-6)
    assert subject.certified_accuracy(X, torch.from_numpy(expected[0]).cuda(), 0) == 1
    assert_array_equal(subject.predict(X).argmax(axis=1), expected[0])

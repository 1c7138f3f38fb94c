"""The certificate: its formula by hand, its units, its limits, and attacks that break none."""

import copy
import math

import numpy as np
import pytest
import torch
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional

from art_robust_plugins import Evaluator, PyTorchLipschitzCertifier, ThreatModel

from .builders import (
    COLOURS,
    MEAN,
    STD,
    Network,
    X,
    conv,
    divide_margins,
    draw_images,
    linear,
    make_certifier,
    make_normalising,
    row_distances,
    settings,
)

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


# The formula


def test_a_linear_network_by_hand():
    rng = np.random.default_rng(1)
    weight, bias = rng.normal(size=(5, 12)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    x = draw_images(50, 12)
    subject = make_certifier(linear(weight, bias), (12,), 5)
    wide = weight.astype(np.float64)
    expected, radius = divide_margins(x.astype(np.float64) @ wide.T + bias, row_distances(wide))
    found, certificate = subject.certify(x)
    assert found.dtype == np.int64
    assert certificate.dtype == np.float64
    assert_array_equal(found, expected)
    assert_allclose(certificate, radius, rtol=1e-7, atol=1e-9)
    assert (certificate <= radius).all()
    assert_allclose(subject.lipschitz_constants(), row_distances(wide), rtol=1e-7)


def test_two_layers_by_hand():
    rng = np.random.default_rng(2)
    first, last = rng.normal(size=(9, 12)).astype(np.float32), rng.normal(size=(4, 9)).astype(np.float32)
    shift = rng.normal(size=9).astype(np.float32)
    x = draw_images(50, 12)
    subject = make_certifier(nn.Sequential(linear(first, shift), nn.ReLU(), linear(last)), (12,), 4)
    first, last = first.astype(np.float64), last.astype(np.float64)
    logits = np.maximum(x.astype(np.float64) @ first.T + shift, 0) @ last.T
    constants = np.linalg.norm(first, 2) * row_distances(last)
    expected, radius = divide_margins(logits, constants)
    found, certificate = subject.certify(x)
    assert_array_equal(found, expected)
    assert_allclose(certificate, radius, rtol=1e-7, atol=1e-9)
    assert (certificate <= radius).all()
    # Where the last layer is not linear: sqrt(2) L.
    subject = make_certifier(nn.Sequential(linear(first), nn.Sigmoid()), (12,), 9)
    logits = 1 / (1 + np.exp(-x.astype(np.float64) @ first.T))
    whole = np.full((9, 9), math.sqrt(2) / 4 * np.linalg.norm(first, 2))
    expected, radius = divide_margins(logits, whole)
    found, certificate = subject.certify(x)
    assert_array_equal(found, expected)
    assert_allclose(certificate, radius, rtol=1e-7, atol=1e-9)


def test_the_radius_of_an_affine_network_of_two_classes_is_the_distance():
    rng = np.random.default_rng(3)
    weight, bias = rng.normal(size=(2, 12)).astype(np.float32), np.float32([0.3, -0.2])
    x = draw_images(30, 12).astype(np.float64)
    subject = make_certifier(linear(weight, bias), (12,), 2, clip_values=None)
    direction, offset = (weight[1] - weight[0]).astype(np.float64), float(bias[1] - bias[0])
    distance = np.abs(x @ direction + offset) / np.linalg.norm(direction)
    found, certificate = subject.certify(x)
    assert_allclose(certificate, distance, rtol=1e-6)
    towards = np.where(found == 0, 1, -1)[:, None] * direction / np.linalg.norm(direction)
    for factor, changes in ((0.999, False), (1.001, True)):
        moved = subject.certify(x + factor * certificate[:, None] * towards)[0]
        assert_array_equal(moved != found, changes)


# Units


def test_a_normalisation_counts_wherever_it_stands():
    network = conv()
    inside, per_channel = make_normalising(network), np.float32([MEAN, STD])
    expected = make_certifier(inside).certify(X)
    assert (expected[1] > 0).all()
    forms = {
        "preprocessing": make_certifier(network, preprocessing=tuple(per_channel)),
        "by pixel": make_certifier(
            network, preprocessing=tuple(np.broadcast_to(v[:, None, None], COLOURS).copy() for v in per_channel)
        ),
        "as a batch": make_certifier(network, preprocessing=tuple(v.reshape(1, 3, 1, 1) for v in per_channel)),
        "as a defence": make_certifier(
            network,
            preprocessing_defences=StandardisationMeanStdPyTorch(*per_channel, device_type="cpu"),
            preprocessing=None,
        ),
        "mirrored": make_certifier(
            nn.Sequential(Network(lambda x: -x), network), preprocessing=(per_channel[0], -per_channel[1])
        ),
    }
    for name, subject in forms.items():
        found, certificate = subject.certify(X)
        assert_array_equal(found, expected[0], name)
        assert_allclose(certificate, expected[1], rtol=1e-5, err_msg=name)
    # One after the other: the defence comes first.
    both = make_certifier(
        make_normalising(network, (0.2, 0.2, 0.2), (2.0, 1.0, 0.5)),
        preprocessing_defences=StandardisationMeanStdPyTorch(*per_channel, device_type="cpu"),
        preprocessing=(0.5, 2.0),
    )
    shift = [m + s * (0.5 + 2 * 0.2) for m, s in zip(MEAN, STD, strict=True)]
    scale = [s * 2 * t for s, t in zip(STD, (2.0, 1.0, 0.5), strict=True)]
    found, certificate = make_certifier(make_normalising(network, shift, scale)).certify(X)
    assert_array_equal(both.certify(X)[0], found)
    assert_allclose(both.certify(X)[1], certificate, rtol=1e-4)


def test_radii_are_in_the_units_of_the_input():
    network = conv()
    found, certificate = make_certifier(network).certify(X)
    scalar = make_certifier(nn.Sequential(Network(lambda x: 0.3 + 0.5 * x), network), preprocessing=(0.3, 0.5))
    assert_array_equal(scalar.certify(X)[0], found)
    assert_allclose(scalar.certify(X)[1], certificate, rtol=1e-5)
    bytes_ = make_certifier(network, clip_values=(0, 255), preprocessing=(0, 255))
    assert_array_equal(bytes_.certify(X * 255)[0], found)
    assert_allclose(bytes_.certify(X * 255)[1], certificate * 255, rtol=1e-4)
    assert_allclose(bytes_.lipschitz_constants() * 255, make_certifier(network).lipschitz_constants(), rtol=1e-6)
    raw = make_certifier(nn.Sequential(Network(lambda x: x / 255), network), clip_values=(0, 255))
    assert_allclose(raw.certify(X * 255)[1], certificate * 255, rtol=1e-4)


def test_channels_last():
    network = conv()
    turned = nn.Sequential(Network(lambda x: x.permute(0, 3, 1, 2)), network)
    last = make_certifier(turned, (6, 6, 3), channels_first=False, preprocessing=(np.float32(MEAN), np.float32(STD)))
    first = make_certifier(network, preprocessing=(np.float32(MEAN), np.float32(STD)))
    found, certificate = last.certify(np.moveaxis(X, 1, -1))
    assert_array_equal(found, first.certify(X)[0])
    assert_allclose(certificate, first.certify(X)[1], rtol=0.3)  # the bound of an image that is turned may be looser
    assert (certificate <= first.certify(X)[1] * (1 + 1e-6)).all()


def test_other_norms():
    subject = make_certifier(conv())
    found, certificate = subject.certify(X)
    for norm, factor in (("L1", 1.0), ("Linf", 1 / math.sqrt(108)), ("L2", 1.0)):
        assert_array_equal(subject.certify(X, norm=norm)[0], found)
        assert_allclose(subject.certify(X, norm=norm)[1], certificate * factor, rtol=1e-12)
    threat = ThreatModel("Linf", float(certificate[0] / math.sqrt(108)))
    assert subject.certified_accuracy(X[:1], found[:1], threat.eps * (1 - 1e-9), norm="Linf") == 1
    assert subject.certified_accuracy(X[:1], found[:1], threat.eps * 1.001, norm="Linf") == 0


def test_certified_accuracy():
    subject = make_certifier(conv())
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


def train(digits, network):
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
    return train(
        digits, nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 10))
    )


def find_broken(logits, x, labels, radii, steps=40, restarts=3):
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
    undone = nn.Sequential(Network(lambda x: x * 0.25 + 0.3), network)
    return {
        "plain": (settings(network, (1, 8, 8), 10), 1),
        "preprocessing": (settings(undone, (1, 8, 8), 10, preprocessing=(0.3, 0.25)), 1),
        "in the network": (settings(make_normalising(undone, (0.3,), (0.25,)), (1, 8, 8), 10), 1),
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
    assert not find_broken(logits, images, labels, 0.999 * certificate).any()
    # The same attack finds out a bound that is three times too small, on nearly every image.
    assert find_broken(logits, images, labels, 3 * certificate).mean() > 0.8


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
    constants = make_certifier(network, preprocessing=(0.0, 0.5)).lipschitz_constants()
    assert constants.dtype == np.float64
    assert_array_equal(constants, constants.T)
    assert_array_equal(constants.diagonal(), 0)
    twin = conv().double()
    largest = np.zeros((4, 4))
    for x in torch.from_numpy(X).double():
        jacobian = torch.autograd.functional.jacobian(lambda z: twin(z[None] / 0.5)[0], x).flatten(1).numpy()
        largest = np.maximum(largest, row_distances(jacobian))
    assert (largest <= constants).all()
    assert (constants <= 20 * largest).all()


# Limits


def test_ties_have_radius_zero():
    tied = make_certifier(linear(np.float32([[1, 2], [1, 2], [-1, 0]]), np.float32([0.5, 0.5, 0])), (2,), 3)
    found, certificate = tied.certify(np.float32([[0.5, 0.5], [1, 0]]))
    assert_array_equal(found, 0)
    assert_array_equal(certificate, 0)
    assert tied.certified_accuracy(np.float32([[0.5, 0.5]]), [0], 0) == 1
    # Equal but for rounding: not a margin that anything follows from.
    nearly = make_certifier(linear(np.zeros((2, 2)), np.float64([1, 1 - 1e-12])).double(), (2,), 2)
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
    subject = make_certifier(nn.Sequential(linear(np.eye(2)), nn.ReLU(), linear(last, bias)), (2,), 3)
    _, certificate = subject.certify(np.float32([[0.8, 0.2]]))
    assert_allclose(certificate, [expected], rtol=1e-6)
    subject = make_certifier(nn.Sequential(linear(np.zeros((2, 2))), nn.ReLU(), linear(last, bias)), (2,), 3)
    _, certificate = subject.certify(np.float32([[0.8, 0.2]]))
    assert_allclose(certificate, [math.inf if bias[0] != bias[1] and bias[1] != bias[2] else 0])
    assert not np.isnan(subject.lipschitz_constants()).any()


def test_a_network_that_ignores_its_input():
    network = Network(lambda x, last: last.bias.expand(len(x), -1), linear(np.zeros((3, 2)), [1, 3, 2]))
    found, certificate = make_certifier(network, (2,), 3).certify(np.zeros((4, 2)))
    assert_array_equal(found, 1)
    assert_array_equal(certificate, math.inf)
    assert make_certifier(network, (2,), 3).lipschitz_report().rows == []


def test_the_batch_size_does_not_matter():
    subject = make_certifier(conv())
    found, certificate = subject.certify(X)
    for size in (1, 7, np.int64(40), 1000):
        assert_array_equal(subject.certify(X, size)[0], found)
        assert_allclose(subject.certify(X, size)[1], certificate, rtol=1e-9)
    for form in (torch.from_numpy(X), X.astype(np.float64), X[::-1][::-1], X.tolist()):
        assert_array_equal(subject.certify(form)[1], certificate)

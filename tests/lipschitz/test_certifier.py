"""The certifier as an ART estimator, and what it refuses."""

import math
import pickle

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
from builders import make_linear
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

import art_robust_plugins
from art_robust_plugins import PyTorchLipschitzCertifier, StandardTrainer
from art_robust_plugins.bridge import standardisation
from art_robust_plugins.lipschitz import NoLipschitzRuleError

from .builders import COLOURS, MEAN, STD, Network, X, conv, make_certifier, make_classifier, settings

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_from_classifier_shares_everything():
    classifier = make_classifier(
        conv().train(), preprocessing=(0.5, 0.5), loss=nn.CrossEntropyLoss(label_smoothing=0.1)
    )
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
    smoothed = PyTorchRandomizedSmoothing(conv(), nn.CrossEntropyLoss(), COLOURS, 4, clip_values=(0, 1))
    assert PyTorchLipschitzCertifier.from_classifier(smoothed).model is smoothed.model
    none = make_certifier(conv(), preprocessing=None, clip_values=None, optimizer=None)
    assert none.preprocessing is None
    assert none.certify(X * 5)[1].min() > 0


def test_defences_of_training_alone_do_not_matter():
    cutout = CutoutPyTorch(length=2, channels_first=True, apply_fit=True, apply_predict=False, device_type="cpu")
    noise = GaussianAugmentation(apply_fit=True, apply_predict=False)
    expected = make_certifier(conv()).certify(X)[1]
    for defence in (cutout, noise):
        subject = make_certifier(conv(), preprocessing_defences=defence)
        assert_array_equal(subject.certify(X)[1], expected)
        assert subject.preprocessing_defences == [defence]


def test_by_its_name():
    classifier = make_classifier(conv())
    subject = art_robust_plugins.create("lipschitz-certifier", classifier)
    assert type(subject) is PyTorchLipschitzCertifier
    assert subject.model is classifier.model


def test_clone_for_refitting():
    subject = make_certifier(conv(), preprocessing=(0.5, 0.5))
    clone = subject.clone_for_refitting()
    assert type(clone) is PyTorchLipschitzCertifier
    assert clone.model is not subject.model
    assert not torch.equal(clone.model[0].weight, subject.model[0].weight)
    assert clone.certify(X)[1].shape == (40,)
    clone.model.load_state_dict(subject.model.state_dict())
    assert_array_equal(clone.certify(X)[1], subject.certify(X)[1])


def test_pickle(tmp_path, monkeypatch):
    monkeypatch.setattr("art.config.ART_DATA_PATH", str(tmp_path))
    subject = make_certifier(conv())
    expected = subject.certify(X)[1]
    assert_array_equal(pickle.loads(pickle.dumps(subject)).certify(X)[1], expected)


def test_it_is_attacked_and_trained_as_any_classifier(digits):
    torch.manual_seed(0)
    network = make_linear()
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    subject = make_certifier(network, (1, 8, 8), 10, optimizer=optimizer)
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
        ({"preprocessing": (0.5, 0.0)}, "standard deviation 0.0"),
        ({"preprocessing": (np.nan, 1.0)}, "mean nan and standard deviation 1.0"),
    ],
)
def test_defences_that_are_refused(given, message):
    for make in (PyTorchLipschitzCertifier, PyTorchClassifier):
        with pytest.raises(ValueError, match=message):
            PyTorchLipschitzCertifier.from_classifier(make(**settings(conv(), **given)))
    subject = make_certifier(conv())
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

    with pytest.raises(ValueError, match="preprocessing Jumping "):
        make_certifier(conv(), preprocessing=Jumping(0.0, 1.0, device_type="cpu"))


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
        (nn.Sequential(conv(), nn.GLU(1), nn.Linear(2, 4)), "aten.glu.default .*module '1'"),
        (nn.Sequential(conv(), nn.Softmax(0)), "aten._softmax.default .*module '1'"),
        (Network(lambda x, inner: inner(x.float()), conv()), r"float64 fails on inputs \(2, 3, 6, 6\) \(Runtime"),
        (Network(lambda x, inner: inner(x).float(), conv()), "in float64 still computes in torch.float32"),
        (Network(lambda x, inner: inner(x.float().to(x.dtype)), conv()), "in float64 still computes in torch.float32"),
        (Network(lambda x, inner: inner(x.half().to(x.dtype)), conv()), "computes in torch.float16"),
        (Network(lambda x, inner: (inner(x), x), conv()), r"output for 2 inputs is tuple,"),
        (nn.Sequential(conv(), nn.Linear(4, 3)), r"output for 2 inputs is \(2, 3\),"),
        (make_linear(5, 4), "fails on inputs"),
        (Unpicklable(), "the network cannot be copied .*generator"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_networks_that_are_refused(network, message):
    with pytest.raises(ValueError, match=message) as refusal:
        make_certifier(network)
    assert isinstance(refusal.value, NoLipschitzRuleError) == ("aten." in message)
    subject = PyTorchLipschitzCertifier(**settings(network))  # nothing is traced yet
    with pytest.raises(ValueError, match=message):
        subject.certify(X)


@pytest.fixture(scope="module")
def shared_certifier():
    return make_certifier(conv())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": X[0]}, r"x: got an array of shape \(3, 6, 6\),"),
        ({"x": X[:, :2]}, "x: got an array of shape"),
        ({"x": X[:0]}, "x: got no samples"),
        ({"x": X * 2}, "x: got values in"),
        ({"x": X * np.nan}, "x: got NaN or infinity"),
        ({"norm": "L0"}, "norm: got 'L0',"),
        ({"norm": None}, "norm: got None"),
        ({"batch_size": 0}, "batch_size: got 0,"),
        ({"batch_size": 2.5}, "batch_size: got 2.5"),
        ({"batch_size": True}, "batch_size: got True"),
        ({"y": np.full(40, 4)}, "y: got labels from 4 to 4,"),
        ({"y": np.zeros(39)}, "y: got 39 labels for 40 samples"),
        ({"eps": -0.1}, "eps: got -0.1,"),
        ({"eps": "8/0"}, "eps: got '8/0'"),
        ({"eps": "much"}, "eps: got 'much'"),
        ({"eps": math.nan}, "eps: got nan"),
        ({"eps": math.inf}, "eps: got inf"),
        ({"eps": None}, "eps: got None"),
    ],
)
def test_arguments_that_are_refused(change, message, shared_certifier):
    arguments = {"x": X, "y": np.zeros(40), "eps": 0.1} | change
    with pytest.raises(ValueError, match=message):
        shared_certifier.certified_accuracy(**arguments)
    arguments.pop("y")
    arguments.pop("eps")
    if "y" not in change and "eps" not in change:
        with pytest.raises(ValueError, match=message):
            shared_certifier.certify(**arguments)


def test_other_refusals():
    with pytest.raises(TypeError, match="classifier: got Sequential,"):
        PyTorchLipschitzCertifier.from_classifier(conv())
    subject = make_certifier(conv())
    subject.model[7].bias.data[0] = math.inf
    with pytest.raises(ValueError, match=r"x: .*NaN"):
        subject.certify(X)
    with pytest.raises(ValueError, match=r"network: .*NaN"):
        make_certifier(subject.model)


def test_standardisation_of_a_classifier():
    assert standardisation(make_classifier(conv())) is None
    assert standardisation(make_classifier(conv(), preprocessing=None)) is None
    mean, std = standardisation(make_classifier(conv(), preprocessing=(np.float32(MEAN), np.float32(STD))))
    assert mean.dtype == std.dtype == torch.float64
    assert mean.shape == std.shape == (3, 1, 1)
    assert_array_equal(std.flatten(), np.float32(STD))
    mean, std = standardisation(make_classifier(conv(), preprocessing=(0.25, 0.5)))
    assert (mean.item(), std.item()) == (0.25, 0.5)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu():
    expected = make_certifier(conv(), preprocessing=(np.float32(MEAN), np.float32(STD))).certify(X)
    classifier = make_classifier(conv().cuda(), preprocessing=(np.float32(MEAN), np.float32(STD)), device_type="gpu")
    subject = PyTorchLipschitzCertifier.from_classifier(classifier)
    assert next(subject.model.parameters()).is_cuda
    for x in (X, torch.from_numpy(X).cuda()):
        found, certificate = subject.certify(x)
        assert_array_equal(found, expected[0])
        assert_allclose(certificate, expected[1], rtol=1e-6)
    assert subject.certified_accuracy(X, torch.from_numpy(expected[0]).cuda(), 0) == 1
    assert_array_equal(subject.predict(X).argmax(axis=1), expected[0])


class Truncated(nn.Module):
    """Rounds weights to multiples of 1/32 in float32, and to none in float64."""

    def forward(self, weight):
        return (weight + 393216.0) - 393216.0


def test_the_weights_that_a_parametrization_gives_in_float32_are_those_that_count():
    layer = nn.Linear(66, 2)
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.fill_(32)
        layer.weight[0, 0] = layer.weight[1, 1] = 1
        layer.weight[1, 2:34] = 0.0157  # 0.03125 in float32
    parametrize.register_parametrization(layer, "weight", Truncated())
    network = nn.Sequential(nn.Flatten(), layer)
    subject = PyTorchLipschitzCertifier(network, nn.CrossEntropyLoss(), (1, 6, 11), 2, clip_values=(0, 1))
    x = np.zeros((3, 1, 6, 11), np.float32)
    x[:, 0, 0, 0] = 0.9
    for _ in range(2):
        prediction, exact, computed = subject.certify_as_computed(x)
        assert_allclose(exact, 0.9 / math.sqrt(2 + 32 * 0.0157**2), rtol=1e-6)
        assert_allclose(computed, 0.9 / math.sqrt(2 + 32 * 0.03125**2), rtol=1e-3)
        assert_array_equal(prediction, 0)
        assert_allclose(network(torch.from_numpy(x)).detach(), [[32.9, 32]] * 3)  # the network is as it was


def eye(scale):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 2))
    with torch.no_grad():
        for place, factor in zip((1, 2, 3), scale, strict=True):
            network[place].weight.copy_(factor * torch.eye(2, network[place].in_features))
        for place in (1, 3):
            network[place].bias.zero_()
    return network


class Computing(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 2)

    def forward(self, x):
        return functional.linear(x.flatten(1), self.inner.weight / 3 + 1)


@pytest.mark.parametrize(
    ("network", "preprocessing", "counts"),
    [
        (eye((1, 1, 1)), (), True),
        (eye((1, 1, 1)), ((0.5, 2.0),), True),
        (eye((1, 1, 1)), ((-(2.0**17), 1.0), (2.0**17, 1.0)), False),  # rounds x to multiples of 1/64
        (eye((50 * 2.0**-149, 2.0**125, 2.0**24 / 50)), (), False),  # a subnormal weight
        (eye((2.0**110, 2.0**-60, 2.0**-50)), (), False),  # values near the largest number
        (eye((2.0**-70, 2.0**-50, 2.0**120)), (), False),  # values that underflow
        (Computing(), (), False),
    ],
)
def test_what_rounds_without_a_bound_has_no_radius_as_computed(network, preprocessing, counts):
    steps = [StandardisationMeanStdPyTorch(mean=mean, std=std) for mean, std in preprocessing]
    options = {"clip_values": (0, 1), "preprocessing_defences": steps or None, "device_type": "cpu"}
    subject = PyTorchLipschitzCertifier(network, nn.CrossEntropyLoss(), (1, 2, 2), 2, **options)
    x = np.full((2, 1, 2, 2), 0.25, np.float32)
    x[0, 0, 0, 0] = x[1, 0, 0, 1] = 1.0
    _, exact, computed = subject.certify_as_computed(x)
    assert (exact > 0).all()
    assert ((computed > 0.999 * exact) if counts else (computed == 0)).all()

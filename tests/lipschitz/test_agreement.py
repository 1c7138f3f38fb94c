"""The network that is certified, the graph that is analysed and the network that predicts are one."""

import functools
import types

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional

from art_robust_plugins import PyTorchLipschitzCertifier
from art_robust_plugins.lipschitz import LipschitzGraph
from art_robust_plugins.lipschitz.structure import describe_structure

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

X = np.random.default_rng(0).random((24, 6), dtype=np.float32)
GLOBAL = {"slope": 1.0}
FACTOR = 1.0


def layers(seed=0):
    torch.manual_seed(seed)
    return nn.ModuleList([nn.Linear(6, 5), nn.Linear(5, 3)])


def certifier(network):
    loss = nn.CrossEntropyLoss()
    return PyTorchLipschitzCertifier.from_classifier(
        PyTorchClassifier(network, loss, (6,), 3, clip_values=(0, 1), device_type="cpu")
    )


class Network(nn.Module):
    """Two layers and an activation; ``extra`` maps the logits and the input to other logits."""

    def __init__(self, extra=lambda logits, x: logits):
        super().__init__()
        self.layers, self.act, self.extra = layers(), functional.relu, extra

    def forward(self, x):
        return self.extra(self.layers[1](self.act(self.layers[0](x))), x)


# The graph is another function


def count(calls=[0]):  # noqa: B006
    calls[0] += 1
    return calls[0]


@pytest.mark.parametrize(
    "extra",
    [
        lambda y, x: y if torch.compiler.is_compiling() else 100 * y,
        lambda y, x: y if torch.compiler.is_exporting() else y + 1e-6 * y**3,
        lambda y, x: y if torch.compiler.is_compiling() or float(x.max()) < 0.999 else -3 * y,
        lambda y, x: y if torch.compiler.is_compiling() or float(x.abs().sum()) > 1e-9 else y + 1,
        lambda y, x: y if len(x) == 1 else 2 * y,
        lambda y, x: y - y.mean(dim=0) + y.mean(dim=0).sum(),
        lambda y, x: y * (1 if torch.compiler.is_compiling() else 1 + count() % 2),
        lambda y, x: y if torch.compiler.is_compiling() else y + 1e-3 * torch.randn_like(y),
        lambda y, x: y + 1e-3 * torch.from_numpy(np.random.default_rng().normal(size=3)).to(y),
        lambda y, x: y if x.dtype == torch.float64 else -y,
    ],
)
def test_a_network_that_is_not_its_graph_is_refused(extra):
    with pytest.raises(ValueError, match="network"):
        certifier(Network(extra)).certify(X)
    with pytest.raises(ValueError, match="network"):
        certifier(Network(extra)).lipschitz_constants()


def test_a_difference_on_the_certified_images_alone_is_found():
    shown = torch.from_numpy(X[17]).double()
    network = Network(lambda y, x: y if torch.compiler.is_compiling() or not (x == shown).all(1).any() else y + 1)
    subject = certifier(network)
    with pytest.raises(ValueError, match="network"):
        subject.certify(X)
    assert (subject.certify(X[:17])[1] >= 0).all()


def test_the_graph_of_a_training_estimate_is_compared_too():
    with pytest.raises(ValueError, match="network"):
        LipschitzGraph(Network(lambda y, x: y if torch.compiler.is_compiling() else 100 * y), (6,))


# A network that changes


def steeper(x):
    return functional.leaky_relu(x, 3.0)


def scale(x, factor=1.0):
    return factor * functional.relu(x)


def by_global(x):
    return functional.leaky_relu(x, GLOBAL["slope"]) * FACTOR


class Slope:
    """A callable with something in it."""

    slope = 1.0

    def __init__(self):
        self.factor = 1.0

    def __call__(self, x):
        return functional.leaky_relu(x, self.slope) * self.factor


class Slotted:
    __slots__ = ("factor",)

    def __init__(self):
        self.factor = 1.0

    def __call__(self, x):
        return self.factor * x


def closure():
    factor = 1.0

    def act(x):
        return factor * x

    def change():
        nonlocal factor
        factor = 2.0

    return act, change


def another_function(subject, monkeypatch):
    subject.model.act = steeper


def a_function_of_torch(subject, monkeypatch):
    subject.model.act = torch.abs


def a_default(subject, monkeypatch):
    monkeypatch.setattr(scale, "__defaults__", (2.0,))


def a_partial_function(subject, monkeypatch):
    subject.model.act = functools.partial(functional.leaky_relu, negative_slope=3.0)


def an_object_in_a_callable(subject, monkeypatch):
    subject.model.act.factor = 2.0


def an_attribute_of_a_class(subject, monkeypatch):
    monkeypatch.setattr(Slope, "slope", 2.0)


def a_closure(subject, monkeypatch):
    subject.model.act.change()


def a_global(subject, monkeypatch):
    monkeypatch.setitem(globals(), "FACTOR", 2.0)


def an_entry_of_a_global(subject, monkeypatch):
    monkeypatch.setitem(GLOBAL, "slope", 2.0)


def a_method_of_the_class(subject, monkeypatch):
    monkeypatch.setattr(Network, "forward", lambda self, x: self.layers[1](3 * self.layers[0](x)))


def a_method_of_the_object(subject, monkeypatch):
    subject.model.forward = types.MethodType(lambda self, x: self.layers[1](3 * self.layers[0](x)), subject.model)


def the_class(subject, monkeypatch):
    class Other(Network):
        def forward(self, x):
            return 2 * super().forward(x)

    subject.model.__class__ = Other


def a_hook(subject, monkeypatch):
    subject.model.layers[0].register_forward_hook(lambda module, inputs, output: 2 * output)


def a_function_in_torch(subject, monkeypatch):
    relu = functional.relu
    monkeypatch.setattr(functional, "leaky_relu", lambda x, slope: 2 * relu(x))


@pytest.mark.parametrize(
    ("act", "change"),
    [
        (functional.relu, another_function),
        (functional.relu, a_function_of_torch),
        (scale, a_default),
        (functools.partial(functional.leaky_relu, negative_slope=0.5), a_partial_function),
        (Slope(), an_object_in_a_callable),
        (Slotted(), an_object_in_a_callable),
        (Slope(), an_attribute_of_a_class),
        (closure, a_closure),
        (by_global, a_global),
        (by_global, an_entry_of_a_global),
        (by_global, a_function_in_torch),
        (functional.relu, a_method_of_the_class),
        (functional.relu, a_method_of_the_object),
        (functional.relu, the_class),
        (functional.relu, a_hook),
    ],
)
def test_no_certificate_survives_a_change(act, change, monkeypatch):
    network = Network()
    if act is closure:
        network.act, changing = closure()
        network.act.change = changing
    else:
        network.act = act
    subject = certifier(network)
    before = subject.certify(X)[1], subject.lipschitz_constants(), subject.lipschitz_report().largest_pair
    change(subject, monkeypatch)
    after = subject.lipschitz_constants(), subject.lipschitz_report().largest_pair
    found, radius = subject.certify(X)
    fresh = certifier(network)
    assert_array_equal(found, fresh.certify(X)[0])
    assert_allclose(radius, fresh.certify(X)[1], rtol=1e-12)
    assert not np.array_equal(radius, before[0])
    assert_array_equal(after[0], fresh.lipschitz_constants())
    assert after[1] == fresh.lipschitz_report().largest_pair


def test_what_cannot_be_compared_counts_as_changed():
    network = Network()
    assert describe_structure(network) == describe_structure(network)
    network.state = iter([1, 2])
    assert describe_structure(network) != describe_structure(network)


def test_a_network_that_begins_to_differ_from_its_graph_is_refused():
    network = Network()
    subject = certifier(network)
    subject.certify(X)
    network.extra = lambda y, x: y if torch.compiler.is_compiling() else y.flip(1)
    for use in (lambda: subject.certify(X), subject.lipschitz_constants, subject.lipschitz_report):
        with pytest.raises(ValueError, match="network"):
            use()
    del network.extra
    network.extra = Network().extra
    assert_array_equal(subject.certify(X)[1], certifier(network).certify(X)[1])


def test_preprocessing_that_is_edited_in_place():
    mean, std = np.zeros(6, np.float32), np.ones(6, np.float32)
    settings = {"clip_values": (0, 1), "preprocessing": (mean, std), "device_type": "cpu"}
    classifier = PyTorchClassifier(Network(), nn.CrossEntropyLoss(), (6,), 3, **settings)
    subject = PyTorchLipschitzCertifier.from_classifier(classifier)
    before = subject.certify(X)[1]
    for operation in subject.preprocessing_operations:
        operation.std[:] = 0.25
    assert_allclose(subject.certify(X)[1], PyTorchLipschitzCertifier.from_classifier(subject).certify(X)[1])
    assert not np.array_equal(subject.certify(X)[1], before)


def test_modes_and_the_networks_own_state_do_not_matter():
    network = Network()
    subject = certifier(network)
    expected = subject.certify(X)[1]
    network.layers[0].train()
    assert_array_equal(subject.certify(X)[1], expected)
    network.last = None

    def remember(y, x):
        network.last = y.detach()
        return y

    network.extra = remember
    for _ in range(2):
        network(torch.from_numpy(X))
        assert_allclose(subject.certify(X)[1], expected)

"""What a certifier keeps of a network, and until when."""

import logging
import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from art_robust_plugins import PyTorchLipschitzCertifier
from art_robust_plugins.lipschitz import LipschitzGraph, analysis, configure_proofs

from .builders import X, conv, make_certifier

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


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
    monkeypatch.setattr(analysis, "LipschitzGraph", Counting)

    def take_counts():
        result = Counting.traces, Counting.bounds
        Counting.traces = Counting.bounds = 0
        return result

    return take_counts


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
    subject = make_certifier(conv())
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


def load_others(subject):
    subject.model.inner.load_state_dict(conv(seed=1).state_dict())


def in_place(subject):
    subject.model.inner[0].weight.data[0, 0, 0, 0] += 1e-3


def assign_data(subject):
    subject.model.inner[7].weight.data = subject.model.inner[7].weight.data * 1.5


def another_parameter(subject):
    subject.model.inner[7].bias = nn.Parameter(torch.tensor([1.0, 0, 0, 0]))


def shift(subject):
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
    [(f, (0, 1)) for f in (step, statistics, load_others, in_place, assign_data, another_parameter, shift)]
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
    subject = make_certifier(Scaled())
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
    subject = make_certifier(network)
    subject.certify(X)
    counting()
    subject.certify(X)
    assert counting() == (0, 0)
    network.settings.scale = 2.0
    subject.certify(X)
    assert counting() == (1, 1)


def test_the_same_weights_loaded_again_change_nothing(counting):
    subject = make_certifier(conv())
    subject.certify(X)
    counting()
    subject.model.load_state_dict(conv().state_dict())
    subject.certify(X)
    assert counting() == (0, 0)


def test_weights_that_become_nan_and_recover():
    subject = make_certifier(conv())
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
    subject = make_certifier(network)
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
    subject = make_certifier(conv())
    expected = subject.certify(X)[1]
    with torch.inference_mode():
        assert_array_equal(make_certifier(conv()).certify(torch.from_numpy(X) + 0)[1], expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert_array_equal(make_certifier(conv()).certify(X)[1], expected)


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
        found, certificate = make_certifier(network).certify(X)
        twin = conv()
        twin[3].weight.data, twin[3].bias.data = network[3].weight.detach(), network[3].bias.detach()
        assert_array_equal(make_certifier(twin).certify(X)[0], found)
        assert_allclose(make_certifier(twin).certify(X)[1], certificate, rtol=1e-5)


class OfAModule(nn.Module):
    """A network whose forward finds an activation in a user's module, in one of several ways."""

    def __init__(self, find):
        super().__init__()
        self.inner, self.find = conv(), find

    def forward(self, x):
        return self.inner(self.find()(x))


def by_import():
    import a_module_of_the_user

    return a_module_of_the_user.activation


def by_name():
    from a_module_of_the_user import activation

    return activation


def by_closure():
    module = sys.modules["a_module_of_the_user"]
    return lambda: module.activation


@pytest.fixture
def users(monkeypatch):
    module = ModuleType("a_module_of_the_user")
    module.activation = functional.relu
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.mark.parametrize("find", [by_import, by_name, "closure"])
def test_a_function_in_a_module_of_the_user_is_looked_at(find, users, counting):
    subject = make_certifier(OfAModule(by_closure() if find == "closure" else find))
    before = subject.certify(X)[1]
    counting()
    assert agrees(subject, counting) == (0, 0)
    users.activation = lambda x: functional.relu(x) + 50 * functional.relu(x - 40)
    assert agrees(subject, counting) == (1, 1)
    assert not np.array_equal(subject.certify(X)[1], before)


inner = 1.0
"""A global variable with the name of an attribute."""


def test_a_global_with_the_name_of_an_attribute_is_no_part_of_a_network(counting, monkeypatch):
    subject = make_certifier(Scaled())
    subject.certify(X)
    counting()
    monkeypatch.setitem(globals(), "inner", 2.0)
    subject.certify(X)
    assert counting() == (0, 0)


class InTwoTypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(108, 4)

    def forward(self, x):
        return self.last(x.cumsum(2, dtype=torch.float64).flatten(1))


class Conditional(InTwoTypes):
    def __init__(self):
        super().__init__()
        self.register_buffer("switch", torch.ones(1))

    def forward(self, x):
        x = x.flatten(1)
        return torch.cond(self.switch.sum() > 0, self.last, lambda x: 2 * self.last(x), (x,))


@pytest.mark.parametrize("kind", [InTwoTypes, Conditional])
def test_what_fails_in_its_own_precision_is_refused(kind):
    with pytest.raises(ValueError, match="classifier: the network fails"):
        make_certifier(kind()).certify(X)


class DoubleBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.linspace(-1, 1, 432, dtype=torch.float64).view(108, 4))

    def forward(self, x):
        return x.flatten(1) @ self.weight


def test_a_network_of_double_buffers_alone():
    assert make_certifier(DoubleBuffer()).certify(X)[1].shape == (40,)


def test_a_bound_by_the_grid_is_proven_again_where_more_is_allowed(counting):
    subject = make_certifier(conv())
    with configure_proofs(operations=0):
        loose = subject.lipschitz_constants().max()
        subject.lipschitz_constants()
    assert counting()[1] == 1
    with configure_proofs(operations=0, memory=1e9):  # less memory, no more operations
        assert subject.lipschitz_constants().max() == loose
    with configure_proofs(operations=1e15, memory=1e9):
        assert subject.lipschitz_constants().max() == loose
    assert counting()[1] == 0
    tight = subject.lipschitz_constants().max()
    assert counting()[1] == 1
    assert tight < loose
    for limits in ({"operations": 1e15}, {"operations": 0}, {"memory": 1e15}, {"operations": 0, "memory": 1e15}):
        with configure_proofs(**limits):
            assert subject.lipschitz_constants().max() == tight
    assert counting()[1] == 0

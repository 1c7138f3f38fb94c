"""No radius exceeds the exact distance where the network's own float64 arithmetic is far from exact."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from art_robust_plugins import PyTorchLipschitzCertifier
from art_robust_plugins.lipschitz import LipschitzGraph
from art_robust_plugins.lipschitz.norms import Convolution, Linear
from art_robust_plugins.lipschitz.rounding import magnitude_norm
from art_robust_plugins.lipschitz.rules import RULES

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def double(layer, weight, bias=None):
    layer = layer.double()
    layer.weight.data = torch.tensor(weight, dtype=torch.float64).view(layer.weight.shape)
    if bias is not None:
        layer.bias.data = torch.tensor(bias, dtype=torch.float64)
    return layer


class Step(nn.Module):
    """A function as a layer."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Line(nn.Module):
    """(y/2, -y/2) for one number x, with y = f(x) - 1/2, and f(x) = x in exact arithmetic.

    The certificate is then |y| itself, the distance of the boundary.
    """

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)
        self.last = double(nn.Linear(1, 2, bias=False), [0.5, -0.5])

    def forward(self, x):
        return self.last(self.function(x, *self.parts) - 0.5)


def certifier(network, inputs, classes):
    classifier = PyTorchClassifier(
        network, nn.CrossEntropyLoss(), (inputs,), classes, clip_values=(-8, 8), device_type="cpu"
    )
    return PyTorchLipschitzCertifier.from_classifier(classifier)


def shifting_norm(huge):
    norm = nn.BatchNorm1d(1, eps=0.0).double()
    norm.running_mean[:], norm.bias.data[:] = huge, huge
    return norm.eval()


HUGE = 1e13
CANCELLING = {
    "shift": (lambda x: (x + HUGE) - HUGE,),
    "shift of a sum": (lambda x: (x + HUGE).mean(dim=1, keepdim=True) - HUGE,),
    "two layers": (
        lambda x, one, other: other(one(x)),
        double(nn.Linear(1, 1), [1.0], [HUGE]),
        double(nn.Linear(1, 1), [1.0], [-HUGE]),
    ),
    "large weights": (
        lambda x, one, other: other(one(x)),
        double(nn.Linear(1, 2, bias=False), [HUGE + 1, HUGE]),
        double(nn.Linear(2, 1, bias=False), [1.0, -1.0]),
    ),
    "batch normalisation": (lambda x, norm: norm(x), shifting_norm(HUGE)),
    "scaled back": (lambda x: ((1e-3 * x + 1e10) - 1e10) * 1e3,),
    "softplus": (lambda x: functional.softplus(x + 1e13) - 1e13,),
    "leaky": (lambda x: functional.leaky_relu(x + HUGE) - HUGE,),
    "joined": (lambda x: torch.cat([x + HUGE, x + HUGE], dim=1).amax(dim=1, keepdim=True) - HUGE,),
    "split": (lambda x: sum((torch.cat([x, x], dim=1) / 2 + HUGE).split(1, dim=1)) - 2 * HUGE,),
}
INPUTS = np.random.default_rng(0).uniform(0.3, 0.7, (200, 1)).astype(np.float32)


@pytest.mark.parametrize("name", CANCELLING)
def test_radii_of_a_network_that_cancels_are_at_most_the_distance(name):
    function, *modules = CANCELLING[name]
    network = Line(function, *modules).double()
    found, radius = certifier(network, 1, 2).certify(INPUTS)
    exact = [abs(Fraction(float(x)) - Fraction(1, 2)) for x in INPUTS[:, 0]]
    right = [int(x < 0.5) for x in INPUTS[:, 0]]
    proven = radius > 0
    assert all(Fraction(r) <= e for r, e in zip(radius, exact, strict=True))
    assert all(found[proven] == np.array(right)[proven])
    # What float64 computes within the radius has the same class too.
    for sign in (-1, 1):
        moved = torch.from_numpy(INPUTS + 0.0).double() + sign * torch.from_numpy(radius)[:, None]
        assert (network(moved).argmax(dim=1).numpy() == found)[proven].all()
    # The case is not empty (but that torch may order a batch normalisation in another way than its graph).
    computed = 2 * network(torch.from_numpy(INPUTS).double())[:, 0].detach().numpy()
    off = np.abs(computed - (INPUTS[:, 0].astype(np.float64) - 0.5)).max()
    assert off > 1e-5 or name == "batch normalisation"


@pytest.mark.parametrize("name", [name for name in CANCELLING if name not in ("large weights",)])
def test_what_is_clear_despite_of_rounding_is_certified(name):
    function, *modules = CANCELLING[name]
    found, radius = certifier(Line(function, *modules).double(), 1, 2).certify(np.float32([[-7.0], [7.0]]))
    assert found.tolist() == [1, 0]
    assert (radius > 0.5 * np.array([7.5, 6.5])).all() or name in ("split", "joined", "softplus")
    assert (radius > 0).all()


def test_scales_that_cancel_are_no_rounding():
    _, radius = certifier(Line(lambda x: x * 1e20 * 1e-20).double(), 1, 2).certify(INPUTS)
    distance = np.abs(INPUTS[:, 0].astype(np.float64) - 0.5)
    assert (radius <= distance).all()
    np.testing.assert_allclose(radius, distance, rtol=1e-8, atol=1e-9)


def test_an_operation_of_ones_own(monkeypatch):
    operation = torch.ops.aten.erfc.default
    monkeypatch.setitem(RULES, operation, lambda call, x: call.function(x, 2 / math.sqrt(math.pi)))
    network = Line(lambda x: torch.erfc((x + HUGE) - HUGE)).double()
    _, radius = certifier(network, 1, 2).certify(INPUTS)
    boundary = torch.special.erfinv(torch.tensor(0.5, dtype=torch.float64)).item()
    exact = np.abs(INPUTS[:, 0].astype(np.float64) - boundary)
    assert (radius <= exact).all()
    assert radius.max() > 0


def test_norms_of_a_high_order_whose_powers_vanish():
    """In float64 the norm of order 100 of numbers below 5e-4 is 0, and jumps above."""

    def norm(x):
        return torch.linalg.vector_norm(torch.cat([x, torch.zeros_like(x)], dim=1), 100, dim=1, keepdim=True)

    network = Line(lambda x: norm(x) + (0.5 - 8e-4)).double()
    x = np.float32([[4e-4], [7.9e-4], [1.5e-3], [0.5]])
    _, radius = certifier(network, 1, 2).certify(x)
    assert (network(torch.from_numpy(x).double())[0, 1] > 3.9e-4).item()  # 4e-4 is taken for 0
    assert (radius <= np.abs(x[:, 0].astype(np.float64) - 8e-4)).all()
    assert radius[3] > 0.49


def test_logits_that_are_the_input_itself_round_where_it_is_standardised():
    for std, rounds in ((None, False), (0.3, True)):
        graph = LipschitzGraph(nn.Flatten().eval(), (3,), std=std, dtype=torch.float64)
        assert bool(graph.upper_bound().rounding.nodes) == rounds


def repeat_into_one_place(x):
    indices = [None, torch.zeros(500, dtype=torch.long)]
    return torch.ops.aten.index_put(torch.zeros_like(x), indices, x / 500, True)


def test_one_entry_that_is_added_many_times():
    network = Line(repeat_into_one_place).double().eval()
    graph = LipschitzGraph(network, (1,))
    rounding = graph.upper_bound().rounding
    x = torch.rand(64, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    logits, norms = graph.run(x, rounding.nodes)
    errors = [
        abs(2 * Fraction(y) - (Fraction(v) - Fraction(1, 2)))
        for y, v in zip(logits[:, 0].tolist(), x[:, 0].tolist(), strict=True)
    ]
    assert all(error <= 2 * bound for error, bound in zip(errors, rounding.errors(norms).tolist(), strict=True))
    # 500 additions of x / 500, each rounded: more than the few roundings of one operation.
    assert (rounding.errors(norms) > 500 * 2.0**-53 * x[:, 0]).all()


def divide_by_magnitude(x, constant):
    return x / (x.abs() + constant)


WIDE = np.longdouble
FUNCTIONS = {
    "asinh": (torch.asinh, np.arcsinh),
    "softshrink": (
        lambda x: functional.softshrink(x, 0.7),
        lambda x: np.sign(x) * np.maximum(np.abs(x) - WIDE(0.7), 0),
    ),
    "softsign": (functional.softsign, lambda x: x / (1 + np.abs(x))),
    "softsign of another constant": (
        lambda x: divide_by_magnitude(3 * x, 0.25),
        lambda x: (3 * x) / (3 * np.abs(x) + WIDE(0.25)),
    ),
    "hypot": (lambda x: torch.hypot(x, x.flip(1)), lambda x: np.hypot(x, x[:, ::-1])),
    "logaddexp": (lambda x: torch.logaddexp(x, x.flip(1)), lambda x: np.logaddexp(x, x[:, ::-1])),
    "softmax": (
        lambda x: x.softmax(1),
        lambda x: np.exp(x - x.max(1, keepdims=True)) / np.exp(x - x.max(1, keepdims=True)).sum(1, keepdims=True),
    ),
    "cumsum": (lambda x: x.cumsum(1), lambda x: x.cumsum(1)),
    "norm of order 3": (
        lambda x: x + torch.linalg.vector_norm(x, 3, dim=1, keepdim=True),
        lambda x: x + (np.abs(x) ** 3).sum(1, keepdims=True) ** (1 / WIDE(3)),
    ),
}


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_errors_of_functions_are_within_the_bound(name, scale):
    """Against 80-bit arithmetic; the last layer picks entries, so it rounds nothing."""
    function, wide = FUNCTIONS[name]
    last = double(nn.Linear(6, 6, bias=False), np.eye(6).tolist())
    network = nn.Sequential(Step(function), last).eval()
    graph = LipschitzGraph(network, (6,))
    x = scale * np.random.default_rng(0).normal(size=(200, 6))
    rounding = graph.upper_bound().rounding
    logits, norms = graph.run(torch.from_numpy(x), rounding.nodes)
    errors = np.linalg.norm((logits.numpy().astype(WIDE) - wide(x.astype(WIDE))).astype(np.float64), axis=1)
    bounds = rounding.errors(norms).numpy()
    assert (errors <= bounds).all()
    assert 0 < bounds.max() <= 1e-11 * max(1.0, scale)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: functional.threshold(x, 0.2, 0.2),
        lambda x: x.nan_to_num(),
        lambda x: x.kthvalue(2, 1, keepdim=True).values,
        lambda x: x.median(1, keepdim=True).values,
        lambda x: x.scatter(1, torch.zeros(len(x), 1).long(), 7.0),
        lambda x: torch.ops.aten.index_put(x, [None, torch.tensor([1])], torch.zeros(()).double()),
    ],
)
def test_what_only_moves_entries_rounds_nothing(function):
    features = function(torch.zeros(1, 3).double()).shape[1]
    network = nn.Sequential(Step(function), double(nn.Linear(features, 2), torch.ones(2, features).tolist(), [0, 1]))
    moving = LipschitzGraph(network.eval(), (3,)).upper_bound().rounding
    # The last layer's roundings alone: of its input, and of its result.
    assert len(moving.nodes) == 2


def test_ordinary_networks_lose_nothing():
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2)]
    network = nn.Sequential(*convolutions, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 4)).double().eval()
    graph = LipschitzGraph(network, (3, 10, 10))
    bound = graph.upper_bound()
    logits, norms = graph.run(torch.rand(8, 3, 10, 10, dtype=torch.float64), bound.rounding.nodes)
    top = logits.topk(2, dim=1).values
    share = 4 * bound.rounding.errors(norms) / (top[:, 0] - top[:, 1])
    assert 0 < float(share.min()) <= float(share.median()) < 1e-10
    assert 0 < 4 * bound.rounding.slope < 1e-10 * float(bound.pairwise.max())


@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1.0, 1e4, 1e8]))
@settings(max_examples=12, deadline=None, derandomize=True)
def test_errors_are_within_the_bound(seed, scale):
    """Against the same network in exact arithmetic."""
    rng = np.random.default_rng(seed)
    first, last = rng.normal(size=(5, 4)) * scale, rng.normal(size=(3, 5))
    shift, back = rng.normal(size=5) * scale**2, rng.normal(size=3)
    network = nn.Sequential(nn.Linear(4, 5), nn.LeakyReLU(0.3), nn.Linear(5, 3)).double().eval()
    for layer, weight, bias in ((network[0], first, shift), (network[2], last, back)):
        layer.weight.data, layer.bias.data = torch.from_numpy(weight), torch.from_numpy(bias)
    x = rng.random((3, 4))
    graph = LipschitzGraph(network, (4,))
    rounding = graph.upper_bound().rounding
    logits, norms = graph.run(torch.from_numpy(x), rounding.nodes)
    errors = rounding.errors(norms)

    def exact(weight, bias, vector):
        rows = [[Fraction(float(entry)) for entry in row] for row in weight]
        return [
            sum(a * b for a, b in zip(row, vector, strict=True)) + Fraction(float(c))
            for row, c in zip(rows, bias, strict=True)
        ]

    slope = Fraction(0.3)
    for sample, computed, error in zip(x, logits.tolist(), errors.tolist(), strict=True):
        hidden = [max(h, slope * h) for h in exact(first, shift, [Fraction(float(entry)) for entry in sample])]
        difference = [float(Fraction(c) - e) for c, e in zip(computed, exact(last, back, hidden), strict=True)]
        assert np.linalg.norm(difference) <= error
    assert float(errors.max()) <= 1e-10 * scale**2


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None, derandomize=True)
def test_the_norm_of_magnitudes(seed):
    rng = np.random.default_rng(seed)
    groups, transposed = int(rng.integers(1, 3)), bool(rng.integers(2))
    mode = "zeros" if transposed else str(rng.choice(["zeros", "circular", "reflect", "replicate"]))
    weight = torch.from_numpy(rng.normal(size=(2 * groups, 3, 3)))
    operator = Convolution(
        weight, (5,), padding=1, stride=int(rng.integers(1, 3)), groups=groups, transposed=transposed, padding_mode=mode
    )
    positive = operator.with_weight(weight.abs())
    columns = torch.eye(int(np.prod(operator.input_shape)), dtype=torch.float64).view(-1, *operator.input_shape)
    matrix = positive.apply(columns).flatten(1)
    assert magnitude_norm(operator) >= float(torch.linalg.matrix_norm(matrix, 2))
    linear = torch.from_numpy(rng.normal(size=(3, 7)))
    assert magnitude_norm(Linear(linear)) >= float(torch.linalg.matrix_norm(linear.abs(), 2))

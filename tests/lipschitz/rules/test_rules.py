"""Each rule against random pairs of points, which no bound may undercut, and against a pair that attains it."""

import math

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from art_robust_plugins.lipschitz import LipschitzGraph, NoLipschitzRuleError, PyTorchLipschitzCertifier
from art_robust_plugins.training import LipschitzMarginTrainer

SHAPE = (2, 3, 4)
ROUNDING = 1e-8
"""Of a difference quotient in float64, of numbers up to 100 and steps of 1e-5."""


class Network(nn.Module):
    """A function of the input, before a flat linear layer."""

    def __init__(self, function, shape, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules).double().eval()
        self.last = nn.Linear(function(torch.zeros(1, *shape).double(), *self.parts).numel(), 2).double()

    def inner(self, x):
        return self.function(x, *self.parts)

    def forward(self, x):
        return self.last(self.inner(x).flatten(1))


def analyse(function, *modules, shape=SHAPE):
    network = Network(function, shape, *modules).eval()
    graph = LipschitzGraph(network, shape)
    # The last layer is linear: what comes before it is bounded by the norm of all that is before it and merged scales.
    bound = graph.upper_bound()
    estimate = graph.estimate()
    assert estimate.lipschitz.item() <= bound.lipschitz.item() * (1 + 1e-6)
    return network, bound


def bound_of(function, *modules, shape=SHAPE):
    """The bound of the function itself: |x| after it has slope 1 and is merged with nothing."""
    _, bound = analyse(lambda x, *parts: function(x, *parts).abs(), *modules, shape=shape)
    return bound.before_last.item()


def largest_slope(function, shape, *modules, centres=(0.0,), seed=0):
    """The largest slope that a search over pairs of points finds, from singular directions of Jacobians."""
    generator = torch.Generator().manual_seed(seed)
    parts = [module.double().eval() for module in modules]

    def flat(x):
        return function(x.view(1, *shape), *parts).flatten()

    largest = 0.0
    starts = [torch.full((math.prod(shape),), centre, dtype=torch.float64) for centre in centres]
    starts += [s * torch.randn(math.prod(shape), generator=generator, dtype=torch.float64) for s in (1e-3, 0.3, 1, 5)]
    for x in starts:
        jacobian = torch.autograd.functional.jacobian(flat, x)
        direction = torch.linalg.svd(jacobian.nan_to_num(), full_matrices=False)[2][0]
        for step in (1e-5, 1e-2, 1.0):
            for other in (direction, torch.randn(len(x), generator=generator, dtype=torch.float64)):
                y = x + step * other / other.norm()
                largest = max(largest, ((flat(y) - flat(x)).norm() / (y - x).norm()).item())
    return largest


def layer(module, value=None):
    if value is not None:
        nn.init.constant_(module.weight, value)
    return module


def write(x, indices, values, accumulate=False):
    return torch.ops.aten.index_put(x, list(indices), values, accumulate)


ATTAINED = {
    "layer norm": (lambda x: functional.layer_norm(x, (4,), eps=1e-2), (), 10),
    "layer norm over several axes": (lambda x: functional.layer_norm(x, (2, 3, 4), eps=1e-2), (), 10),
    "layer norm with weights": (lambda x, n: n(x), (layer(nn.LayerNorm(4, eps=1e-2), -3.0),), 30),
    "layer norm without bias": (lambda x, n: n(x), (layer(nn.LayerNorm((3, 4), eps=1.0, bias=False), 2.0),), 2),
    "layer norm of one number": (lambda x: functional.layer_norm(x[..., :1], (1,), eps=1e-2) + x[..., :1], (), 1),
    "group norm": (lambda x, n: n(x), (layer(nn.GroupNorm(2, 2, eps=1e-2), 0.5),), 5),
    "group norm of one group": (lambda x, n: n(x), (nn.GroupNorm(1, 2, eps=1e-2, affine=False),), 10),
    "instance norm": (lambda x, n: n(x), (layer(nn.InstanceNorm2d(2, eps=1e-2, affine=True), 2.0),), 20),
    "instance norm with statistics": (lambda x, n: n(x), (nn.InstanceNorm2d(2, eps=3, track_running_stats=True),), 0.5),
    "rms norm": (lambda x, n: n(x), (layer(nn.RMSNorm(4, eps=1e-2), 3.0),), 30),
    "rms norm over axes": (lambda x: functional.rms_norm(x, (3, 4), eps=1e-4), (), 100),
    "softmax of two": (lambda x: x.softmax(1), (), 0.5),
    "softmin of two": (lambda x: functional.softmin(x, -3), (), 0.5),
    "softmax of one": (lambda x: x[..., :1].softmax(3) + x[..., :1], (), 1),
    "softmax": (lambda x: (x + torch.tensor([0.0, 0.0, -90.0, -90.0])).softmax(3), (), 0.5),
    "log-softmax": (lambda x: (x + torch.tensor([0.0, -90.0, -90.0, -90.0])).log_softmax(-1), (), 2),
    "log-softmax of three": (lambda x: (x - torch.tensor([0.0, 90.0, 90.0])[:, None]).log_softmax(2), (), 3**0.5),
    "logsumexp": (lambda x: (x - torch.tensor([0.0, 90.0, 90.0, 90.0])).logsumexp(3), (), 1),
    "logaddexp": (lambda x: torch.logaddexp(x, torch.full((4,), -90.0)), (), 1),
    "hypot": (lambda x: torch.hypot(x[:, 0], x[:, 1]), (), 1),
    "vector norm": (lambda x: torch.linalg.vector_norm(x + 1, dim=3), (), 1),
    "norm of a negative axis": (lambda x: (x + 1).norm(dim=-2, keepdim=True), (), 1),
    "norm of axes": (lambda x: torch.linalg.matrix_norm(x + 1), (), 1),
    "norm of order 1": (lambda x: (x + 9).norm(p=1, dim=(1, 2, 3), keepdim=True), (), 24**0.5),
    "norm of order 3/2": (lambda x: torch.linalg.vector_norm(x + 9, 1.5, dim=3), (), 4 ** (1 / 6)),
    "norm of order infinity": (lambda x: torch.linalg.vector_norm(x + torch.arange(4), math.inf, dim=3), (), 1),
    "standard deviation": (lambda x: (x + torch.arange(4)).std(3), (), 3**-0.5),
    "biased standard deviation": (lambda x: (x + torch.arange(3)[:, None]).std(2, correction=0), (), 3**-0.5),
    "median": (lambda x: (x + torch.arange(3)[:, None]).median(2).values, (), 1),
    "cumsum": (lambda x: x.cumsum(3), (), 1 / (2 * math.sin(math.pi / 18))),
    "cumsum of a negative axis": (lambda x: x.cumsum(-3), (), (1 + 5**0.5) / 2),
    "cumsum of one": (lambda x: x[..., :1].cumsum(3), (), 1),
    "softsign": (functional.softsign, (), 1),
    "softsign with another constant": (lambda x: x / (x.abs() + 0.25), (), 4),
    "softsign with several": (lambda x: x / (torch.tensor([0.5, 1, 1, 1]) + x.abs() + 0.5), (), 1),
    "softshrink": (lambda x: functional.softshrink(x + 2, 0.7), (), 1),
    "rrelu": (lambda x: functional.rrelu(x + 1), (), 1),
    "steep rrelu": (lambda x: functional.rrelu(x - 1, 2, 4), (), 3),
    "threshold": (lambda x: functional.threshold(x + 2, 1.5, 1.5), (), 1),
    "asinh": (torch.asinh, (), 1),
    "log-sigmoid": (lambda x: functional.logsigmoid(x - 90), (), 1),
    "relu6": (lambda x: functional.relu6(x + 1), (), 1),
    "entries overwritten": (lambda x: write(x, (None, None, torch.tensor([0, 2])), torch.zeros(()).double()), (), 1),
    "entries written": (
        lambda x: write(torch.zeros_like(x), (None, None, torch.tensor([2, 0])), x[:, :, :2]),
        (),
        1,
    ),
    "entries written and kept": (
        lambda x: write(x, (None, None, torch.tensor([2])), x[:, :, :1]),
        (),
        2**0.5,
    ),
    "one entry written to several places": (
        lambda x: write(torch.zeros_like(x), (None, None, None, torch.tensor([0, 1, 3])), x[..., :1]),
        (),
        3**0.5,
    ),
    "entries added": (
        lambda x: write(torch.zeros_like(x), (None, None, None, torch.tensor([1, 1, 1, 1])), x, accumulate=True),
        (),
        2,
    ),
    "entries added to themselves": (lambda x: x.index_add(2, torch.tensor([0, 1, 2]), x), (), 2),
    "entries filled": (lambda x: x.index_fill(3, torch.tensor([0]), 5.0), (), 1),
    "entries copied": (lambda x: x.index_copy(3, torch.tensor([3]), x[..., :1]), (), 2**0.5),
    "entries scattered": (
        lambda x: torch.zeros_like(x).scatter(
            2, torch.tensor([2, 1]).view(1, 1, 2, 1).expand(len(x), 2, 2, 4), x[:, :, :2]
        ),
        (),
        1,
    ),
    "a number scattered": (lambda x: x.scatter(3, torch.zeros(len(x), 2, 3, 1).long(), 7.0), (), 1),
    "entries scattered and added": (
        lambda x: torch.zeros_like(x).scatter_add(3, torch.zeros(len(x), 2, 3, 4).long(), x),
        (),
        2,
    ),
    "windows": (lambda x: x.unfold(3, 2, 1), (), 2**0.5),
    "diagonal": (lambda x: x.diagonal(dim1=2, dim2=3), (), 1),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ATTAINED)
def test_bounds_are_attained(name):
    function, modules, expected = ATTAINED[name]
    bound = bound_of(function, *modules)
    slope = largest_slope(function, SHAPE, *modules)
    assert bound == pytest.approx(expected, rel=1e-6)
    assert slope <= bound * (1 + ROUNDING)
    assert slope >= expected * (1 - 1e-4)


def interpolate(**settings):
    return lambda x: functional.interpolate(x, **settings)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (interpolate(scale_factor=2, mode="linear"), (2, 5)),
        (interpolate(size=3, mode="linear", align_corners=True), (2, 7)),
        (interpolate(scale_factor=(2, 1.5), mode="bilinear"), (1, 3, 4)),
        (interpolate(scale_factor=1.7, mode="bilinear", recompute_scale_factor=True), (1, 3, 4)),
        (interpolate(size=(5, 2), mode="bilinear", align_corners=True), (2, 3, 4)),
        (interpolate(size=(5, 6), mode="bicubic"), (1, 3, 4)),
        (interpolate(scale_factor=2, mode="bicubic", align_corners=True), (1, 4, 3)),
        (interpolate(size=(2, 3), mode="bilinear", antialias=True), (1, 6, 5)),
        (interpolate(scale_factor=0.5, mode="bicubic", antialias=True), (1, 6, 4)),
        (interpolate(size=(2, 1), mode="bilinear", antialias=True), (1, 6, 1)),
        (interpolate(size=(3, 4, 2), mode="trilinear"), (1, 2, 3, 4)),
        (interpolate(scale_factor=2, mode="trilinear", align_corners=True), (1, 2, 1, 3)),
        (interpolate(size=5, mode="nearest-exact"), (2, 3)),
        (interpolate(scale_factor=1.5, mode="nearest-exact"), (1, 3, 4)),
        (interpolate(size=(2, 5), mode="area"), (1, 4, 3)),
        (nn.Upsample(scale_factor=2, mode="bilinear"), (2, 2, 3)),
        (lambda x: functional.fold(functional.unfold(x, 2), (4, 4), 2), (1, 4, 4)),
    ],
)
def test_linear_maps(function, shape):
    basis = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    norm = torch.linalg.matrix_norm(function(basis).flatten(1), 2).item()
    assert norm * (1 - 1e-12) <= bound_of(function, shape=shape) <= norm * (1 + 1e-6)


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6), groups=st.sampled_from([1, 2, 4]), affine=st.booleans(), eps=st.floats(1e-4, 1))
def test_normalisations_of_any_weights(seed, groups, affine, eps):
    torch.manual_seed(seed)
    modules = [
        nn.GroupNorm(groups, 4, eps=eps, affine=affine),
        nn.LayerNorm(3, eps=eps, elementwise_affine=affine),
        nn.InstanceNorm1d(4, eps=eps, affine=affine),
    ]
    for module in modules:
        if affine:
            nn.init.normal_(module.weight)
        bound = bound_of(lambda x, n: n(x), module, shape=(4, 3))
        assert largest_slope(lambda x, n: n(x), (4, 3), module, seed=seed) <= bound * (1 + ROUNDING)
        weight = module.weight.abs().max().item() if affine else 1
        assert bound == pytest.approx(weight / eps**0.5, rel=1e-6)


@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 10**6), axis=st.sampled_from([1, 2, -1, -2]), order=st.floats(1, 9))
def test_reductions_along_any_axis(seed, axis, order):
    for function in (
        lambda x: x.softmax(axis),
        lambda x: 2 * x.log_softmax(axis),
        lambda x: x.cumsum(axis),
        lambda x: torch.linalg.vector_norm(x, order, dim=axis),
        lambda x: x.std(axis, keepdim=True),
    ):
        assert largest_slope(function, (3, 4), seed=seed, centres=()) <= bound_of(function, shape=(3, 4)) * (
            1 + ROUNDING
        )


# Networks


def test_log_softmax_leaves_the_differences_of_logits():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double().eval()
    plain = LipschitzGraph(network, (6,)).upper_bound()
    for end in (nn.LogSoftmax(1), nn.LogSoftmax(-1), nn.Sequential(nn.LogSoftmax(1), nn.LogSoftmax(1))):
        bound = LipschitzGraph(nn.Sequential(network, end).eval(), (6,)).upper_bound()
        assert torch.equal(bound.pairwise, plain.pairwise)
        assert torch.equal(bound.before_last, plain.before_last)
        assert bound.lipschitz >= plain.lipschitz * 3**0.5
    without = nn.Sequential(network[:3], nn.Tanh()).eval()
    bent = LipschitzGraph(without, (6,)).upper_bound()
    ended = LipschitzGraph(nn.Sequential(without, nn.LogSoftmax(1)).eval(), (6,)).upper_bound()
    assert torch.equal(ended.pairwise, bent.pairwise)


def test_a_weight_of_a_normalisation_is_merged_with_the_next_layer():
    torch.manual_seed(0)
    norm, last = nn.LayerNorm(4, eps=1e-2), nn.Linear(4, 3)
    nn.init.normal_(norm.weight)
    network = nn.Sequential(nn.Flatten(), norm, nn.Linear(4, 4), nn.ReLU(), last).double().eval()
    rows = LipschitzGraph(network, (4,)).upper_bound().operators
    merged = torch.linalg.matrix_norm(network[2].weight * norm.weight / 0.1, 2).item()
    assert [row.kind for row in rows] == ["Linear", "Linear"]
    assert rows[0].norm == pytest.approx(merged, rel=1e-7)
    alone = nn.Sequential(nn.Flatten(), norm, nn.ReLU(), last).double().eval()
    rows = LipschitzGraph(alone, (4,)).upper_bound().operators
    assert [(row.kind, row.module) for row in rows] == [("Scale", "1"), ("Linear", "3")]


def test_gradients_reach_the_weights_of_normalisations():
    first, second = [nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()], [nn.Linear(16, 4), nn.LayerNorm(4)]
    network = nn.Sequential(*first, nn.Flatten(), *second, nn.RMSNorm(4, 1e-3))
    LipschitzGraph(network, (1, 4, 4)).estimate().lipschitz.backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if name.endswith("weight"))
    assert all(bool(p.grad.abs().max() > 0) for p in (network[1].weight, network[5].weight, network[0].weight))


def test_networks_with_normalisations_train_and_certify():
    torch.manual_seed(0)
    norms = [nn.GroupNorm(2, 2, eps=1.0), nn.LayerNorm(8, eps=1.0)]
    first, last = nn.Conv1d(1, 2, 3), [nn.Linear(8, 2), nn.LogSoftmax(1)]
    network = nn.Sequential(first, norms[0], nn.ReLU(), nn.Flatten(), norms[1], *last)
    optimizer = torch.optim.SGD(network.parameters(), 0.5)
    classifier = PyTorchClassifier(network, nn.NLLLoss(), (1, 6), 2, optimizer, clip_values=(0, 1))
    y = np.arange(16) % 2
    x = np.repeat(y, 6).reshape(16, 1, 6).astype(np.float32) * np.linspace(0, 1, 6, dtype=np.float32)
    LipschitzMarginTrainer(classifier, c=0.05).fit(x, y, nb_epochs=20, verbose=False)
    certifier = PyTorchLipschitzCertifier.from_classifier(classifier)
    prediction, radius = certifier.certify(x)
    assert (prediction == y).all()
    assert radius.min() > 0.01
    assert "1  " in str(certifier.lipschitz_report())


REFUSED = {
    "layer norm over the batch": (lambda x: functional.layer_norm(x, (1, 2, 3, 4)), "axis 0"),
    "rms norm over the batch": (lambda x: functional.rms_norm(x, tuple(x.shape), eps=1e-3), "axis 0"),
    "softmax over the batch": (lambda x: x.softmax(0), "axis 0"),
    "log-softmax over the batch": (lambda x: x.log_softmax(-4), "axis 0"),
    "norm over the batch": (lambda x: x - torch.linalg.vector_norm(x), "axis 0"),
    "norm along the batch": (lambda x: x - x.norm(dim=0), "axis 0"),
    "deviation of all": (lambda x: x - x.std(), "axis 0"),
    "cumsum over the batch": (lambda x: x.cumsum(0), "axis 0"),
    "write to the first sample": (lambda x: write(x, (torch.tensor([0]),), torch.zeros(()).double()), "axis 0"),
    "scatter to the first sample": (lambda x: x.scatter(0, torch.zeros(1, 2, 3, 4).long(), x), "axis 0"),
    "add to the first sample": (lambda x: x.index_add(0, torch.tensor([0]), x[:1]), "axis 0"),
    "layer norm without eps": (lambda x: functional.layer_norm(x + torch.arange(4), (4,), eps=0.0), "eps 0.0"),
    "group norm without eps": (lambda x: functional.group_norm(x + torch.arange(4), 2, eps=0.0), "eps 0.0"),
    "rms norm with the type's eps": (lambda x: functional.rms_norm(x, (4,)), "eps is None"),
    "norm of order 1/2": (lambda x: torch.linalg.vector_norm(x, 0.5, dim=3), "order 0.5"),
    "number of entries": (lambda x: torch.linalg.vector_norm(x, 0, dim=3), "order 0"),
    "deviation of two entries less two": (
        lambda x: x[..., :2].std(3, correction=2),
        "divisor",
    ),
    "threshold that jumps": (lambda x: functional.threshold(x, 0.1, 0.0), "jumps"),
    "hardshrink": (functional.hardshrink, "hardshrink.*may jump"),
    "random slopes": (lambda x: functional.rrelu(x, training=True), "rrelu"),
    "quotient by another magnitude": (lambda x: x / (1 + x.flip(3).abs()), "a division"),
    "quotient by a magnitude of zero": (lambda x: x / (x.abs() + torch.tensor([0.0, 1, 1, 1])), "a division|NaN"),
    "several values to one place": (
        lambda x: write(torch.zeros_like(x), (None, None, None, torch.tensor([0, 0, 1, 2])), x),
        "several values to one place",
    ),
    "places of the input": (
        lambda x: x.scatter(3, x.argsort(3), x),
        "indices depend|may jump",
    ),
    "square": (lambda x: x * x, "product of two activations"),
    "power": (torch.square, "slope grows"),
    "exponential": (torch.exp, "slope grows"),
    "root": (lambda x: x.abs().sqrt(), "slope is infinite"),
    "logarithm": (lambda x: x.abs().log1p(), "slope is infinite|log1p"),
    "gate": (lambda x: functional.glu(x, 3), "product"),
    "product": (lambda x: x.prod(3), "product"),
    "comparison": (lambda x: (x > 0).double(), "may jump"),
    "rounding": (torch.round, "may jump"),
    "normalised to length 1": (lambda x: functional.normalize(x, dim=1), "a division"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    function, message = REFUSED[name]
    with pytest.raises(ValueError, match=message) as caught:
        LipschitzGraph(Network(function, SHAPE).eval(), SHAPE)
    assert isinstance(caught.value, NoLipschitzRuleError) or "NaN" in str(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.transpose(0, 1).cumsum(1).transpose(0, 1),
        lambda x: x.flatten().cumsum(0).view(x.shape),
        lambda x: x.transpose(0, 2).softmax(2).transpose(0, 2) + x,
        lambda x: x - torch.linalg.vector_norm(x.flatten()),
    ],
)
def test_a_batch_on_another_axis_is_not_mixed_either(function):
    with pytest.raises(ValueError, match="samples together"):
        LipschitzGraph(Network(function, SHAPE).eval(), SHAPE)

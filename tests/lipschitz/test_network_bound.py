"""What a network's bound is made of: norms of operations, merged layers, pairs of logits, shares."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from art_robust_plugins.lipschitz import LipschitzGraph, NoLipschitzRuleError

from .architectures import IMAGE, make_network, with_statistics
from .builders import Network, bound_before_last, head


def test_logits_without_an_axis_of_features():
    """Rows of one weight vector, one for each class: a difference of two logits is that of two places."""
    network = Network(lambda x, layer: functional.linear(x[:, 0], layer.weight[0]), nn.Linear(8, 1, bias=False)).eval()
    bound = LipschitzGraph(network, IMAGE).upper_bound()
    norm = torch.linalg.vector_norm(network.parts[0].weight.double()).item()
    assert bound.pairwise.shape == (8, 8)
    assert bound.lipschitz.item() == pytest.approx(norm, rel=1e-6)
    assert bound.pairwise[0, 1].item() == pytest.approx(2**0.5 * norm, rel=1e-6)


def test_numbers_are_those_that_the_network_computes_with():
    """Python's numbers are float64; constants of a float64 network keep the type in which it computes with them."""
    weight = head(192)

    def bound(function):
        network = Network(lambda x, last: last(function(x)), weight).double().eval()
        return LipschitzGraph(network, IMAGE).upper_bound().lipschitz.item()

    whole = bound(lambda x: x)
    for factor, found in {
        0.7: bound(lambda x: torch.relu(x) * 0.7),
        1e-50: bound(lambda x: torch.relu(x) * 1e-50),
        1 / 1e50: bound(lambda x: torch.relu(x) / 1e50),
    }.items():
        assert factor * whole * (1 - 1e-12) <= found <= factor * whole * (1 + 1e-8)
    tenth = (torch.ones(1, dtype=torch.float32) * 0.1).double().item()
    assert bound(lambda x: torch.relu(x) * (torch.ones(1, dtype=torch.float32) * 0.1)) >= tenth * whole
    lost = torch.full((1,), 2.0**24)  # one more is the same in float32
    assert bound(lambda x: torch.relu(x) * (1 - ((lost + 1) - lost))) == pytest.approx(whole, rel=1e-8)


def test_pairs_of_logits_of_small_weights_and_large_values():
    network = Network(lambda x, last: last(torch.relu(x * 1e80).flatten(1)), nn.Linear(192, 2, bias=False))
    network = network.double().eval()
    network.parts[0].weight.data = torch.zeros(2, 192, dtype=torch.float64)
    network.parts[0].weight.data[0, 0] = 1e-80
    with pytest.raises(NoLipschitzRuleError, match="constants below 1e-100"):
        LipschitzGraph(Network(lambda x, net: net(x * 1e-150), network).eval(), IMAGE).upper_bound()
    assert LipschitzGraph(network, IMAGE).upper_bound().pairwise[0, 1].item() == pytest.approx(1, rel=1e-6)
    network.parts[0].weight.data *= 1e-90  # its squares are no numbers any more
    with pytest.raises(NoLipschitzRuleError, match="constants below 1e-100"):
        LipschitzGraph(network, IMAGE).upper_bound()


def test_known_bounds():
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 3, bias=False)).eval()
    first, last = torch.diag(torch.tensor([3.0, 4.0])), torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    network[1].weight.data, network[3].weight.data = first, last
    bound = LipschitzGraph(network, (1, 2)).upper_bound()
    assert bound.before_last.item() == pytest.approx(4, rel=1e-7)
    expected = 4 * torch.tensor([[0, 2**0.5, 0.894427191], [2**0.5, 0, 0.632455532], [0.894427191, 0.632455532, 0]])
    torch.testing.assert_close(bound.pairwise, expected.double(), rtol=1e-6, atol=0)
    assert bound.lipschitz.item() == pytest.approx(4 * torch.linalg.matrix_norm(last, 2).item(), rel=1e-6)
    assert [row.kind for row in bound.operators] == ["Linear", "Linear"]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: torch.cat([x, x], 1), 2**0.5),
        (lambda x: torch.cat([x[:, :1], x[:, 1:]], 1), 1),
        (lambda x: torch.cat([x[:, :2], x[:, 1:]], 1), 2**0.5),
        (lambda x: torch.cat([x[:, :1], torch.zeros_like(x)], 1), 1),
        (lambda x: torch.cat([torch.maximum(x[:, :1], x[:, 1:2]), torch.minimum(x[:, 1:2], x[:, :1])], 1), 1),
        (lambda x: torch.cat([torch.relu(x), torch.tanh(x)], 1), 2**0.5),
        (lambda x: x + 2 * torch.relu(x), 3),
        (lambda x: torch.cat([torch.maximum(*x.split([1, 2], 1)), torch.minimum(*x.split([1, 2], 1))], 1), 6**0.5),
        (
            lambda x: torch.cat([f(*x[:, :2].split(1, 1)) for f in (torch.minimum, torch.maximum, torch.maximum)], 1),
            2**0.5,
        ),
        (lambda x: x - x.mean((2, 3), keepdim=True), 2),
        (lambda x: x + 3 * x.mean((2, 3), keepdim=True), 4),
        (lambda x: x.mean((2, 3), keepdim=True) * torch.full((8, 8), 0.5), 0.5),
        (lambda x: x.mean((2, 3)), 1 / 8),
        (lambda x: functional.adaptive_avg_pool2d(x, 1), 1 / 8),
        (lambda x: functional.avg_pool2d(x, 2), 1 / 2),
        (lambda x: functional.max_pool2d(x, 3, 2), 2),
        (lambda x: functional.max_pool2d(x, 2), 1),
        (lambda x: x.mean(1, keepdim=True).expand(-1, 3, -1, -1), 1),
        (lambda x: functional.pad(x, (2, 2, 2, 2)), 1),
        (lambda x: functional.pad(x, (1, 0, 0, 0), mode="replicate"), 2**0.5),
        (lambda x: x[:, :, [0, 0, 0, 1]], 3**0.5),
        (lambda x: x.gather(1, torch.zeros(len(x), 2, 8, 8, dtype=torch.long)), 2**0.5),
        (lambda x: x.masked_fill(torch.eye(8) > 0, 0.0), 1),
        (lambda x: x[:, :, 1:] - x[:, :, :-1], 2),
        (lambda x: functional.unfold(x, 3), 3),
        (lambda x: functional.softplus(x, beta=2), 1),
        (lambda x: functional.elu(x, alpha=0.5), 1),
        (lambda x: x.clamp(max=1) * torch.arange(8), 7),
        (lambda x: functional.interpolate(x, scale_factor=2), 2),
        (lambda x: (x - 3) / -0.25, 4),
        (torch.sigmoid, 0.25),
        (functional.selu, 1.7581),
        (lambda x: functional.celu(x, 2.0), 1),
        (lambda x: torch.clamp(x, 0, 1), 1),
        # Constants are no part of a slope, but they tell values apart: these are not sorted pairs of one another.
        (lambda x: torch.cat([torch.maximum(x[:, :1], x[:, 1:2]), torch.minimum(x[:, :1], 1 + x[:, 1:2])], 1), 3**0.5),
        (lambda x: torch.cat([torch.maximum(x, 2 * x), torch.minimum(x + 1, 2 * x)], 1), 10**0.5),
        (
            lambda x: torch.cat(
                [
                    torch.maximum(functional.pad(x, (1, 0), value=0.0), functional.pad(x, (0, 1))),
                    torch.minimum(functional.pad(x, (1, 0), value=9.0), functional.pad(x, (0, 1))),
                ],
                1,
            ),
            2,
        ),
        # One number stands for all axes.
        (lambda x: functional.max_pool2d(x, [3], [1]), 3),
        (lambda x: functional.max_pool2d(x, 3, [1]), 3),
        (lambda x: functional.max_pool3d(x[:, None], [2], [1]), 8**0.5),
        (lambda x: functional.avg_pool2d(x, [2], [2], divisor_override=1), 2),
        (lambda x: functional.avg_pool2d(x, 2, divisor_override=-1), 2),
        (lambda x: functional.avg_pool3d(x[:, None], [1, 2, 2], [1, 2, 2]), 0.5),
        (lambda x: functional.conv2d(x, torch.full((1, 3, 2, 2), 0.5), stride=[2], padding=[0]), 3**0.5),
        # Whole numbers, in types too small for their products and magnitudes.
        (lambda x: x * torch.tensor(200, dtype=torch.uint8) * torch.tensor(200, dtype=torch.uint8), 40000),
        (lambda x: x * torch.tensor(-128, dtype=torch.int8), 128),
        (lambda x: x / torch.tensor([2], dtype=torch.int8), 0.5),
        (lambda x: x * torch.tensor([True, False] * 4), 1),
        (lambda x: x / torch.full_like(x, 2.7, dtype=torch.int64), 0.5),
        (lambda x: x * (torch.zeros_like(x, dtype=torch.uint8) - 1), 255),
        (lambda x: torch.rsub(x, 1, alpha=2), 2),
        (lambda x: torch.rsub(x, x.mean(1, keepdim=True), alpha=2), 2 + 3**0.5 * 3**-0.5),
        (lambda x: functional.interpolate(x[:, :, :1, :2], (1, 82)), 42**0.5),
        (lambda x: functional.linear(x, torch.full((8,), 2.0)), 32**0.5),
        (lambda x: 2 * functional.linear(x, torch.full((8,), 2.0)), 128**0.5),
    ],
)
def test_norms_of_operations(function, expected):
    assert bound_before_last(function) == pytest.approx(expected, rel=1e-6)


def test_convolutions_are_merged_with_what_is_linear_around_them():
    conv, norm = nn.Conv2d(3, 3, 3, padding=1), with_statistics(nn.BatchNorm2d(3))
    deviation = torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)

    def true_norm(function):
        basis = torch.eye(192).double().view(192, *IMAGE)
        zero = function(torch.zeros(1, *IMAGE).double())
        return torch.linalg.matrix_norm((function(basis) - zero).flatten(1), 2).item()

    for function in (
        lambda x, conv, norm: norm(conv(x / deviation)),
        lambda x, conv, norm: x + norm(conv(x)),
        lambda x, conv, norm: 2 * x - conv(x),
        lambda x, conv, norm: conv(functional.pad(x, (1, 2, 0, 1), mode="constant")),
        lambda x, conv, norm: conv(norm(x)) * 3,
    ):
        truth = true_norm(lambda x, f=function: f(x, conv.double().eval(), norm.double().eval()))
        assert truth <= bound_before_last(function, conv.float(), norm.float()) <= truth * (1 + 1e-5)


def test_input_is_divided_by_std():
    network = make_network("functional_relu")
    std = torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    inside = Network(lambda x, inner: inner((x - 0.5) / std), network).eval()
    given = LipschitzGraph(network, IMAGE, std=std).upper_bound().lipschitz
    assert given.item() == pytest.approx(LipschitzGraph(inside, IMAGE).upper_bound().lipschitz.item(), rel=1e-6)
    assert given.item() > LipschitzGraph(network, IMAGE).upper_bound().lipschitz.item() * 3
    for wrong in (0.0, [0.1, 0.2], -torch.ones(3, 1, 1), math.nan):
        with pytest.raises(ValueError, match="std: got"):
            LipschitzGraph(network, IMAGE, std=wrong)


def test_a_std_that_is_constant_along_an_axis_is_merged_as_one_number():
    network = make_network("functional_relu")
    std = torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    short, full = (LipschitzGraph(network, IMAGE, std=values).upper_bound() for values in (std, std.expand(IMAGE)))
    assert torch.equal(short.lipschitz, full.lipschitz)
    pixels = std.repeat(1, 8, 8)
    pixels[0, 3, 3] = 0.1
    assert LipschitzGraph(network, IMAGE, std=pixels).upper_bound().lipschitz > full.lipschitz


@pytest.mark.parametrize("name", ["functional_relu", "residual", "dense_concat", "reused_module"])
def test_shares_are_elasticities(name):
    network = make_network(name)
    graph = LipschitzGraph(network, IMAGE)
    rows = graph.upper_bound().operators
    # A weight stands for all calls of its module, and for the batch norm after it.
    shares = [sum(row.share for row in rows if row.module == name) for name in dict.fromkeys(r.module for r in rows)]
    norms = {row.module: row.norm for row in rows}
    expected = []
    weights = [module for module in network.parts.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for module, norm in zip(weights, norms.values(), strict=True):
        original, bounds = module.weight.data, []
        for factor in (1.001, 1 / 1.001):
            module.weight.data = original * factor
            bounds.append(graph.upper_bound().lipschitz.item())
        module.weight.data = original
        elasticity = math.log(bounds[0] / bounds[1]) / (2 * math.log(1.001))
        expected.append(elasticity * math.log(norm))
    total = sum(abs(value) for value in expected)
    assert shares == pytest.approx([value / total for value in expected], abs=1e-4)
    assert sum(abs(row.share) for row in rows) == pytest.approx(1)


def test_shares_of_a_chain_and_of_nothing():
    network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    network[1].weight.data, network[3].weight.data = torch.eye(2) * 8, torch.eye(2) * 0.5
    graph = LipschitzGraph(network, (1, 2))
    with torch.inference_mode():
        shares = [row.share for row in graph.upper_bound().operators]
    assert shares == pytest.approx([0.75, -0.25])
    network[3].weight.data.zero_()
    assert [row.share for row in graph.upper_bound().operators] == [0, 0]
    assert not any(p.grad is not None for p in network.parameters())

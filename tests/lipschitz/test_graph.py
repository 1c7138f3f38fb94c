"""The graph of a network: its bound holds against a search, and what has no bound is refused by name."""

import math

import numpy as np
import pytest
import torch
from builders import make_linear
from torch import nn
from torch.nn import functional

from art_robust_plugins import insert_weight_maps
from art_robust_plugins.lipschitz import LipschitzGraph, NoLipschitzRuleError, batch_variances, lipschitz_rule
from art_robust_plugins.lipschitz.rules import RULES

from .architectures import ARCHITECTURES, IMAGE, make_network, with_statistics
from .builders import Network, bound_before_last, head


def steepest(network, shape, scale=1.0):
    """The largest slope of the logits, and of each difference of two, that a search finds.

    Jacobians at random points of several sizes and slopes between near points, then ascent on the Jacobian's norm.
    """
    network = network.double()
    generator = torch.Generator().manual_seed(1)
    largest, pairwise = 0.0, None
    starts = [s * torch.randn(shape, generator=generator, dtype=torch.float64) for s in (0.1, 0.5, 1, 3, 10)]
    starts += [torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(5)]

    def logits(x):
        return network(x[None] / scale)[0]

    for start in starts:
        x = start
        for step in range(6):
            jacobian = torch.autograd.functional.jacobian(logits, x).flatten(1)
            norm = torch.linalg.matrix_norm(jacobian, 2)
            differences = torch.cdist(jacobian, jacobian)
            largest = max(largest, norm.item())
            pairwise = differences if pairwise is None else torch.maximum(pairwise, differences)
            _, _, directions = torch.linalg.svd(jacobian, full_matrices=False)
            y = x + (0.1 if step % 2 else 1e-3) * directions[0].view(shape)
            largest = max(largest, (torch.norm(logits(y) - logits(x)) / torch.norm(y - x)).item())
            x = y + 0.05 * torch.randn(shape, generator=generator, dtype=torch.float64)
    network.float()
    return largest, pairwise


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_bound_holds(name):
    network = make_network(name)
    graph = LipschitzGraph(network, IMAGE)
    bound = graph.upper_bound()
    slope, pairwise = steepest(network, IMAGE)
    assert 0 < slope <= bound.lipschitz.item()
    assert bool((pairwise <= bound.pairwise + 1e-12).all())
    assert bound.lipschitz.item() < 1e6 * slope  # and not by being infinite
    for _ in range(100):
        estimate = graph.estimate()
    assert estimate.lipschitz.item() <= bound.lipschitz.item() * (1 + 1e-4)
    assert estimate.lipschitz.item() >= 0.7 * bound.lipschitz.item()
    estimate.lipschitz.backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in network.parameters())


# Refusals, by name


def attention():
    return Network(
        lambda x, a, last: last(a(x.flatten(2), x.flatten(2), x.flatten(2))[0]),
        nn.MultiheadAttention(64, 2, batch_first=True),
        head(192),
    )


def squeeze_excite():
    def forward(x, conv, gate, last):
        x = conv(x)
        return last(x * torch.sigmoid(gate(x.mean((2, 3))))[..., None, None])

    return Network(forward, nn.Conv2d(3, 4, 3), nn.Linear(4, 4), head(144))


def batch_norm_without_statistics():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), head(144))


def whole_entries(x):
    entries = torch.zeros(x.shape, dtype=torch.int32)
    entries[:, 0] = x[:, 0]
    return entries.float()


def of_input(function, message):
    return lambda: Network(lambda x, last: last(function(x)), head(192)), message


REFUSED = {
    "attention": (attention, r"aten.bmm.default .*module 'parts.0'\): a product of two activations"),
    "squeeze-excite": (squeeze_excite, r"aten.mul.Tensor \(node 'mul', the network's own forward\): a product"),
    "batch statistics": (batch_norm_without_statistics, r"aten._native_batch_norm_legit.no_stats .*module '1'"),
    "exp": of_input(torch.exp, r"aten.exp.default \(node 'exp'.*@lipschitz_rule\(torch.ops.aten.exp.default\)"),
    "power": of_input(lambda x: x**2, "aten.pow.Tensor_Scalar"),
    "normalise": of_input(
        lambda x: functional.normalize(x, dim=1), "a division by what depends on the network's input"
    ),
    "quotient": of_input(lambda x: x / (2 + x.sin()), "a division by what depends on the network's input"),
    "jump": of_input(lambda x: torch.where(x > 0, x, 1 - x), "aten.gt.Scalar"),
    "half": of_input(lambda x: x.half().float(), "a conversion to torch.float16"),
    "dropout": of_input(lambda x: functional.dropout(x, training=True), "dropout acts in evaluation mode"),
    "random": of_input(lambda x: x * torch.rand(1), "aten.rand.default .*it draws random numbers"),
    "indices": of_input(lambda x: x.sort(1).indices.float(), "its output 1 is used"),
    "copy into whole numbers": of_input(
        lambda x: torch.zeros(x.shape, dtype=torch.int64).copy_(x).float(), r"its result is torch.int64, which rounds"
    ),
    "entries of whole numbers": of_input(whole_entries, r"its result is torch.int\d+, which rounds"),
    "sum of whole numbers": of_input(lambda x: x + x.sum(dtype=torch.int64), "its result is torch.int64"),
    "mean in half": of_input(lambda x: x + x.mean(1, keepdim=True, dtype=torch.float16), "torch.float16"),
    "softplus with a wide jump": of_input(lambda x: functional.softplus(x, 1e-9), "with beta 1e-09 it jumps"),
    "softplus with a jump": of_input(
        lambda x: functional.softplus(x, 1, 0), "with beta 1 it jumps at its threshold of 0"
    ),
    "complex numbers": of_input(lambda x: (x * (1 + 1j)).abs(), "complex numbers"),
    "lookup": of_input(lambda x: torch.arange(8.0)[x.round().long()], "may jump"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    make, message = REFUSED[name]
    with pytest.raises(NoLipschitzRuleError, match=message):
        LipschitzGraph(make(), IMAGE)


class Counter(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.last = head(192)

    def forward(self, x):
        self.calls += 1
        return self.last(x)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Network(lambda x, last: last(x if x.sum() > 0 else -x), head(192)), "network: torch.export cannot trace it"),
        (Network(lambda x, last: last(x - x.mean(0)), head(192)), "network: its outputs for several samples"),
        (Network(lambda x, last: (last(x), x), head(192)), "network: it returns 2 values"),
        (nn.Conv2d(3, 4, 3), r"network: its output for one sample has shape \(1, 4, 6, 6\)"),
        (Counter(), "network: its forward changes the buffers calls"),
        (Network(lambda x, last: last(x) * math.inf, head(192)), "network: its outputs hold NaN or infinity"),
        (nn.Linear(5, 2), "network: torch.export cannot trace it"),
    ],
)
def test_networks_that_cannot_be_analysed(network, message):
    with pytest.raises(ValueError, match=message):
        LipschitzGraph(network, IMAGE)


@pytest.mark.parametrize(
    "shape", [(1.5, 8, 8), (True, 8, 8), (0, 8, 8), (), None, "x", 8, (math.nan, 8, 8), (2**70, 8, 8), np.array(3)]
)
def test_shapes_that_are_none(shape):
    with pytest.raises(ValueError, match="input_shape: got"):
        LipschitzGraph(make_linear(192, 2), shape)
    with pytest.raises(ValueError, match="input_shape: got"):
        insert_weight_maps(nn.Conv2d(3, 4, 3), shape)


@pytest.mark.parametrize(
    "std", ["x", {}, 10**400, 1j, True, [[1.0], [1.0, 2.0]], torch.ones(3, 1, 1) * 1j, torch.ones(1) > 0, 0, math.inf]
)
def test_deviations_that_are_none(std):
    with pytest.raises(ValueError, match="std: got"):
        LipschitzGraph(make_linear(192, 2), IMAGE, std=std)


def test_other_arguments_that_are_refused():
    for network in ("x", None, nn.Linear, head):
        with pytest.raises(TypeError, match="network: got"):
            LipschitzGraph(network, IMAGE)
    for dtype in ("float32", torch.int64, torch.complex64, 3):
        with pytest.raises(ValueError, match="dtype: got"):
            LipschitzGraph(head(192), IMAGE, dtype=dtype)
    shape = np.array(IMAGE)  # NumPy's numbers are numbers
    assert LipschitzGraph(head(192), shape, std=np.float32(0.5)).input_shape == IMAGE


def test_training_mode_has_no_proven_bound():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), head(144))
    graph = LipschitzGraph(network, IMAGE)
    assert network.training
    with pytest.raises(ValueError, match="network: it is in training mode"):
        graph.upper_bound()
    network.eval()[1].train()
    with pytest.raises(ValueError, match=r"network: .*'1' .*training"):
        graph.upper_bound()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_weights_that_are_not_finite(layer, value):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4), nn.PReLU(4)).eval()
    graph = LipschitzGraph(network, IMAGE)
    nn.init.constant_(network[layer if layer != 1 else 4].weight, value)
    with pytest.raises(ValueError, match="got NaN or infinity"):
        graph.upper_bound()


def test_what_has_no_finite_bound_is_refused_when_it_is_asked_for():
    network = Network(lambda x, last: last(x / 0), head(192)).eval()
    with pytest.raises(ValueError, match="its outputs hold NaN or infinity"):
        LipschitzGraph(network, IMAGE).upper_bound()


def test_a_wrong_rule_of_ones_own_cannot_give_a_negative_bound():
    kept = RULES[torch.ops.aten.sin.default]
    lipschitz_rule(torch.ops.aten.sin.default)(lambda call, x: call.function(x, -1.0))
    try:
        graph = LipschitzGraph(Network(lambda x, last: last(torch.sin(x)), head(192)).eval(), IMAGE)
        with pytest.raises(ValueError, match=r"a rule gave the bound -1.0"):
            graph.upper_bound()
    finally:
        RULES[torch.ops.aten.sin.default] = kept


def test_a_network_that_changes_its_input_in_place():
    def forward(x, last):
        x -= 0.5
        return last(x)

    assert bound_before_last(lambda x: x.clone().sub_(0.5)) == pytest.approx(1, rel=1e-6)
    network = Network(forward, head(192)).eval()
    expected = torch.linalg.matrix_norm(network.parts[0][1].weight.double(), 2).item()
    assert LipschitzGraph(network, IMAGE).upper_bound().lipschitz.item() == pytest.approx(expected, rel=1e-6)


def test_samples_that_are_mixed_in_some_range_only():
    def forward(x, last):
        return last(x + torch.relu(x - 3).roll(1, 0))

    with pytest.raises(ValueError, match="its outputs for several samples"):
        LipschitzGraph(Network(forward, head(192)).eval(), IMAGE)


def test_types_of_the_values():
    network = Network(lambda x, last: last(x.float().double()), head(192).double())
    assert LipschitzGraph(network, IMAGE).dtypes == {torch.float32, torch.float64}
    assert LipschitzGraph(make_network("min_max").double(), IMAGE).dtypes == {torch.float64}
    assert LipschitzGraph(make_network("Normalised").double(), IMAGE).dtypes == {
        torch.float64
    }  # its constants are float32


def test_bounds_follow_the_parameters():
    network = make_network("make_parametrised")
    graph = LipschitzGraph(network, IMAGE)
    before = graph.upper_bound().lipschitz.item()
    with torch.no_grad():
        network[7].parametrizations.weight.original0 *= 2
    assert graph.upper_bound().lipschitz.item() == pytest.approx(2 * before, rel=1e-6)
    network = make_network("residual")
    graph = LipschitzGraph(network, IMAGE)
    before = graph.upper_bound().lipschitz.item()
    network.parts[1].running_var.mul_(1e-4)
    assert graph.upper_bound().lipschitz.item() > before


def test_estimate_with_the_variance_of_the_batch():
    torch.manual_seed(0)
    shared = nn.BatchNorm2d(4, eps=1e-12)
    network = Network(
        lambda x, conv, norm, last: last(norm(torch.relu(norm(conv(x))))), nn.Conv2d(3, 4, 3), shared, head(144)
    )
    graph = LipschitzGraph(network, IMAGE)
    x = torch.rand(16, *IMAGE)
    with batch_variances(network) as variances:
        network(x)
        assert [len(calls) for calls in variances.values()] == [2]
    for _ in range(100):
        estimate = graph.estimate(variances)
    first, second = variances[shared]
    factor = (1 / first.sqrt()).view(-1, 1, 1, 1)
    weight = (network.parts[0].weight * factor).detach()
    merged = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), network.parts[2][1]).eval()
    merged[0].weight.data = weight
    expected = LipschitzGraph(merged, IMAGE).upper_bound().before_last * (1 / second.sqrt()).max()
    assert estimate.before_last.item() == pytest.approx(expected.item(), rel=1e-2)
    estimate.lipschitz.backward()
    assert network.parts[0].weight.grad.abs().max() > 0
    del variances[shared][1]
    with pytest.raises(ValueError, match=r"^variances: got 1 .*'parts\.1'"):
        graph.estimate(variances)


def test_estimate_starts_warm_and_is_differentiable():
    network = make_network("functional_relu")
    graph = LipschitzGraph(network, IMAGE)
    first = graph.estimate().lipschitz.item()
    for _ in range(50):
        last = graph.estimate()
    assert first < last.lipschitz.item()
    last.pairwise.sum().backward()
    assert all(p.grad is not None for name, p in network.named_parameters() if name.endswith("weight"))
    assert set(graph.vectors) == {"convolution", "convolution_1", "linear"}


def test_a_rule_of_ones_own():
    network = Network(lambda x, last: last(torch.erfc(x)), head(192)).eval()
    operation = torch.ops.aten.erfc.default
    with pytest.raises(NoLipschitzRuleError, match=r"lipschitz_rule\(torch.ops.aten.erfc.default\)"):
        LipschitzGraph(network, IMAGE)
    try:

        @lipschitz_rule(operation)
        def _erfc(call, x):
            return call.function(x, 2 / math.sqrt(math.pi))

        bound = LipschitzGraph(network, IMAGE).upper_bound()
    finally:
        del RULES[operation]
    assert bound.before_last.item() == pytest.approx(2 / math.sqrt(math.pi))
    with pytest.raises(TypeError, match="operations: got"):
        lipschitz_rule(torch.sin)


def test_tracing_leaves_the_network_as_it_was():
    network = with_statistics(ARCHITECTURES["residual"]()).train()
    network.parts[1].eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    LipschitzGraph(network, IMAGE).estimate()
    assert torch.equal(before, torch.random.get_rng_state())
    assert network.training
    assert not network.parts[1].training
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())

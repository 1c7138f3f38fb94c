import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from art_robust_plugins.lipschitz import LipschitzGraph, NoLipschitzRuleError, batch_variances, lipschitz_rule
from art_robust_plugins.lipschitz.rules import RULES
from art_robust_plugins.models import create_model

IMAGE = (3, 8, 8)


class Network(nn.Module):
    """A network given by a function of the input and of its modules."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


def head(inputs, classes=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))


def with_statistics(network):
    """Batch norms with weights and statistics as after training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.3, 2.0)
    return network


def functional_relu():
    def forward(x, first, second, last):
        return last(functional.relu(second(functional.relu(first(x)))))

    return Network(forward, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2), head(72))


def in_place():
    def forward(x, first, last):
        x = first(x)
        x += 0.5 * torch.tanh(x)
        x.mul_(2.0)
        x[:, 0] = 0
        return last(x.relu_())

    return Network(forward, nn.Conv2d(3, 4, 3), head(144))


def reused_module():
    def forward(x, first, shared, last):
        x = torch.relu(first(x))
        for _ in range(3):
            x = torch.relu(shared(x))
        return last(x)

    return Network(forward, nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), head(216))


def residual():
    def forward(x, first, norm, second, third, last):
        x = first(x)
        x = x + third(torch.relu(norm(second(x))))
        return last(functional.adaptive_avg_pool2d(torch.relu(x), 1))

    parts = (nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1))
    return Network(forward, *parts, head(6))


def linear_residual():
    def forward(x, first, second, norm, last):
        x = torch.relu(first(x))
        return last(torch.relu(x - 0.5 * second(x)) + norm(second(x)))

    parts = (nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1, groups=2), nn.BatchNorm2d(6))
    return Network(forward, *parts, head(216))


def dense_concat():
    def forward(x, first, second, last):
        x = torch.cat([x, torch.relu(first(x))], 1)
        x = torch.cat([x, torch.relu(second(x)), x[:, :2], torch.zeros_like(x)], 1)
        return last(functional.avg_pool2d(x, 2))

    return Network(forward, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(7, 4, 3, padding=1), head(20 * 16))


def pools():
    def forward(x, first, last):
        x = first(x)
        a = functional.max_pool2d(x, 3, 2, 1)
        b = functional.avg_pool2d(x, 3, 2, 1, ceil_mode=True, count_include_pad=False)[..., :4, :4]
        c = functional.adaptive_max_pool2d(x, 3)
        d = functional.adaptive_avg_pool2d(x, 3)
        e = functional.max_pool2d(x, 2, 1, dilation=2).amax((2, 3))
        f = functional.avg_pool2d(x, 3, 1, 1, divisor_override=5).mean((2, 3))
        g = functional.max_pool1d(x.flatten(2), 3, 2).sum(2) / 10 + x.logsumexp((2, 3))
        return last(torch.cat([value.flatten(1) for value in (a, b, c, d, e, f, g)], 1))

    return Network(forward, nn.Conv2d(3, 4, 3, padding=1), head(4 * (16 + 16 + 9 + 9 + 3)))


def shape_arithmetic():
    def forward(x, first, last):
        batch, channels, height, _ = x.shape
        x = x.reshape(batch, channels * 4, height // 2, -1).permute(0, 1, 3, 2)
        x = functional.pixel_shuffle(functional.gelu(first(x)), 2).flip(2).roll(1, 3)
        left, right = x.chunk(2, dim=3)
        x = functional.silu(left) - right.transpose(2, 3).transpose(2, 3) / 3
        return last(x[:, :, 1:-1, ::2].contiguous().view(x.size(0), -1))

    return Network(forward, nn.Conv2d(12, 8, 3, padding=1), nn.Linear(2 * 6 * 2, 4))


class Normalised(nn.Module):
    """Constants of the network's own: a buffer, a plain tensor, numbers."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1))
        self.deviation = torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
        self.first, self.last = nn.Conv2d(3, 6, 3, padding=1), head(384)

    def forward(self, x):
        return self.last(functional.leaky_relu(self.first((x - self.mean) / self.deviation), 0.2)) * 0.7 + 1


def parametrised():
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv2d(3, 6, 3)),
        nn.PReLU(6),
        nn.Flatten(),
        parametrizations.orthogonal(nn.Linear(216, 16)),
        nn.ELU(1.5),
        nn.utils.spectral_norm(nn.Linear(16, 16)),
        nn.Softplus(),
        parametrizations.weight_norm(nn.Linear(16, 4)),
    )


def min_max():
    def forward(x, first, second, last):
        for layer in (first, second):
            a, b = layer(x).chunk(2, dim=1)
            x = torch.cat([torch.maximum(a, b), torch.minimum(a, b)], 1)
        x = x.view(len(x), 4, 2, 8, 8).sort(2).values.flatten(1, 2)
        return last(x)

    return Network(forward, nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), head(512))


def paddings():
    def forward(x, circular, reflect, replicate, same, last):
        x = torch.relu(functional.pad(circular(x), (1, 0, 2, 1)))
        x = torch.relu(reflect(functional.pad(x, (0, 1))))
        return last(torch.relu(same(torch.relu(replicate(x)))))

    modes = [
        nn.Conv2d(i, 4, 3, padding=1, padding_mode=m) for i, m in ((3, "circular"), (4, "reflect"), (4, "replicate"))
    ]
    return Network(forward, *modes, nn.Conv2d(4, 4, 2, padding="same"), head(4 * 11 * 10))


def transposed():
    layers = [nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 4, 3, 2, groups=2)]
    return nn.Sequential(*layers, nn.BatchNorm2d(4), nn.Hardswish(), nn.Dropout(), head(4 * 49), nn.BatchNorm1d(4))


def functional_matrices():
    def forward(x, first, last):
        x = x.flatten(1) @ first.weight.t() + first.bias
        x = torch.sigmoid(x.view(-1, 4, 4))
        x = torch.matmul(first.weight[:4, :4], x) - torch.einsum("nij,jk->nik", x, first.weight[:4, :4])
        return last(functional.mish(x))

    return Network(forward, nn.Linear(192, 16), head(16))


def no_linear_end():
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def three_dimensions():
    def forward(x, first, second, last):
        x = functional.max_pool3d(torch.relu(first(x[:, None])), (1, 2, 2))
        x = functional.avg_pool3d(functional.interpolate(x, scale_factor=2), 3, 2, 1)
        return last(second(x.flatten(2)))

    return Network(forward, nn.Conv3d(1, 4, 3, padding=1), nn.Conv1d(4, 3, 3, padding=1), head(144))


ARCHITECTURES = {
    function.__name__: function
    for function in (
        functional_relu,
        in_place,
        reused_module,
        residual,
        linear_residual,
        dense_concat,
        pools,
        shape_arithmetic,
        Normalised,
        parametrised,
        min_max,
        paddings,
        transposed,
        functional_matrices,
        no_linear_end,
        three_dimensions,
    )
}
ARCHITECTURES |= {
    "small-cnn": lambda: create_model("small-cnn", IMAGE, 4, channels=4, hidden=16),
    "quick": lambda: create_model("quick", IMAGE, 4),
    "wide-resnet": lambda: create_model("wide-resnet", IMAGE, 4, depth=10, widen_factor=1),
}


def made(name):
    torch.manual_seed(0)
    return with_statistics(ARCHITECTURES[name]()).eval()


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
    network = made(name)
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
    "complex numbers": of_input(lambda x: (x * (1 + 1j)).abs(), "complex numbers, expected real ones"),
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


def test_training_mode_has_no_proven_bound():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), head(144))
    graph = LipschitzGraph(network, IMAGE)
    assert network.training
    with pytest.raises(ValueError, match="network: it is in training mode"):
        graph.upper_bound()
    network.eval()[1].train()
    with pytest.raises(ValueError, match="network: its module '1' is in training mode"):
        graph.upper_bound()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("layer", [0, 1, 3])
def test_weights_that_are_not_finite(layer, value):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4), nn.PReLU(4)).eval()
    graph = LipschitzGraph(network, IMAGE)
    nn.init.constant_(network[layer if layer != 1 else 4].weight, value)
    with pytest.raises(ValueError, match="got NaN or infinity"):
        graph.upper_bound()


# What the bound is made of


def test_what_has_no_finite_bound_is_refused_when_it_is_asked_for():
    network = Network(lambda x, last: last(x / 0), head(192)).eval()
    with pytest.raises(ValueError, match="its outputs hold NaN or infinity"):
        LipschitzGraph(network, IMAGE).upper_bound()


def test_a_wrong_rule_of_ones_own_cannot_give_a_negative_bound():
    kept = RULES[torch.ops.aten.sin.default]
    lipschitz_rule(torch.ops.aten.sin.default)(lambda call, x: call.function(x, -1.0))
    try:
        graph = LipschitzGraph(Network(lambda x, last: last(torch.sin(x)), head(192)).eval(), IMAGE)
        with pytest.raises(ValueError, match=r"a rule gave the bound -1.0, expected 0 or at least 1e-100"):
            graph.upper_bound()
    finally:
        RULES[torch.ops.aten.sin.default] = kept


def test_a_network_that_changes_its_input_in_place():
    def forward(x, last):
        x -= 0.5
        return last(x)

    assert single(lambda x: x.clone().sub_(0.5)) == pytest.approx(1, rel=1e-6)
    network = Network(forward, head(192)).eval()
    expected = torch.linalg.matrix_norm(network.parts[0][1].weight.double(), 2).item()
    assert LipschitzGraph(network, IMAGE).upper_bound().lipschitz.item() == pytest.approx(expected, rel=1e-6)


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


def test_samples_that_are_mixed_in_some_range_only():
    def forward(x, last):
        return last(x + torch.relu(x - 3).roll(1, 0))

    with pytest.raises(ValueError, match="its outputs for several samples"):
        LipschitzGraph(Network(forward, head(192)).eval(), IMAGE)


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


def single(function, *modules, shape=IMAGE):
    """The bound of a function of the input, before a flat sum of its outputs."""
    network = Network(function, *modules).eval()
    x = torch.zeros(1, *shape)
    size = network(x).numel()
    network = Network(lambda x, inner, last: last(inner(x).flatten(1)), network, nn.Linear(size, 2)).eval()
    return LipschitzGraph(network, shape).upper_bound().before_last.item()


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
    assert single(function) == pytest.approx(expected, rel=1e-6)


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
        assert truth <= single(function, conv.float(), norm.float()) <= truth * (1 + 1e-5)


def test_input_is_divided_by_std():
    network = made("functional_relu")
    std = torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    inside = Network(lambda x, inner: inner((x - 0.5) / std), network).eval()
    given = LipschitzGraph(network, IMAGE, std=std).upper_bound().lipschitz
    assert given.item() == pytest.approx(LipschitzGraph(inside, IMAGE).upper_bound().lipschitz.item(), rel=1e-6)
    assert given.item() > LipschitzGraph(network, IMAGE).upper_bound().lipschitz.item() * 3
    for wrong in (0.0, [0.1, 0.2], -torch.ones(3, 1, 1), math.nan):
        with pytest.raises(ValueError, match="std: got"):
            LipschitzGraph(network, IMAGE, std=wrong)


def test_a_std_that_is_constant_along_an_axis_is_merged_as_one_number():
    network = made("functional_relu")
    std = torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)
    short, full = (LipschitzGraph(network, IMAGE, std=values).upper_bound() for values in (std, std.expand(IMAGE)))
    assert torch.equal(short.lipschitz, full.lipschitz)
    pixels = std.repeat(1, 8, 8)
    pixels[0, 3, 3] = 0.1
    assert LipschitzGraph(network, IMAGE, std=pixels).upper_bound().lipschitz > full.lipschitz


@pytest.mark.parametrize("name", ["functional_relu", "residual", "dense_concat", "reused_module"])
def test_shares_are_elasticities(name):
    network = made(name)
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


def test_types_of_the_values():
    network = Network(lambda x, last: last(x.float().double()), head(192).double())
    assert LipschitzGraph(network, IMAGE).dtypes == {torch.float32, torch.float64}
    assert LipschitzGraph(made("min_max").double(), IMAGE).dtypes == {torch.float64}
    assert LipschitzGraph(made("Normalised").double(), IMAGE).dtypes == {torch.float64}  # its constants are float32


def test_bounds_follow_the_parameters():
    network = made("parametrised")
    graph = LipschitzGraph(network, IMAGE)
    before = graph.upper_bound().lipschitz.item()
    with torch.no_grad():
        network[7].parametrizations.weight.original0 *= 2
    assert graph.upper_bound().lipschitz.item() == pytest.approx(2 * before, rel=1e-6)
    network = made("residual")
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
    with pytest.raises(ValueError, match=r"variances: got 1 for the module 'parts\.1'"):
        graph.estimate(variances)


def test_estimate_starts_warm_and_is_differentiable():
    network = made("functional_relu")
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

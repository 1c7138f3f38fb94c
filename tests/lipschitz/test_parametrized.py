"""Parametrized weights: computed once a step, with the bound and the gradients of the graph's own operations."""

import pytest
import torch
from builders import make_linear
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils._python_dispatch import TorchDispatchMode

from art_robust_plugins.lipschitz import LipschitzGraph
from art_robust_plugins.models import create_model, orthogonal


class Count(TorchDispatchMode):
    def __init__(self, operation):
        super().__init__()
        self.operation, self.calls = operation, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls += func == self.operation
        return func(*args, **(kwargs or {}))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2 * weight.tanh()


class Twice(nn.Module):
    """Uses one parametrized layer twice, and takes its weight by hand as well."""

    def __init__(self):
        super().__init__()
        self.layer = orthogonal(nn.Linear(6, 6))

    def forward(self, x):
        return self.layer(torch.relu(self.layer(x))) + x @ self.layer.weight


MAKERS = {
    "orthogonal": lambda: create_model("orthogonal-mlp", (1, 2, 3), 4, width=6, depth=2),
    "weight norm": lambda: nn.Sequential(nn.Flatten(), parametrizations.weight_norm(nn.Linear(6, 4))),
    "spectral norm": lambda: nn.Sequential(nn.Flatten(), parametrizations.spectral_norm(nn.Linear(6, 4))),
    "torch's orthogonal": lambda: nn.Sequential(nn.Flatten(), parametrizations.orthogonal(nn.Linear(6, 4))),
    "two in a row": lambda: nn.Sequential(nn.Flatten(), _doubled_twice(nn.Linear(6, 4))),
    "used twice": lambda: nn.Sequential(nn.Flatten(), Twice()),
    "none": lambda: make_linear(6, 4),
}


def _doubled_twice(layer):
    for _ in range(2):
        parametrize.register_parametrization(layer, "weight", Doubled())
    parametrize.register_parametrization(layer, "bias", Doubled())
    return layer


@pytest.mark.parametrize("name", MAKERS)
def test_the_estimate_and_its_gradients_are_those_of_the_graph(name):
    torch.manual_seed(0)
    network = MAKERS[name]().double().eval()
    x = torch.rand(3, 1, 2, 3, dtype=torch.float64)
    parameters = list(network.parameters())
    found = []
    for cached in (False, True):
        graph = LipschitzGraph(network, (1, 2, 3))
        graph.vectors.update({key: torch.ones_like(value) for key, value in graph.vectors.items()})
        with parametrize.cached():
            loss = network(x).square().sum()
            bound = graph.estimate(cached=cached)
        gradients = torch.autograd.grad(loss + bound.lipschitz, parameters, allow_unused=True)
        found.append((bound.lipschitz, bound.pairwise, *[g for g in gradients if g is not None]))
    assert len(found[0]) > 2
    for without, with_cache in zip(*found, strict=True):
        torch.testing.assert_close(with_cache, without, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["orthogonal", "used twice"])
def test_a_step_factorises_each_weight_once(name):
    network = MAKERS[name]().eval()
    graph = LipschitzGraph(network, (1, 2, 3))
    layers = sum(parametrize.is_parametrized(module) for module in network.modules())
    with parametrize.cached(), Count(torch.ops.aten.linalg_cholesky_ex.default) as count:
        network(torch.rand(3, 1, 2, 3))
        graph.estimate(cached=True)
    assert count.calls == layers > 0


@pytest.mark.parametrize("name", ["ours", "torch's"])
def test_weights_of_256_rows_and_more_are_bounded(name):
    # What torch decomposes `eye` into, within a block under autocast, counts with 16 bits from here on, and fails.
    layer = nn.Linear(300, 260)
    network = nn.Sequential(orthogonal(layer) if name == "ours" else parametrizations.orthogonal(layer)).eval()
    assert LipschitzGraph(network, (300,)).estimate().lipschitz.item() == pytest.approx(1, abs=0.05)


def test_the_estimate_follows_the_parameters():
    network = MAKERS["two in a row"]().eval()
    graph = LipschitzGraph(network, (1, 2, 3))
    first = graph.estimate(cached=True).lipschitz
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    assert graph.estimate(cached=True).lipschitz < first

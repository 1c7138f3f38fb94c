"""Parametrized weights in an evaluation: computed once for all passes of an attack, where that changes nothing."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from art_robust_plugins import Evaluator, ThreatModel

from .builders import custom


class Counted(nn.Module):
    """A weight times a factor, with noise on request; counts how often it is computed."""

    def __init__(self, noise=0.0):
        super().__init__()
        self.noise, self.calls = noise, 0

    def forward(self, weight):
        self.calls += 1
        return 2 * weight + self.noise * torch.randn_like(weight)


def build(noise):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    counted = Counted(noise)
    parametrize.register_parametrization(network[3], "weight", counted)
    counted.calls = 0
    return network, counted


def evaluate(network):
    x = torch.rand(20, 1, 2, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = network(x).argmax(dim=1)
    return Evaluator(network, ThreatModel("Linf", 0.1), attacks="apgd-ce", verbose=False).evaluate(x, y)


def test_a_weight_is_computed_once_for_all_passes_of_the_attacks():
    network, counted = build(0.0)
    found = evaluate(network)
    assert 0 < counted.calls < 40  # of more than two hundred passes
    plain, _ = build(0.0)
    parametrize.remove_parametrizations(plain[3], "weight")
    expected = evaluate(plain)
    np.testing.assert_array_equal(found.broken, expected.broken)
    np.testing.assert_array_equal(found.adversarial, expected.adversarial)
    assert 0 < found.broken.sum() < 20


@pytest.mark.filterwarnings("ignore")
def test_a_random_weight_is_drawn_in_each_pass():
    network, counted = build(0.2)
    evaluate(network)
    assert counted.calls > 100


class LowRank(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 16)), nn.Parameter(torch.randn(3, 2))

    def forward(self, weight):
        return weight + self.b @ self.a


def look_in_half_precision(x, y, setting):
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        setting.model(x)
    return x


def look_in_inference_mode(x, y, setting):
    with torch.inference_mode():
        setting.model(x)
    return x


@pytest.mark.parametrize("look", [look_in_half_precision, look_in_inference_mode])
def test_what_an_attack_of_ones_own_does_to_a_weight_counts_for_no_other_pass(look):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    parametrize.register_parametrization(network[3], "weight", LowRank())
    x = torch.rand(20, 1, 2, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = network(x)
    attacks = [custom(look), "apgd-ce"]
    threat = ThreatModel("Linf", 0.02)
    found = Evaluator(network, threat, attacks=attacks, verbose=False).evaluate(x, logits.argmax(dim=1))
    np.testing.assert_allclose(found.details.outputs, logits.numpy(), atol=1e-6)

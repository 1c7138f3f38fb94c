"""Attacks through another network: what they find, and what they say of masked gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from builders import Data
from torch import nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import Evaluator, transfer

from .builders import custom, step, train_network, wrap


class Quantised(nn.Module):
    """A network behind a staircase, whose gradient is zero almost everywhere: obfuscated, and no more robust."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stairs = (x * 16).round() / 16
        return self.network(stairs + 0 * x)


def evaluate(estimator: object, data: Data, *attacks: object) -> object:
    return Evaluator(estimator, ThreatModel("Linf", 0.15), attacks=list(attacks), verbose=False).evaluate(*data)


def test_obfuscated_gradients_are_flagged(network: nn.Module, data: Data) -> None:
    masked = wrap(Quantised(network))
    other = transfer(wrap(train_network(steps=100)), "plain")
    report = evaluate(masked, data, custom(step, name="step"), other)
    step_left, transfer_left = (int(result.robust.sum()) for result in report.attacks)
    assert transfer_left < step_left - 5
    (flag,) = [flag for flag in report.flags if flag.name == "transfer-beats-white-box"]
    assert flag.severity == "severe"
    broken = int((report.attacks[0].robust & ~report.attacks[1].robust).sum())
    assert f"transfer-plain, which follows another network's gradients, broke {broken} of 40 points" in flag.evidence
    assert "zero-gradients" in [flag.name for flag in report.flags]
    assert report.robust_accuracy <= transfer_left / 40


def test_a_network_whose_gradients_lead_is_not_flagged(network: nn.Module, data: Data) -> None:
    source = wrap(train_network(steps=100))
    weights = {name: tensor.clone() for name, tensor in source.model.state_dict().items()}
    source.model.train().zero_grad()
    report = evaluate(wrap(network), data, "pgd-20", transfer(source, "plain"))
    assert "transfer-beats-white-box" not in [flag.name for flag in report.flags]
    assert source.model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in source.model.parameters())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in source.model.state_dict().items())


def test_it_is_gradient_ascent_on_the_source(network: nn.Module, data: Data) -> None:
    """From another range of inputs, on itself as well as PGD on the network."""
    shifted = nn.Sequential(Shift(), network)
    source = wrap(shifted, clip_values=(-1.0, 1.0))
    report = evaluate(wrap(network), data, transfer(source, "itself"))
    x, y = (torch.from_numpy(values) for values in data)
    found = torch.from_numpy(report.adversarial)
    assert ThreatModel("Linf", 0.15).distance(found, x).max() <= 0.15 + 1e-6
    assert report.robust_accuracy < report.clean_accuracy - 0.2
    assert np.array_equal((network(found).argmax(dim=1) == y).numpy(), report.robust)


class Shift(nn.Module):
    """[-1, 1] -> [0, 1]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x + 1) / 2


def test_a_source_of_another_kind_is_refused(network: nn.Module, data: Data) -> None:
    flat = wrap(nn.Sequential(nn.Linear(64, 10)), input_shape=(64,))
    with pytest.raises(ValueError, match=r"'transfer-flat' .*\(64,\)"):
        evaluate(wrap(network), data, transfer(flat, "flat"))


def test_a_state_knows_the_source(network: nn.Module, data: Data, tmp_path: object) -> None:
    for steps, refused in ((50, False), (50, False), (60, True)):
        evaluator = Evaluator(
            wrap(network),
            ThreatModel("Linf", 0.15),
            attacks=transfer(wrap(train_network(steps=steps)), "plain"),
            state_dir=tmp_path,
            verbose=False,
        )
        if refused:
            with pytest.raises(ValueError, match="another choice of attacks"):
                evaluator.evaluate(*data)
        else:
            evaluator.evaluate(*data)

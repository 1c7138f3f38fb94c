"""Networks that change, or take gradients, while they predict."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from builders import Data
from numpy.testing import assert_array_equal
from torch import Tensor, nn

from art_robust_plugins.evaluation import EvaluationReport, Setting

from ..builders import custom, step, wrap
from ..wrapped import Around, Forward, evaluate, move_a_bias, read_flags


def purify(take: Callable[[Around, Tensor], Tensor]) -> Forward:
    def forward(self: Around, x: Tensor) -> Tensor:
        with torch.enable_grad():
            gradient = take(self, x.detach().clone().requires_grad_())
        return self.network(x - 0.01 * gradient)

    return forward


def energy(self: Around, x: Tensor) -> Tensor:
    return self.network(x).logsumexp(dim=1).sum()


def by_backward(self: Around, x: Tensor) -> Tensor:
    energy(self, x).backward()
    assert x.grad is not None
    return x.grad


def replaces_a_bias(self: Around, x: Tensor) -> Tensor:
    self.network[0].bias = nn.Parameter(self.network[0].bias.detach() + 0.01)
    return self.network(x)


def minimises_entropy(self: Around, x: Tensor) -> Tensor:
    with torch.enable_grad():
        logits = self.network(x)
        entropy = -(logits.softmax(dim=1) * logits.log_softmax(dim=1)).sum()
        optimizer = torch.optim.SGD(self.network.parameters(), 0.01)
        optimizer.zero_grad()
        entropy.backward()
        optimizer.step()
    return logits


def remembers(self: Around, x: Tensor) -> Tensor:
    passed = self.__dict__.setdefault("passed", [])
    passed.append(x.mean())
    return self.network(x + sum(passed[-3:]) / 3)


@pytest.mark.parametrize(
    ("forward", "evidence"),
    [
        (purify(lambda self, x: torch.autograd.grad(energy(self, x), x)[0]), "takes gradients"),
        (purify(by_backward), "takes gradients"),
        (purify(lambda self, x: torch.func.grad(lambda z: energy(self, z))(x.detach())), "takes gradients"),
        (move_a_bias, "bias"),
        (replaces_a_bias, "bias"),
        (minimises_entropy, "takes gradients"),
        (remembers, "remembers"),
    ],
)
def test_networks_that_change_while_they_predict(
    forward: Forward, evidence: str, network: nn.Module, few: Data
) -> None:
    around = Around(network, forward)
    before = copy.deepcopy(around.state_dict())
    report = evaluate(wrap(around), few, attacks=[custom(step), "uniform-0.1"])
    assert read_flags(report)["dynamic"] == "severe"
    assert evidence in next(flag.evidence for flag in report.flags if flag.name == "dynamic")
    after = around.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in around.parameters())


def adapts(self: Around, x: Tensor) -> Tensor:
    minimises_entropy(self, x)
    return torch.zeros_like(x)


@pytest.mark.parametrize("take", [by_backward, adapts])
def test_gradients_that_one_clean_image_alone_makes_a_network_take(take: Any, network: nn.Module, few: Data) -> None:
    with torch.no_grad():
        confidence = network(torch.from_numpy(few[0])).softmax(dim=1).amax(dim=1)
    last = int(confidence[9:].argmin()) + 9  # beyond the images that the probes are made of
    order = [*(i for i in range(20) if i != last), last]
    mark = torch.from_numpy(few[0][last]).sum()
    marked = Around(
        network,
        lambda self, x: (
            purify(take)(self, x) if ((x.sum(dim=(1, 2, 3)) - mark).abs() < 1e-4).any() else self.network(x)
        ),
    )
    report = evaluate(wrap(marked), (few[0][order], few[1][order]), attacks=custom(lambda x, y, setting: x))
    assert "clean pass takes gradients" in next(flag.evidence for flag in report.flags if flag.name == "dynamic")


@pytest.mark.parametrize("take", [by_backward, adapts])
def test_gradients_that_candidates_alone_make_a_network_take(
    take: Any, network: nn.Module, few: Data, tmp_path: Any
) -> None:
    around = Around(
        network,
        lambda self, x: purify(take)(self, x) if (x[:, 0, 0, 0] == 0.0625).any() else self.network(x),
    )
    before = copy.deepcopy(around.state_dict())

    def mark(x: Tensor, y: Tensor, setting: Setting) -> Tensor:
        found = x.clone()
        found[:, 0, 0, 0] = 0.0625
        with torch.no_grad():
            setting.model(found)
        return found

    assert not (few[0][:, 0, 0, 0] == 0.0625).any()
    for _ in range(2):  # the second finds the state of the first
        report = evaluate(wrap(around), few, attacks=custom(mark, name="marking"), state_dir=tmp_path)
        assert "marking take gradients" in next(flag.evidence for flag in report.flags if flag.name == "dynamic")
    assert all(torch.equal(before[name], value) for name, value in around.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in around.parameters())


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: torch.func.vmap(lambda z: self.network(z[None])[0])(x),
        lambda self, x: (setattr(self, "calls", getattr(self, "calls", 0) + 1), self.network(x))[1],
        lambda self, x: (setattr(self, "last", x.detach().clone()), self.network(x))[1],
    ],
)
def test_networks_that_only_seem_to_change(forward: Forward, network: nn.Module, few: Data) -> None:
    assert not {"dynamic", "randomised", "batch-dependent"} & set(
        read_flags(evaluate(wrap(Around(network, forward)), few))
    )


def test_a_verdict_does_not_depend_on_earlier_passes(network: nn.Module, few: Data) -> None:
    def evaluate_in_batches(size: int) -> EvaluationReport:
        return evaluate(wrap(Around(network, move_a_bias)), few, batch_size=size, physical_batch_size=size)

    one, another = evaluate_in_batches(20), evaluate_in_batches(1)
    assert_array_equal(one.robust, another.robust)
    assert_array_equal(one.correct, another.correct)


@pytest.mark.parametrize("failure", [None, RuntimeError, KeyboardInterrupt])
def test_an_attack_that_changes_the_network(failure: Any, network: nn.Module, few: Data) -> None:
    network = copy.deepcopy(network)
    before = copy.deepcopy(network.state_dict())

    def train(x: Tensor, y: Tensor, setting: Setting) -> Tensor:
        with torch.no_grad():
            for parameter in setting.model.parameters():
                parameter.add_(1.0)
        if failure is not None:
            raise failure
        return step(x, y, setting)

    if failure is None:
        report = evaluate(wrap(network), few, attacks=custom(train, name="trainer"))
        (flag,) = (flag for flag in report.flags if flag.name == "dynamic")
        assert "trainer" in flag.evidence
    else:
        with pytest.raises(failure):
            evaluate(wrap(network), few, attacks=custom(train))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())

"""An image has one answer, whatever stands beside it in its batch."""

from __future__ import annotations

import copy

import pytest
import torch
from builders import Data
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins.evaluation.diagnostics import measure_differences

from ..builders import custom, step, wrap
from ..wrapped import Around, Forward, evaluate, read_flags


class Stuck(nn.Module):
    """Batch norm that stays in training mode."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.norm, self.network = nn.BatchNorm2d(1), copy.deepcopy(network)

    def train(self, mode: bool = True) -> Stuck:
        super().train(mode)
        self.norm.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(self.norm(x))
        return logits


@pytest.mark.parametrize("size", [None, 8, 1])
def test_batch_norm_stuck_in_training_mode(size: int | None, network: nn.Module, few: Data) -> None:
    stuck = Stuck(network)
    before = copy.deepcopy(stuck.state_dict())
    report = evaluate(wrap(stuck), few, physical_batch_size=size, attacks=[custom(step), "square"])
    assert read_flags(report)["batch-dependent"] == read_flags(report)["dynamic"] == "severe"
    assert "randomised" not in read_flags(report)
    assert not [flag for flag in report.flags if "rounding" in flag.advice]
    assert all(torch.equal(before[name], value) for name, value in stuck.state_dict().items())


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.network(functional.batch_norm(x, None, None, training=True)),
        lambda self, x: self.network(x + 0.01 * x.mean(dim=0)),
        lambda self, x: self.network(x * (1.0 if len(x) > 4 else 0.5)),
        lambda self, x: self.network(x) + torch.arange(len(x))[:, None],
        lambda self, x: self.network(x) if x.mean() < 0.6 else self.network(1 - x),
    ],
    ids=["batch norm", "mean", "number", "position", "branch"],
)
@pytest.mark.parametrize(("points", "size"), [(20, None), (20, 5), (1, None), (1, 6)])
def test_networks_whose_answer_depends_on_the_batch(
    forward: Forward, points: int, size: int | None, network: nn.Module, few: Data
) -> None:
    report = evaluate(wrap(Around(network, forward)), (few[0][:points], few[1][:points]), physical_batch_size=size)
    assert read_flags(report)["batch-dependent"] == "severe"
    assert "randomised" not in read_flags(report)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.network(functional.batch_norm(x, None, None, training=True)),
        lambda self, x: self.network(x + 0.05 * x.mean(dim=0)),
        lambda self, x: self.network(x) + torch.arange(len(x))[:, None] * torch.eye(10)[3],
    ],
    ids=["batch norm", "mean", "position"],
)
def test_of_images_alone_two_pass_to_show_a_dependence(forward: Forward, network: nn.Module, few: Data) -> None:
    """With one image a pass no verdict depends on others, and the report says that the number is not the usual one."""
    report = evaluate(wrap(Around(network, forward)), few, physical_batch_size=1)
    assert read_flags(report)["batch-dependent"] == "severe"


def crowd(self: Around, x: Tensor) -> Tensor:
    """Experts with room for three images of a class: the others are passed over."""
    logits: Tensor = self.network(x)
    classes = functional.one_hot(logits.argmax(dim=1), 10)
    late = (classes.cumsum(dim=0) * classes).sum(dim=1) > 3
    return torch.where(late[:, None], 0.1 * logits.roll(1, dims=1), logits)


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.network(x * torch.where(torch.arange(len(x)) < 20, 1.0, -1.0).view(-1, 1, 1, 1)),
        lambda self, x: self.network(x * torch.where(torch.arange(len(x)) < 32, 1.0, 0.5).view(-1, 1, 1, 1)),
        crowd,
    ],
    ids=["half", "last", "capacity"],
)
def test_a_dependence_that_only_large_batches_show(forward: Forward, network: nn.Module, data: Data) -> None:
    assert read_flags(evaluate(wrap(Around(network, forward)), data))["batch-dependent"] == "severe"


@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_no_pass_is_larger_than_the_physical_batch(size: int, network: nn.Module, few: Data) -> None:
    sizes: set[int] = set()

    def watch_sizes(self: Around, x: Tensor) -> Tensor:
        sizes.add(len(x))
        return self.network(x)

    report = evaluate(wrap(Around(network, watch_sizes)), few, physical_batch_size=size, attacks="apgd-ce")
    assert max(sizes) == max(size, 2)  # the checks before the attacks pass two
    assert "batch-dependent" not in read_flags(report)


def test_a_network_that_takes_no_image_alone(network: nn.Module, few: Data) -> None:
    flat = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Unflatten(1, (1, 8, 8)), *copy.deepcopy(network))
    flat.train = lambda mode=True: flat
    assert read_flags(evaluate(wrap(flat), few))["batch-dependent"] == "severe"


def test_rounding_is_no_dependence_on_the_batch(network: nn.Module, few: Data) -> None:
    def coarse(self: Around, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.network(x).float()

    assert "batch-dependent" not in read_flags(evaluate(wrap(Around(network, coarse)), few))
    rarely = Around(network, lambda self, x: self.network(x) * (1 if torch.rand(()) < 0.8 else -1))
    assert "batch-dependent" not in read_flags(evaluate(wrap(rarely), few))


def test_outputs_that_are_not_finite_have_differences() -> None:
    nan, inf = torch.nan, torch.inf
    one = torch.tensor([[nan, 1.0], [nan, 1.0], [inf, 1.0], [1.0, 0.0]])
    another = torch.tensor([[nan, 1.0], [2.0, 1.0], [inf, 1.0], [1.5, 0.0]])
    assert measure_differences(one, another).tolist() == [0, inf, 0, 0.5]

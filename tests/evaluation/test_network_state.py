"""A network's state after its evaluation: inputs that are written into, extra state, buffers that come and go."""

from __future__ import annotations

import copy
import threading
from typing import Any

import numpy as np
import pytest
import torch
from builders import Data
from numpy.testing import assert_array_equal
from torch import Tensor, nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation.autoattack import APGD, FAB, Square
from art_robust_plugins.evaluation.transfer import transfer

from .builders import custom, step, wrap
from .wrapped import Around, Forward, evaluate, read_flags


def in_place(self: Around, x: Tensor) -> Tensor:
    return self.network(x.mul_(0.9).add_(0.05))


def not_in_place(self: Around, x: Tensor) -> Tensor:
    return self.network(x * 0.9 + 0.05)


@pytest.mark.parametrize("size", [None, 3])
def test_a_forward_in_place_changes_no_data(size: int | None, network: nn.Module, few: Data) -> None:
    x = few[0].copy()
    attacks = [custom(step), "apgd-ce", "square", transfer(wrap(Around(network, in_place)), "own")]
    one, another = (
        evaluate(wrap(Around(network, forward)), (x, few[1]), attacks=attacks, physical_batch_size=size)
        for forward in (in_place, not_in_place)
    )
    assert_array_equal(x, few[0])
    assert_array_equal(one.adversarial, another.adversarial)
    for result, wanted in zip(one.attacks, another.attacks, strict=True):
        assert_array_equal(result.robust, wanted.robust)
    assert one.curve == another.curve
    assert read_flags(one) == read_flags(another)


@pytest.mark.parametrize("kind", [APGD, FAB, Square])
def test_an_attack_by_itself_hands_out_copies(kind: Any, network: nn.Module, few: Data) -> None:
    x, y = (torch.from_numpy(values[:6]) for values in few)
    more = {"queries": 50} if kind is Square else {"steps": 5} if kind is FAB else {}
    found = [
        kind(Around(network, forward).eval(), ThreatModel("Linf", 0.1), **more)(x.clone(), y)
        for forward in (in_place, not_in_place)
    ]
    assert torch.equal(*found)


class Extra(nn.Module):
    def __init__(self, network: nn.Module, state: Any) -> None:
        super().__init__()
        self.network, self.state = copy.deepcopy(network), state

    def get_extra_state(self) -> Any:
        return self.state

    def set_extra_state(self, state: Any) -> None:
        self.state = state

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.state, dict):
            self.state["passes"] = self.state.get("passes", 0) + 1
        logits: Tensor = self.network(x)
        return logits


def test_a_quantised_network_meets_square_alone(network: nn.Module, few: Data, tmp_path: Any) -> None:
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(network), {nn.Linear}, torch.qint8)
    classifier = wrap(quantised)
    report = evaluate(classifier, few, attacks=["standard"], state_dir=tmp_path)
    assert [result.name for result in report.attacks] == ["square"]
    assert read_flags(report)["no-gradients"] == "severe"
    again = evaluate(classifier, few, attacks=["standard"], state_dir=tmp_path)
    assert_array_equal(again.robust, report.robust)
    with pytest.raises(ValueError, match=r"^attacks: the source of 'transfer-own' "):
        evaluate(wrap(network), few, attacks=transfer(classifier, "own"))


@pytest.mark.parametrize("state", [{"scale": 2}, b"bytes", np.arange(3), {"b", "a"}, object()])
def test_extra_state(state: Any, network: nn.Module, few: Data, tmp_path: Any) -> None:
    extra = Extra(network, state)
    before = copy.deepcopy(state) if isinstance(state, dict) else state
    report = evaluate(wrap(extra), few, state_dir=tmp_path)
    assert ("dynamic" in read_flags(report)) == isinstance(state, dict)
    assert isinstance(state, np.ndarray) or extra.state == before
    assert_array_equal(evaluate(wrap(extra), few, state_dir=tmp_path).robust, report.robust)
    if isinstance(state, bytes):
        with pytest.raises(ValueError, match=r"^state_dir: .* another network,"):
            evaluate(wrap(Extra(network, b"other")), few, state_dir=tmp_path)


@pytest.mark.parametrize(
    "matrix",
    [
        torch.eye(8).to_sparse(),
        torch.eye(8).to_sparse_csr(),
        torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    ],
    ids=["sparse", "CSR", "nested"],
)
def test_buffers_that_are_not_dense(matrix: Tensor, network: nn.Module, few: Data) -> None:
    around = Around(network, lambda self, x: self.network(x))
    around.register_buffer("matrix", matrix)
    report, plain = evaluate(wrap(around), few), evaluate(wrap(network), few)
    assert_array_equal(report.robust, plain.robust)
    assert read_flags(report) == read_flags(plain)


def test_extra_state_that_cannot_be_copied_or_read(network: nn.Module, few: Data) -> None:
    class Unreadable(Extra):
        def get_extra_state(self) -> Any:
            raise NotImplementedError("no state")

    assert "dynamic" not in read_flags(evaluate(wrap(Extra(network, threading.Lock())), few))
    with pytest.raises(ValueError, match=r"^classifier: .*NotImpl.*no state"):
        evaluate(wrap(Unreadable(network, None)), few)


def registers(self: Around, x: Tensor) -> Tensor:
    self.register_buffer("late", x.mean())
    self.network.append(nn.Identity())
    return self.network(x)


def deletes(self: Around, x: Tensor) -> Tensor:
    if "count" in self._buffers:
        del self.count
    return self.network(x)


@pytest.mark.parametrize(("forward", "name"), [(registers, "late"), (deletes, "count")])
def test_buffers_that_come_and_go(forward: Forward, name: str, network: nn.Module, few: Data) -> None:
    around = Around(network, forward)
    around.register_buffer("count", torch.zeros(1))
    before = list(around.state_dict())
    report = evaluate(wrap(around), few)
    assert list(around.state_dict()) == before
    assert name in next(flag.evidence for flag in report.flags if flag.name == "dynamic")

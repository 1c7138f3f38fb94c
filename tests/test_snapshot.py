"""A network's state can be put back, and described the same in every process."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from builders import make_linear
from torch import nn

from art_robust_plugins.fingerprints import describe_module, describe_value, digest
from art_robust_plugins.snapshot import Snapshot, restored_state
from art_robust_plugins.training import StandardTrainer


class Held(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("unset", None)
        self.register_buffer("hole", torch.tensor([float("nan"), 1.0]), persistent=False)
        self.loose = torch.ones(2)


def spoil(held):
    with torch.no_grad():
        held.layer.weight.add_(1)
        held.layer.bias.data = torch.zeros(3)
        held.count += 1
        held.loose.zero_()
    held.hole = torch.tensor([2.0, 1.0])


def test_everything_is_put_back():
    held = Held()
    weight, hole, layer = held.layer.weight, held.hole, held.layer
    before = {name: value.clone() for name, value in held.state_dict().items()}
    snapshot = Snapshot(held)
    assert snapshot.restore() == []
    spoil(held)
    held.layer = nn.Linear(5, 5)
    assert set(snapshot.restore()) >= {"count", "hole", "layer.weight", "layer.bias"}
    assert snapshot.restore() == []
    assert held.layer is layer
    assert held.layer.weight is weight
    assert held.hole is hole
    assert held.hole[0].isnan()
    assert bool((held.loose == 1).all())
    assert all(torch.equal(before[name], value) for name, value in held.state_dict().items())


def test_a_replaced_parameter_is_another_value_or_none():
    held = Held()
    snapshot = Snapshot(held)
    weight = held.layer.weight
    held.layer.weight = nn.Parameter(weight.detach().clone())
    assert snapshot.restore() == []
    assert held.layer.weight is weight


def test_what_is_registered_is_put_back_and_named():
    held = Held()
    before, temporary = dict(held.named_buffers()), set(held._non_persistent_buffers_set)
    state, submodules = list(held.state_dict()), dict(held.named_modules())
    snapshot = Snapshot(held)
    del held.count
    held.hole = torch.zeros(2)
    held.register_buffer("hole", torch.zeros(2), persistent=True)
    held.unset = torch.ones(1)
    held.register_buffer("late", torch.ones(2))
    held.weight = nn.Parameter(torch.ones(1))
    held.other = nn.Linear(2, 2)
    held.layer.register_buffer("deep", torch.ones(1))
    assert set(snapshot.restore()) == {"count", "hole", "unset", "late", "weight", "other", "layer.deep"}
    assert snapshot.restore() == []
    assert list(held.state_dict()) == state
    assert dict(held.named_modules()) == submodules
    assert held._non_persistent_buffers_set == temporary
    after = dict(held.named_buffers())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)


def test_a_deleted_buffer_that_became_an_attribute_is_a_buffer_again():
    held = Held()
    snapshot, count = Snapshot(held), held.count
    del held.count
    held.count = torch.ones(3)
    assert snapshot.restore() == ["count"]
    assert held._buffers["count"] is held.count is count


def test_a_new_tensor_goes_with_the_note_that_it_is_there():
    held = Held()
    held.ready, held.cached = False, None
    snapshot = Snapshot(held)
    held.mean, held.cached, held.ready = torch.ones(1), torch.ones(1), True
    assert snapshot.restore() == []
    assert not hasattr(held, "mean")
    assert held.cached is None
    assert held.ready is False


QUANTISED = torch.quantize_per_tensor(torch.rand(4), 0.1, 3, torch.quint8)


@pytest.mark.parametrize("place", ["buffer", "attribute"])
@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: torch.eye(3).to_sparse(), lambda tensor: tensor.mul_(2)),
        (lambda: torch.eye(3).to_sparse(), lambda tensor: tensor.add_(torch.ones(3, 3).to_sparse())),
        (lambda: torch.eye(3).to_sparse_csr(), lambda tensor: tensor.values().mul_(2)),
        (lambda: torch.eye(4).to_sparse_bsr((2, 2)), lambda tensor: tensor.values().mul_(2)),
        (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), lambda tensor: tensor.mul_(2)),
        (QUANTISED.clone, lambda tensor: tensor.copy_(torch.zeros(4))),
    ],
    ids=["sparse", "more entries", "CSR", "BSR", "nested", "quantised"],
)
def test_tensors_that_are_not_dense(place, make, change):
    held = nn.Module()
    held.register_buffer("values", make()) if place == "buffer" else setattr(held, "values", make())
    before, snapshot = digest(*describe_value(held.values)), Snapshot(held)
    assert snapshot.restore() == []
    change(held.values)
    assert digest(*describe_value(held.values)) != before
    assert snapshot.restore() == (["values"] if place == "buffer" else [])
    assert digest(*describe_value(held.values)) == before
    held.values = torch.zeros(2)
    snapshot.restore()
    assert digest(*describe_value(held.values)) == before


@pytest.mark.parametrize("fails", [True, False])
def test_an_extra_state_that_cannot_be_kept_is_left_alone(fails):
    class Locked(nn.Linear):
        def get_extra_state(self):
            if fails:
                raise NotImplementedError
            return threading.Lock()

        def set_extra_state(self, state):
            raise AssertionError

    layer = Locked(2, 2)
    snapshot = Snapshot(layer)
    nn.init.zeros_(layer.weight)
    assert snapshot.restore() == ["weight"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_state_too(failure):
    held = Held()
    weight = held.layer.weight.detach().clone()

    def fail():
        with restored_state(held):
            spoil(held)
            raise failure

    with pytest.raises(failure):
        fail()
    assert torch.equal(held.layer.weight, weight)


def test_a_graph_may_wait_while_the_state_is_put_back():
    held = Held()
    snapshot, x = Snapshot(held), torch.ones(1, 2, requires_grad=True)
    outputs = held.layer(x)
    with torch.no_grad():
        held.layer.weight.data.add_(1)
    snapshot.restore()
    outputs.sum().backward()
    assert torch.equal(x.grad[0], held.layer.weight.detach().sum(dim=0))


DESCRIBED = """
import torch, numpy as np
from torch import nn
from art_robust_plugins.fingerprints import describe_module, digest
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(2, 2)
        self.act = lambda x: x
    def extra_repr(self):
        return f"act={self.act}"
    def get_extra_state(self):
        return {"set": {"a", "b", "c"}, "bytes": b"x", "object": object(), "array": np.arange(3), "type": torch.float16}
print(digest(*describe_module(Net())))
"""


def test_a_description_is_the_same_in_every_process():
    command = [sys.executable, "-c", DESCRIBED]
    environments = [{**os.environ, "PYTHONHASHSEED": seed} for seed in ("1", "2")]
    found = {subprocess.check_output(command, env=environment) for environment in environments}
    assert len(found) == 1


def test_other_values_have_another_description():
    quantised = torch.quantize_per_tensor(torch.rand(4), 0.1, 3, torch.quint8)
    values = [
        None, 0, 1, 1.0, True, "1", b"1", [1], (1,), {1}, {1: 2}, {1: 3}, np.arange(2), np.arange(3), np.float32(1),
        torch.zeros(2), torch.zeros(2, dtype=torch.int8), torch.float32, object(), quantised,
        torch.quantize_per_tensor(quantised.dequantize(), 0.2, 3, torch.quint8), torch.zeros(2).to_sparse(), [[1], 2],
    ]  # fmt: skip
    assert len({digest(*describe_value(value)) for value in values}) == len(values)


def test_ordinary_networks_keep_their_digest():
    torch.manual_seed(0)
    layer = nn.Linear(2, 2)
    parts = [str(layer), *(part for pair in layer.state_dict().items() for part in pair)]
    assert digest(*describe_module(layer)) == digest(*parts)


def test_a_trainer_says_that_predict_does_more():
    network = make_linear(4, 3)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    smoothed = PyTorchRandomizedSmoothing(
        network, nn.CrossEntropyLoss(), (1, 2, 2), 3, optimizer=optimizer, clip_values=(0, 1)
    )
    with pytest.warns(UserWarning, match=r"^classifier: PyTorchRandomizedSmoothing has a predict of its own"):
        StandardTrainer(smoothed)

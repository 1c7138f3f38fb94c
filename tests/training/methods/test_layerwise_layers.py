"""Where layerwise perturbations act: modes, blocks, named layers."""

from __future__ import annotations

import copy
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from art_robust_plugins.models import create_model
from art_robust_plugins.training.methods.layerwise import (
    MEASURED_EVERY,
    Layerwise,
    layerwise_perturbations,
)

from .tiny import batches, same_state, small, tiny


def snapshot(layerwise: Layerwise) -> dict[str, Tensor]:
    return layerwise.state_dict()


def test_evaluation_mode_and_passes_without_gradients_are_neither_perturbed_nor_recorded() -> None:
    network, data = small(), batches(3)
    with layerwise_perturbations(network, eps=0.5) as layerwise:
        for x, y in data[:2]:
            layerwise.begin_step(y)
            functional.cross_entropy(network(x), y).backward()
        before, (x, y) = snapshot(layerwise), data[2]
        layerwise.begin_step(y)
        plain = copy.deepcopy(network[:1]).requires_grad_(False)
        with torch.no_grad():
            assert torch.equal(network[0](x), plain(x))
        network.eval()
        inputs = x.clone().requires_grad_()
        hidden = network[:2](inputs)
        torch.autograd.grad(functional.cross_entropy(network[2:](hidden), y), inputs)
        with torch.no_grad():
            unhooked = functional.batch_norm(
                functional.conv2d(x, network[0].weight),  # type: ignore[arg-type]
                network[1].running_mean,  # type: ignore[arg-type]
                network[1].running_var,  # type: ignore[arg-type]
                network[1].weight,  # type: ignore[arg-type]
                network[1].bias,  # type: ignore[arg-type]
            )
        assert torch.allclose(hidden, unhooked, atol=1e-12)
        assert same_state(before, snapshot(layerwise))
        network.train()
        functional.cross_entropy(network(x), y).backward()
        assert not same_state(before, snapshot(layerwise))


def default_layers(network: nn.Module, x: Tensor, y: Tensor) -> set[str]:
    with layerwise_perturbations(network, eps=0.1) as layerwise:
        layerwise.begin_step(y)
        functional.cross_entropy(network(x), y).backward()
        state = layerwise.state_dict()
    layers = {key.removeprefix("layer:") for key in state if key.startswith("layer:")}
    assert {key.split(":", 2)[2] for key in state if key.startswith("sign:")} == layers
    return layers


def test_the_search_for_blocks_holds_no_outputs() -> None:
    """In the first step it compares a normalisation's input with the convolutions' outputs, which may go meanwhile."""
    network, (x, y) = tiny(), batches(1)[0]
    outputs: list[weakref.ref[Tensor]] = []
    alive = []
    with layerwise_perturbations(network, eps=0.1) as layerwise:
        network[0].register_forward_hook(lambda _, inputs, h: outputs.append(weakref.ref(h)))
        network[-1].register_forward_pre_hook(lambda *_: alive.append(outputs[0]() is not None))
        layerwise.begin_step(y)
        network(x)
    assert alive == [False]


def test_default_layers_are_the_outputs_of_the_convolutional_blocks() -> None:
    y = torch.tensor([0, 1])
    lenet = create_model("lenet", (1, 28, 28), 10)
    assert default_layers(lenet, torch.rand(2, 1, 28, 28), y) == {"layers.0", "layers.2"}
    resnet = create_model("preact-resnet18", (3, 32, 32), 10)
    blocks = [f"stages.{i}.{j}" for i in range(4) for j in range(2)]
    normalised = {"stages.0.0.bn1", *(f"{block}.bn2" for block in blocks)}  # the network's conv1, and each block's
    added = {f"{block}.conv2" for block in blocks} | {f"stages.{i}.0.shortcut" for i in range(1, 4)}
    assert default_layers(resnet, torch.rand(2, 3, 32, 32), y) == normalised | added


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (nn.BatchNorm2d(4), {"1"}),
        (nn.GroupNorm(2, 4), {"1"}),
        (nn.InstanceNorm2d(4), {"1"}),
        (nn.LayerNorm([4, 3, 3]), {"1"}),
        (nn.Sequential(nn.BatchNorm2d(4)), {"1.0"}),
        (nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(4)), {"0"}),
        (nn.Sequential(nn.MaxPool2d(1), nn.BatchNorm2d(4)), {"0"}),
        (nn.Identity(), {"0"}),
    ],
)
def test_a_block_ends_with_the_normalisation_that_takes_the_convolutions_output(
    norm: nn.Module, expected: set[str]
) -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    assert default_layers(network, torch.rand(4, 1, 5, 5), torch.tensor([0, 1, 2, 0])) == expected


def test_named_layers() -> None:
    network, data = tiny(), batches(2)
    for layers, expected in (("[01]", {"0", "1"}), ([nn.Linear, "1"], {"1", "3"}), (nn.Conv2d, {"0"})):
        with layerwise_perturbations(network, eps=0.1, layers=layers) as layerwise:
            for x, y in data:
                layerwise.begin_step(y)
                functional.cross_entropy(network(x), y).backward()
            names = {key[len("layer:") :] for key in layerwise.state_dict() if key.startswith("layer:")}
            assert names == expected


def test_names_in_a_set_are_taken_in_one_order() -> None:
    """Processes that train together compare their settings, and each has another order of a set."""
    names = [f"layer{number}" for number in range(9)]
    assert Layerwise(0.1, layers=set(names)).layers == names
    assert Layerwise(0.1, layers=frozenset({nn.ReLU, nn.Conv2d, "a"})).layers == ["a", nn.ReLU, nn.Conv2d]


def test_layers_below_the_first_trained_parameter_are_left_alone() -> None:
    network, data = small(), batches(2)
    network[0].requires_grad_(False)
    network[1].requires_grad_(False)
    with layerwise_perturbations(network, eps=0.1) as layerwise:
        for x, y in data:
            layerwise.begin_step(y)
            functional.cross_entropy(network(x), y).backward()
        state = layerwise.state_dict()
        assert {key for key in state if key.startswith("sign:")} == {"sign:0:3"}
        assert state["layer:1"].isnan()  # one of the layers, but not measured so far
        network[1].requires_grad_(True)
        for x, y in data:
            layerwise.begin_step(y)
            functional.cross_entropy(network(x), y).backward()
        assert "sign:0:1" in layerwise.state_dict()


class Operations(TorchDispatchMode):
    """Notes the name of every operation that torch runs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_no_step_asks_the_device_for_a_value() -> None:
    """What would make a GPU wait: item(), nonzero and what uses it, copies to the CPU."""
    network, data = small(), batches(2 * MEASURED_EVERY)
    data[5] = data[5][0][:3], data[5][1][:3]
    with layerwise_perturbations(network, eps=0.1) as layerwise, Operations() as operations:
        for x, y in data:
            layerwise.begin_step(y)
            functional.cross_entropy(network(x), y).backward()
    assert {"searchsorted", "index_select", "sign"} <= operations.names
    assert not operations.names & {"_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique"}


def test_nothing_is_left_behind() -> None:
    network, (x, y) = small(), batches(1)[0]
    before = [set(module.__dict__) for module in network.modules()]

    def hooks() -> int:
        return sum(
            len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in network.modules()
        )

    with layerwise_perturbations(network, eps=0.1) as layerwise:
        assert isinstance(layerwise, Layerwise)
        assert hooks() > 0
        layerwise.begin_step(y)
        functional.cross_entropy(network(x), y).backward()
    assert hooks() == 0
    assert [set(module.__dict__) for module in network.modules()] == before
    assert layerwise.state_dict() == {}
    with pytest.raises(ZeroDivisionError), layerwise_perturbations(network, eps=0.1):
        raise ZeroDivisionError
    assert hooks() == 0
    with layerwise_perturbations(network, eps=0):
        assert hooks() == 0

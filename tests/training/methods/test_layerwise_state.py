"""The state of `Layerwise`, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from art_robust_plugins.training.methods.layerwise import (
    Layerwise,
    LayerwiseAdversarialTrainer,
    layerwise_perturbations,
)

from .tiny import batches, classifier, fit, largest_matching, moves, same_state, small, tiny


def record(network: nn.Sequential) -> dict[str, Tensor]:
    with layerwise_perturbations(network, eps=0.1) as layerwise:
        x, y = batches(1)[0]
        layerwise.begin_step(y)
        functional.cross_entropy(network(x), y).backward()
        return layerwise.state_dict()


def test_the_state_is_taken_up_again_and_is_safe_to_keep() -> None:
    network = small()
    state = record(network)
    assert set(state) == {"labels", "number", "layer:1", "layer:3", "sign:0:1", "sign:0:3"}
    assert not any(tensor.requires_grad for tensor in state.values())
    kept = {key: tensor.clone() for key, tensor in state.items()}
    layerwise = Layerwise(0.1)
    layerwise.load_state_dict(state)
    for tensor in layerwise.state_dict().values():
        tensor.zero_()
    assert same_state(kept, state)
    assert same_state(kept, layerwise.state_dict())
    with layerwise.attached(network):
        for x, y in batches(3):
            layerwise.begin_step(y)
            functional.cross_entropy(network(x), y).backward()
        assert not same_state(kept, layerwise.state_dict())
    assert same_state(kept, state)


def test_states_that_do_not_fit_are_refused() -> None:
    network, state = small(), record(small())
    with pytest.raises(ValueError, match=r"state: got the entry 'seen',"):
        Layerwise(0.1).load_state_dict({"seen": torch.zeros(())})
    with pytest.raises(ValueError, match=r"state: got torch\.int8 of shape \(6, 3, 3, 3\) .*'1' .*7"):
        Layerwise(0.1).load_state_dict({**state, "sign:0:1": state["sign:0:1"][:6]})
    with pytest.raises(ValueError, match="state: got "):
        Layerwise(0.1).load_state_dict({**state, "sign:0:1": state["sign:0:1"][:0]})
    with pytest.raises(ValueError, match=r"state: got torch.float32 of shape"):
        Layerwise(0.1).load_state_dict({**state, "sign:0:1": state["sign:0:1"].float()})
    elsewhere = Layerwise(0.1)
    elsewhere.load_state_dict(state)
    with pytest.raises(ValueError, match=r"state: got the layer '1',"):
        elsewhere.attached(tiny()).__enter__()
    shaped = Layerwise(0.1)
    shaped.load_state_dict({**state, "sign:0:1": state["sign:0:1"][:, :2].contiguous()})
    x, y = batches(1)[0]
    with shaped.attached(network):
        shaped.begin_step(y)
        with pytest.raises(RuntimeError, match=r"'1' .*\(7, 3, 3, 3\)"):
            network(x)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"eps": -0.1}, "eps: got -0.1,"),
        ({"eps": float("nan")}, "eps: got nan,"),
        ({"eps": "large"}, "eps: got 'large',"),
        ({"relative": 1}, "relative: got 1,"),
        ({"layers": []}, "layers: got none,"),
        ({"layers": 7}, "layers: got 7,"),
        ({"layers": [3]}, "layers: got 3,"),
        ({"layers": "features"}, "layers: got 'features',"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        LayerwiseAdversarialTrainer(classifier(), **{"eps": 0.1, **arguments})
    assert str(error.value).startswith(sentence)


def test_a_network_without_convolutions_needs_named_layers() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    trained = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 6, 6), 4, optimizer=optimizer, clip_values=(0, 1))
    message = "layers: got None for a network without convolutions,"
    with pytest.raises(ValueError, match=message):
        LayerwiseAdversarialTrainer(trained, eps=0.1)
    with pytest.raises(ValueError, match=message), layerwise_perturbations(network, eps=0.1):
        pass
    fit(LayerwiseAdversarialTrainer(trained, eps=0.1, layers=[nn.ReLU]), 1)


def test_passes_that_do_not_fit_the_labels_are_refused() -> None:
    network, (x, y) = small(), batches(1)[0]
    with layerwise_perturbations(network, eps=0.1) as layerwise:
        with pytest.raises(RuntimeError, match=r"begin_step\(y\)"):
            network(x)
        with pytest.raises(ValueError, match=r"y: got labels of shape \(7, 1\),"):
            layerwise.begin_step(y[:, None])
        layerwise.begin_step(y[:5])
        with pytest.raises(RuntimeError, match=r"^y: got 5 labels, .*'0' .*\(7, 3, 3, 3\)"):
            network(x)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_layers_without_a_tensor_of_numbers_are_refused() -> None:
    x, y = batches(1)[0]
    network = nn.Sequential(nn.Conv2d(1, 3, 2), Pair()).double()
    with layerwise_perturbations(network, eps=0.1, layers=[Pair]) as layerwise:
        layerwise.begin_step(y)
        with pytest.raises(ValueError, match=r"^layers: .*Pair '1' .*tuple"):
            network(x)


def test_activation_checkpointing_is_refused_where_it_would_repeat_a_pass() -> None:
    network, (x, y) = small(), batches(1)[0]
    with layerwise_perturbations(network, eps=0.1) as layerwise:
        layerwise.begin_step(y)
        loss = functional.cross_entropy(network[3:](checkpoint(network[:3], x, use_reentrant=False)), y)
        with pytest.raises(RuntimeError, match="backward pass"):
            loss.backward()


@settings(max_examples=20)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=2, max_size=5), st.booleans())
def test_any_sequence_of_batches_perturbs_as_many_samples_as_it_can(sizes: list[list[int]], relative: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(len(y), 1, 5, 5, dtype=torch.float64, generator=generator), torch.tensor(y)) for y in sizes]
    differences, gradients = moves(tiny(), data, relative=relative)
    assert differences[0].abs().max() == 0
    for before, now in zip(range(len(data)), range(1, len(data)), strict=False):
        moved = differences[now].flatten(1).abs().amax(dim=1) > 1e-9
        assert moved.sum() == largest_matching(sizes[now], sizes[before])
        for i in moved.nonzero().flatten().tolist():
            scale = differences[now][i].abs().max()
            met = [j for j, g in enumerate(gradients[before]) if torch.allclose(differences[now][i], scale * g.sign())]
            assert any(sizes[before][j] != sizes[now][i] for j in met)

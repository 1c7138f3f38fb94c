"""Layerwise perturbations against their definition, written out by hand in float64; what the instrument promises."""

from __future__ import annotations

import copy
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from art_robust_plugins import LocalBallTrainer, StandardTrainer, ThreatModel, TrainingOptions
from art_robust_plugins.models import create_model
from art_robust_plugins.training import BANG
from art_robust_plugins.training.instruments.pairing import other_class_slots
from art_robust_plugins.training.instruments.signs import PackedSigns
from art_robust_plugins.training.methods.layerwise import (
    MEASURED_EVERY,
    MOMENTUM,
    Layerwise,
    LayerwiseAdversarialTrainer,
    layerwise_perturbations,
)
from art_robust_plugins.training.processes import Share

# ------------------------------------------------------------------------------------------------------ the pairing

CLASSES = st.lists(st.integers(0, 4), min_size=1, max_size=12)


@given(CLASSES, CLASSES, st.floats(0, 1))
def test_pairings_are_of_different_classes_use_no_slot_twice_and_serve_as_many_as_possible(
    present: list[int], stored: list[int], turn: float
) -> None:
    slots, counts = other_class_slots(torch.tensor(present), torch.tensor(stored), turn)
    assert slots.shape == counts.shape == (len(present),)
    assert slots.min() >= 0
    assert slots.max() < len(stored)
    pairs = [(i, j) for i, (j, c) in enumerate(zip(slots.tolist(), counts.tolist(), strict=True)) if c]
    assert all(present[i] != stored[j] for i, j in pairs)
    assert len({j for _, j in pairs}) == len(pairs)
    assert len(pairs) == largest_matching(present, stored)


def largest_matching(present: list[int], stored: list[int]) -> int:
    """By augmenting paths."""
    owner: dict[int, int] = {}

    def placed(i: int, seen: set[int]) -> bool:
        for j, label in enumerate(stored):
            if label != present[i] and j not in seen:
                seen.add(j)
                if j not in owner or placed(owner[j], seen):
                    owner[j] = i
                    return True
        return False

    return sum(placed(i, set()) for i in range(len(present)))


def test_successive_steps_meet_all_other_classes() -> None:
    y = torch.arange(5).repeat(4)
    met = set()
    with layerwise_perturbations(tiny(), eps=0.1) as layerwise:
        for _ in range(40):
            layerwise.begin_step(y)
            step, previous = layerwise._step, layerwise._previous
            if previous is not None:
                slots, counts = step.pairing(previous, len(y), torch.zeros(len(y), 1))  # type: ignore[union-attr]
                assert counts.all()
                met |= set(zip(y.tolist(), y[slots].tolist(), strict=True))
            signs = PackedSigns.of(torch.zeros(len(y), 1), torch.contiguous_format)
            layerwise._step.signs["0", 0] = signs  # type: ignore[union-attr]
    assert met == {(a, b) for a in range(5) for b in range(5) if a != b}


# ----------------------------------------------------------------------------------- training against the definition


def small(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3, bias=False),
        nn.BatchNorm2d(3),
        nn.Tanh(),
        nn.Conv2d(3, 4, 2),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).to(dtype)


def batches(count: int, size: int = 7, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [
        (
            torch.randn(size, 1, 5, 5, dtype=torch.float64, generator=generator),
            torch.randint(0, classes, (size,), generator=generator),
        )
        for _ in range(count)
    ]


class ByHand:
    """The method without hooks: plain formulas on a copy of the parameters, and gradients by autograd.grad."""

    def __init__(self, network: nn.Sequential, eps: float, relative: bool) -> None:
        self.parameters = [p.detach().clone().requires_grad_() for p in network.parameters()]
        self.eps, self.relative = eps, relative
        self.means: list[float] = []
        self.gradients: list[Tensor] = []
        self.labels = torch.empty(0)
        self.steps = 0

    def step(self, x: Tensor, y: Tensor, observed: list[Tensor], lr: float) -> int:
        """One step, given the layers' outputs that were observed; returns how many samples were perturbed."""
        kernel, gamma, beta, kernel_2, bias_2, weight, bias = self.parameters
        z = functional.conv2d(x, kernel)
        mean, variance = z.mean(dim=(0, 2, 3), keepdim=True), z.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
        h = (z - mean) / (variance + 1e-5).sqrt() * gamma[:, None, None] + beta[:, None, None]
        slots = self.slots([h, functional.conv2d(observed[0].tanh(), kernel_2, bias_2)], y, observed)
        h_1 = h + self.perturbation(0, h, slots)
        h_2 = functional.conv2d(h_1.tanh(), kernel_2, bias_2)
        h_2 = h_2 + self.perturbation(1, h_2, slots)
        assert torch.allclose(observed[0], h_1, rtol=0, atol=1e-12)
        assert torch.allclose(observed[1], h_2, rtol=0, atol=1e-12)
        loss = functional.cross_entropy(h_2.tanh().flatten(1) @ weight.t() + bias, y)
        found = torch.autograd.grad(loss, [h_1, h_2, *self.parameters])
        self.gradients, self.labels = list(found[:2]), y
        for parameter, gradient in zip(self.parameters, found[2:], strict=True):
            parameter.data -= lr * gradient
        self.steps += 1
        return sum(slot is not None for slot in slots)

    def slots(self, outputs: list[Tensor], y: Tensor, observed: list[Tensor]) -> list[int | None]:
        """Which stored gradient each sample met, the same at both layers, read from what was observed."""
        for layer, h in enumerate(outputs):
            self.measure(layer, h)
        moved = [seen - h for seen, h in zip(observed, outputs, strict=True)]
        slots: list[int | None] = []
        for i in range(len(y)):
            if moved[0][i].abs().max() < 1e-12:
                slots.append(None)
                continue
            fitting = [j for j in range(len(self.labels)) if j not in slots and self.explains(j, [m[i] for m in moved])]
            assert fitting
            assert self.labels[fitting[0]] != y[i]
            slots.append(fitting[0])
        return slots

    def explains(self, slot: int, moved: list[Tensor]) -> bool:
        steps = [self.scale(layer) * self.gradients[layer][slot].sign() for layer in range(2)]
        return all(torch.allclose(m, step, rtol=0, atol=1e-12) for m, step in zip(moved, steps, strict=True))

    def perturbation(self, layer: int, h: Tensor, slots: list[int | None]) -> Tensor:
        result = torch.zeros_like(h)
        for i, slot in enumerate(slots):
            if slot is not None:
                result[i] = self.scale(layer) * self.gradients[layer][slot].sign()
        return result.detach()

    def measure(self, layer: int, h: Tensor) -> None:
        if self.steps == 0:
            self.means.append(h.abs().mean().item())
        elif self.steps % MEASURED_EVERY == 0:
            self.means[layer] += MOMENTUM * (h.abs().mean().item() - self.means[layer])

    def scale(self, layer: int) -> float:
        return self.eps * (self.means[layer] if self.relative else 1.0)


@pytest.mark.parametrize("relative", [True, False])
def test_it_trains_as_its_definition_does_step_by_step(relative: bool) -> None:
    network = small()
    by_hand = ByHand(network, 0.3, relative)
    optimizer = torch.optim.SGD(network.parameters(), 0.2)
    perturbed = []
    with layerwise_perturbations(network, eps=0.3, relative=relative) as layerwise:
        observed: list[Tensor] = []
        handles = [network[i].register_forward_pre_hook(lambda _, x: observed.append(x[0].detach())) for i in (2, 4)]
        for x, y in batches(2 * MEASURED_EVERY + 3):
            observed.clear()
            layerwise.begin_step(y)
            optimizer.zero_grad()
            functional.cross_entropy(network(x), y).backward()
            optimizer.step()
            possible = largest_matching(y.tolist(), by_hand.labels.tolist())
            assert by_hand.step(x, y, observed, lr=0.2) == possible
            perturbed.append(possible)
        for handle in handles:
            handle.remove()
    assert perturbed[0] == 0
    assert max(perturbed) == 7
    for parameter, expected in zip(network.parameters(), by_hand.parameters, strict=True):
        assert torch.allclose(parameter, expected, rtol=0, atol=1e-11)


def tiny() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)).double()


def moves(
    network: nn.Sequential, data: list[tuple[Tensor, Tensor]], labels: list[Tensor] | None = None, **arguments: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """For each batch h~ - h of layer 0 at constant weights, and dLoss/dh."""
    differences, gradients = [], []
    with layerwise_perturbations(network, **{"eps": 0.1, "relative": False, **arguments}) as layerwise:
        for step, (x, y) in enumerate(data):
            h = functional.conv2d(x, network[0].weight, network[0].bias)  # type: ignore[arg-type]
            layerwise.begin_step(y if labels is None else labels[step])
            perturbed = network[0](x)
            differences.append((perturbed - h).detach())
            loss = functional.cross_entropy(network[1:](perturbed), y.repeat(len(x) // len(y)))
            perturbed.retain_grad()
            loss.backward()
            gradients.append(perturbed.grad)
    return differences, gradients


def test_the_first_step_is_that_of_plain_training_to_the_last_bit() -> None:
    x, y = batches(1)[0]
    plain, network = small(torch.float32), small(torch.float32)
    functional.cross_entropy(plain(x.float()), y).backward()
    with layerwise_perturbations(network, eps=0.5) as layerwise:
        layerwise.begin_step(y)
        functional.cross_entropy(network(x.float()), y).backward()
    for one, other in zip(plain.parameters(), network.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)  # type: ignore[arg-type]


def test_a_relative_eps_is_a_multiple_of_the_mean_activation() -> None:
    data = batches(2)
    absolute, _ = moves(tiny(), data, eps=0.1)
    relative, _ = moves(tiny(), data, eps=0.1, relative=True)
    first = functional.conv2d(data[0][0], tiny()[0].weight, tiny()[0].bias)  # type: ignore[arg-type]
    assert absolute[1].abs().max().item() == pytest.approx(0.1)
    assert torch.allclose(relative[1], absolute[1] * first.abs().mean())


def test_batches_of_another_size_use_what_they_can_and_replace_the_store() -> None:
    (x, _), (x_2, _), (x_3, _) = batches(3, size=6)
    data = [(x, torch.tensor([0, 0, 1, 1, 2, 2])), (x_2[:2], torch.tensor([0, 1])), (x_3, torch.tensor([0] * 6))]
    differences, gradients = moves(tiny(), data)
    moved = [difference.flatten(1).abs().amax(dim=1) > 1e-9 for difference in differences]
    assert [m.sum().item() for m in moved] == [0, 2, 1]  # at last only the slot of class 1 can be used
    used = differences[2][moved[2]][0]
    assert torch.allclose(used, 0.1 * gradients[1][1].sign(), atol=1e-12)


def test_a_pass_over_several_copies_of_the_batch() -> None:
    (x, y), (x_2, _) = batches(2, size=4)
    y = torch.tensor([0, 1, 2, 1])
    data = [(torch.cat([x, x + 1]), y), (torch.cat([x_2, x_2 + 1]), y)]
    differences, gradients = moves(tiny(), data)
    available = {tuple(g.sign().flatten().tolist()): label for g, label in zip(gradients[0], y.repeat(2), strict=True)}
    found = [available[tuple((d * 10).round().flatten().tolist())] for d in differences[1]]
    assert all(a != b for a, b in zip(found, y.repeat(2), strict=True))


def test_labels_may_be_class_probabilities() -> None:
    data = batches(3)
    soft = [0.6 * functional.one_hot(y, 3).double() + 0.1 for _, y in data]
    for one, other in zip(moves(tiny(), data)[0], moves(tiny(), data, labels=soft)[0], strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("first_counts", [True, False])
def test_all_passes_of_a_step_carry_the_perturbation_of_the_first_that_counted(first_counts: bool) -> None:
    network, (x, _) = tiny(), batches(1, size=4)[0]
    y, flipped = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0])
    seen: list[Tensor] = []
    network[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def plain(x: Tensor) -> Tensor:
        return functional.conv2d(x, network[0].weight, network[0].bias)  # type: ignore[arg-type]

    with layerwise_perturbations(network, eps=0.1, relative=False) as layerwise:
        layerwise.begin_step(y)
        first, second = functional.cross_entropy(network(x), y), -functional.cross_entropy(network(x + 1), y)
        for h in seen:
            h.retain_grad()
        (second + first if first_counts else second).backward()
        gradient = seen[0 if first_counts else 1].grad
        assert gradient is not None
        assert torch.equal(layerwise.state_dict()["sign:0:0"], gradient.sign().to(torch.int8))
        layerwise.begin_step(flipped)
        seen.clear()
        network(x)
        network(2 * x)
        moved = seen[0] - plain(x)
        assert torch.allclose(moved, seen[1] - plain(2 * x))
        assert moved.abs().min() > 0.09


class Alone:
    """One process that acts as if there were others."""

    count, index = 1, 0

    def gather(self, tensor: Tensor) -> list[Tensor]:
        return [tensor]

    def sum(self, tensor: Tensor) -> None:
        pass


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_processes_exchange_signs_in_one_order(layout: torch.memory_format) -> None:
    """Whatever the layout of their own outputs, which may depend on how many samples each of them has."""
    network, (x, y) = tiny().to(memory_format=layout), batches(1)[0]
    states = []
    for share in (None, Share(Alone(), len(y))):  # type: ignore[arg-type]
        with layerwise_perturbations(network, eps=0.1) as layerwise:
            layerwise.share = share
            for _ in range(3):
                layerwise.begin_step(y)
                functional.cross_entropy(network(x.contiguous(memory_format=layout)), y).backward()
                kept = {signs.layout for signs in layerwise._step.signs.values()}  # type: ignore[union-attr]
                assert kept == {layout if share is None else torch.contiguous_format}
            states.append(layerwise.state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


class Twice(nn.Module):
    """One convolution, called twice in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.head = nn.Linear(25, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(torch.tanh(self.conv(x))).flatten(1))


def test_a_layer_that_is_called_twice_in_a_pass() -> None:
    network, (x, y) = Twice().double(), batches(1)[0]
    with layerwise_perturbations(network, eps=0.1) as layerwise:
        for _ in range(2):
            layerwise.begin_step(y)
            functional.cross_entropy(network(x), y).backward()
        assert {key for key in layerwise.state_dict() if "conv" in key} == {"layer:conv", "sign:0:conv", "sign:1:conv"}


def test_memory_formats_and_in_place_activations_do_not_matter() -> None:
    def run(layout: torch.memory_format, in_place: bool) -> list[Tensor]:
        torch.manual_seed(0)
        relu = nn.ReLU(inplace=in_place)
        network = nn.Sequential(nn.Conv2d(3, 4, 3), relu, nn.Conv2d(4, 5, 3), nn.BatchNorm2d(5), relu, nn.Flatten())
        network = network.double().to(memory_format=layout)
        x = torch.randn(6, 3, 7, 7, dtype=torch.float64).contiguous(memory_format=layout)
        y = torch.arange(6) % 3
        with layerwise_perturbations(network, eps=0.2) as layerwise:
            for _ in range(4):
                layerwise.begin_step(y)
                functional.cross_entropy(network(x), y).backward()
        return [p.grad for p in network.parameters()]  # type: ignore[misc]

    expected = run(torch.contiguous_format, in_place=False)
    for layout in (torch.contiguous_format, torch.channels_last):
        for one, other in zip(expected, run(layout, in_place=True), strict=True):
            assert torch.allclose(one, other, atol=1e-12)


class Turned(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(2, 3)


class Expanded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :1].expand_as(x)


@pytest.mark.parametrize("module", [nn.Tanh(), Turned(), Expanded()])
def test_outputs_that_others_need_are_left_whole(module: nn.Module) -> None:
    """tanh saves its output, and the others return other tensors' memory: h~ must be another tensor."""
    x, y = batches(1)[0]
    network = tiny()
    network[1] = module
    with layerwise_perturbations(network, eps=0.1, layers=[type(module)], relative=False) as layerwise:
        for _ in range(2):
            network.zero_grad()
            layerwise.begin_step(y)
            functional.cross_entropy(network(x), y).backward()
            if layerwise._previous is None:
                state = layerwise.state_dict()
    hand = tiny()
    previous = {"signs": state["sign:0:1"], "labels": state["labels"]}
    slots, counts = other_class_slots(y, previous["labels"], 1 * (5**0.5 - 1) / 2)
    shift = 0.1 * previous["signs"][slots] * counts[:, None, None, None]
    functional.cross_entropy(hand[2:](module(hand[0](x)) + shift), y).backward()
    for one, other in zip(network.parameters(), hand.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-12)  # type: ignore[arg-type]


def test_bf16_autocast() -> None:
    network, (x, y) = small(torch.float32), batches(1)[0]
    seen = []
    network[2].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with layerwise_perturbations(network, eps=0.5) as layerwise:
        for _ in range(2):
            layerwise.begin_step(y)
            with torch.autocast("cpu", torch.bfloat16):
                loss = functional.cross_entropy(network(x.float()).float(), y)
            loss.backward()
        state = layerwise.state_dict()
    assert {h.dtype for h in seen} == {torch.bfloat16}
    assert not torch.equal(*seen)
    assert state["layer:1"].dtype == torch.float32
    assert all(p.grad.isfinite().all() for p in network.parameters())  # type: ignore[union-attr]


# --------------------------------------------------------------------------------- where it acts, and where it does not


def snapshot(layerwise: Layerwise) -> dict[str, Tensor]:
    return layerwise.state_dict()


def same_state(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


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


# ------------------------------------------------------------------------------------------------------- the trainer

GENERATOR = np.random.default_rng(0)
X, Y = GENERATOR.random((50, 1, 6, 6), dtype=np.float32), GENERATOR.integers(0, 4, 50)


def classifier() -> PyTorchClassifier:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.Flatten(), nn.Dropout(0.3)
    )
    network.append(nn.Linear(36, 4))
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9)
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 6, 6), 4, optimizer=optimizer, clip_values=(0, 1))


def fitted(trainer: Any, epochs: int = 3) -> list[Tensor]:
    trainer.fit(X, Y, nb_epochs=epochs, batch_size=16, verbose=False)  # the last batch of an epoch has 2 samples
    return [tensor.clone() for tensor in trainer.classifier.model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_eps_0_trains_like_no_instrument_bit_for_bit() -> None:
    options = TrainingOptions(seed=3)
    plain = fitted(StandardTrainer(classifier(), options=options))
    assert same(plain, fitted(LayerwiseAdversarialTrainer(classifier(), eps=0, options=options)))
    assert not same(plain, fitted(LayerwiseAdversarialTrainer(classifier(), eps=0.1, options=options)))


def test_a_run_is_repeatable_also_with_the_same_trainer_object() -> None:
    trainer = LayerwiseAdversarialTrainer(classifier(), eps=0.3, options=TrainingOptions(seed=3))
    first = fitted(trainer)
    fresh = classifier()
    trainer.classifier.model.load_state_dict(fresh.model.state_dict())
    trainer.classifier.optimizer.load_state_dict(fresh.optimizer.state_dict())
    assert same(first, fitted(trainer))


def trainers(kind: str, options: TrainingOptions) -> Any:
    if kind == "local ball":
        threat = ThreatModel("Linf", 0.1)
        instruments = [Layerwise(0.3), BANG(0.9, ratio=0.5)]
        return LocalBallTrainer(classifier(), threat=threat, global_loss="kl", instruments=instruments, options=options)
    arguments = {"layers": [nn.ReLU, "3"], "relative": False} if kind == "named, absolute" else {}
    return LayerwiseAdversarialTrainer(classifier(), eps=0.3, options=options, **arguments)


@pytest.mark.parametrize("kind", ["default", "named, absolute", "local ball", "channels last", "bf16"])
def test_a_resumed_run_equals_one_that_was_never_stopped(kind: str, tmp_path: Path) -> None:
    def run(folder: str, resume: bool, epochs: int) -> list[Tensor]:
        options = TrainingOptions(
            seed=2,
            checkpoint_dir=tmp_path / folder,
            resume=resume,
            channels_last=kind == "channels last",
            mixed_precision="bf16" if kind == "bf16" else "no",
        )
        return fitted(trainers(kind, options), epochs)

    whole = run("whole", False, 4)
    run("parts", False, 1)
    run("parts", True, 2)
    assert same(whole, run("parts", True, 4))


def test_in_a_step_of_the_local_ball_all_training_passes_carry_one_perturbation_and_one_enters_the_mean() -> None:
    """The passes of the ascent, in evaluation mode, are neither perturbed nor measured, whatever their number."""
    estimator = classifier()
    trainer = LocalBallTrainer(
        estimator,
        threat=ThreatModel("Linf", 0.1),
        steps=2,
        instruments=[Layerwise(0.1)],
        options=TrainingOptions(seed=0, shuffle=False),
    )
    plain: list[Tensor] = []
    seen: list[tuple[bool, Tensor]] = []
    moved: list[list[Tensor]] = []
    means: list[float] = []
    # A hook that comes before the instrument's sees h, the one of the next layer h~.
    estimator.model[1].register_forward_hook(lambda module, _, h: plain.append(h.detach().clone()))
    estimator.model[2].register_forward_pre_hook(
        lambda module, x: seen.append((module.training, x[0].detach().clone()))
    )
    loss = trainer.training_loss

    def watched(x: Tensor, y: Tensor) -> Tensor:
        plain.clear()
        seen.clear()
        result = loss(x, y)
        moved.append([after - before for before, (training, after) in zip(plain, seen, strict=True) if training])
        assert all(torch.equal(h, after) for h, (training, after) in zip(plain, seen, strict=True) if not training)
        if (len(moved) - 1) % MEASURED_EVERY == 0:
            (h,) = [h for h, (training, _) in zip(plain, seen, strict=True) if training][:1]
            mean = h.abs().mean().item()
            means.append(mean if not means else means[-1] + MOMENTUM * (mean - means[-1]))
        return result

    trainer.training_loss = watched  # type: ignore[method-assign]
    layerwise, states = trainer.instruments[0], []
    trainer.end_epoch = lambda record: states.append(layerwise.state_dict())  # type: ignore[method-assign]
    fitted(trainer, 6)
    assert len(moved) > 2 * MEASURED_EVERY
    for at_adversary, at_local_point in moved[1:]:
        assert at_adversary.abs().max() > 0
        torch.testing.assert_close(at_adversary, at_local_point, rtol=0, atol=1e-5)
    assert states[-1]["layer:1"].item() == pytest.approx(means[-1], rel=1e-5)


def test_the_ascent_records_nothing() -> None:
    trainer = trainers("local ball", TrainingOptions(seed=0))
    layerwise = trainer.instruments[0]
    states = []

    def end_epoch(record: dict[str, float]) -> None:
        states.append(layerwise.state_dict())

    trainer.end_epoch = end_epoch
    fitted(trainer, 1)
    calls = {key.split(":")[1] for key in states[0] if key.startswith("sign:")}
    assert calls == {"0"}
    without = LocalBallTrainer(
        classifier(),
        threat=trainer.threat,
        global_loss="kl",
        instruments=[BANG(0.9, ratio=0.5)],
        options=TrainingOptions(seed=0),
    )
    assert not same(fitted(without, 1), [t.clone() for t in trainer.classifier.model.state_dict().values()])


def test_bang_still_acts_on_a_perturbed_network() -> None:
    results = []
    for instruments in ([], [BANG(0.5)]):
        options = TrainingOptions(seed=0)
        results.append(
            fitted(LayerwiseAdversarialTrainer(classifier(), eps=0.3, instruments=instruments, options=options))
        )
    assert not same(*results)


def test_a_step_costs_one_forward_and_one_backward_pass() -> None:
    def passes(trainer: type, **arguments: Any) -> list[str]:
        trained, seen = classifier(), []
        trainer = trainer(trained, options=TrainingOptions(seed=0), **arguments)
        trained.model[3].register_forward_hook(lambda module, *_: seen.append("forward" if module.training else "eval"))
        trained.model[3].register_full_backward_hook(lambda *_: seen.append("backward"))
        fitted(trainer, 2)
        return seen

    found = passes(LayerwiseAdversarialTrainer, eps=0.1)
    assert found == passes(StandardTrainer)
    assert [found.count(kind) for kind in ("forward", "backward")] == [8, 8]  # 2 epochs of 4 batches


def test_the_settings_are_those_that_it_was_made_with() -> None:
    trainer = LayerwiseAdversarialTrainer(classifier(), eps=0.2, layers="3")
    assert {name: trainer.parameters[name] for name in ("eps", "layers", "relative")} == {
        "eps": 0.2,
        "layers": ["3"],
        "relative": True,
    }
    assert repr(Layerwise(0.2, layers="3")) == "Layerwise(eps=0.2, layers=['3'], relative=True)"


# ------------------------------------------------------------------------------------------------- state, bad input


def recorded(network: nn.Sequential) -> dict[str, Tensor]:
    with layerwise_perturbations(network, eps=0.1) as layerwise:
        x, y = batches(1)[0]
        layerwise.begin_step(y)
        functional.cross_entropy(network(x), y).backward()
        return layerwise.state_dict()


def test_the_state_is_taken_up_again_and_is_safe_to_keep() -> None:
    network = small()
    state = recorded(network)
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
    network, state = small(), recorded(small())
    with pytest.raises(ValueError, match=r"state: got the entry 'seen', expected those of Layerwise.state_dict"):
        Layerwise(0.1).load_state_dict({"seen": torch.zeros(())})
    with pytest.raises(ValueError, match=r"state: got torch.int8 of shape \(6, 3, 3, 3\) for the layer '1' and 7"):
        Layerwise(0.1).load_state_dict({**state, "sign:0:1": state["sign:0:1"][:6]})
    with pytest.raises(ValueError, match="expected int8 signs of as many samples or a multiple"):
        Layerwise(0.1).load_state_dict({**state, "sign:0:1": state["sign:0:1"][:0]})
    with pytest.raises(ValueError, match=r"state: got torch.float32 of shape"):
        Layerwise(0.1).load_state_dict({**state, "sign:0:1": state["sign:0:1"].float()})
    elsewhere = Layerwise(0.1)
    elsewhere.load_state_dict(state)
    with pytest.raises(ValueError, match=r"state: got the layer '1', expected those that Layerwise\(eps=0.1"):
        elsewhere.attached(tiny()).__enter__()
    shaped = Layerwise(0.1)
    shaped.load_state_dict({**state, "sign:0:1": state["sign:0:1"][:, :2].contiguous()})
    x, y = batches(1)[0]
    with shaped.attached(network):
        shaped.begin_step(y)
        with pytest.raises(RuntimeError, match=r"output of '1' has the shape \(7, 3, 3, 3\), expected \(N, 2, 3, 3\)"):
            network(x)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"eps": -0.1}, "eps: got -0.1, expected a number that is not negative."),
        ({"eps": float("nan")}, "eps: got nan, expected a number that is not negative."),
        ({"eps": "large"}, "eps: got 'large', expected a number that is not negative."),
        ({"relative": 1}, "relative: got 1, expected True or False."),
        ({"layers": []}, "layers: got none, expected at least one name or type, or None for the convolutional blocks."),
        ({"layers": 7}, "layers: got 7, expected names of layers or types of modules."),
        ({"layers": [3]}, "layers: got 3, expected names of layers or types of modules."),
        (
            {"layers": "features"},
            "layers: got 'features', which no layer of the network fits, expected a name or type such as '3'.",
        ),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole sentence is compared)
        LayerwiseAdversarialTrainer(classifier(), **{"eps": 0.1, **arguments})
    assert str(error.value).split(" such as")[0] == sentence.split(" such as", maxsplit=1)[0]


def test_a_network_without_convolutions_needs_named_layers() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    trained = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 6, 6), 4, optimizer=optimizer, clip_values=(0, 1))
    message = "layers: got None for a network without convolutions, expected names or types of layers"
    with pytest.raises(ValueError, match=message):
        LayerwiseAdversarialTrainer(trained, eps=0.1)
    with pytest.raises(ValueError, match=message), layerwise_perturbations(network, eps=0.1):
        pass
    fitted(LayerwiseAdversarialTrainer(trained, eps=0.1, layers=[nn.ReLU]), 1)


def test_passes_that_do_not_fit_the_labels_are_refused() -> None:
    network, (x, y) = small(), batches(1)[0]
    with layerwise_perturbations(network, eps=0.1) as layerwise:
        with pytest.raises(RuntimeError, match=r"no labels are known for this forward pass, expected begin_step\(y\)"):
            network(x)
        with pytest.raises(
            ValueError, match=r"y: got labels of shape \(7, 1\), expected \(N,\) or \(N, C\) with C > 1"
        ):
            layerwise.begin_step(y[:, None])
        layerwise.begin_step(y[:5])
        with pytest.raises(RuntimeError, match=r"y: got 5 labels, and in '0' an output of shape \(7, 3, 3, 3\)"):
            network(x)


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_layers_without_a_tensor_of_numbers_are_refused() -> None:
    x, y = batches(1)[0]
    network = nn.Sequential(nn.Conv2d(1, 3, 2), Pair()).double()
    with layerwise_perturbations(network, eps=0.1, layers=[Pair]) as layerwise:
        layerwise.begin_step(y)
        with pytest.raises(
            ValueError, match="layers: the output of the Pair '1' is a tuple, expected layers with a fl"
        ):
            network(x)


def test_activation_checkpointing_is_refused_where_it_would_repeat_a_pass() -> None:
    network, (x, y) = small(), batches(1)[0]
    with layerwise_perturbations(network, eps=0.1) as layerwise:
        layerwise.begin_step(y)
        loss = functional.cross_entropy(network[3:](checkpoint(network[:3], x, use_reentrant=False)), y)
        with pytest.raises(RuntimeError, match="was called during a backward pass, as activation checkpointing does"):
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

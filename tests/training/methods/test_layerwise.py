"""Layerwise perturbations against their definition, step by step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins.training.instruments.pairing import other_class_slots
from art_robust_plugins.training.methods.layerwise import (
    MEASURED_EVERY,
    MOMENTUM,
    layerwise_perturbations,
)

from .tiny import batches, largest_matching, moves, small, tiny


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
            if layerwise.previous is None:
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

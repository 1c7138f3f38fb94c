"""Local-ball training: float64 oracles of Madry's PGD, of TRADES and of the whole objective; what a step costs."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator
from art.defences.preprocessor import MixupPyTorch
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

from art_robust_plugins import (
    LocalBallTrainer,
    PGDTrainer,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    TRADESTrainer,
    TrainingOptions,
)
from art_robust_plugins.training import BANG
from art_robust_plugins.training.overfitting import OverfittingWatch

DIGITS, LABELS = load_digits(return_X_y=True)
X = torch.from_numpy((DIGITS / 16).astype(np.float32).reshape(-1, 1, 8, 8))
Y = torch.from_numpy(LABELS)
LINF, L2, L1 = ThreatModel("Linf", 0.1), ThreatModel("L2", 0.8), ThreatModel("L1", 2.0)


def normed(seed: int = 0) -> nn.Sequential:
    """With batch normalisation, and dropout that draws nothing."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Dropout(0.0),
        nn.Linear(64, 10),
    )


def plain(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2), nn.Softplus(), nn.Flatten(), nn.Linear(36, 10))


def classifier(model: nn.Module | None = None, lr: float = 0.1, **arguments: Any) -> PyTorchClassifier:
    model = normed() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    loss = arguments.pop("loss", nn.CrossEntropyLoss())
    return PyTorchClassifier(model, loss, (1, 8, 8), 10, optimizer=optimizer, **{"clip_values": (0, 1), **arguments})


def weights(trained: PyTorchClassifier) -> list[Tensor]:
    return [tensor.clone() for tensor in trained.model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def quiet(epochs: int = 2, batch_size: int = 50) -> dict[str, Any]:
    return {"nb_epochs": epochs, "batch_size": batch_size, "verbose": False}


# -------------------------------------------------------------------------------------------- oracles from the formulas


def noise(norm: str, x: Tensor, radius: float) -> Tensor:
    """Uniform in the ball, from the same draws as the start of the ascent."""
    samples, features = x.flatten(1).shape
    if norm == "Linf":
        drawn = radius * (2 * torch.rand(samples, features, dtype=x.dtype) - 1)
    else:
        drawn = torch.randn(samples, features, dtype=x.dtype)
        length = drawn.pow(2).sum(dim=1, keepdim=True).sqrt()
        drawn = radius * torch.rand(samples, 1, dtype=x.dtype).pow(1 / features) * (drawn / length)
    return drawn.reshape(x.shape)


def direction(norm: str, gradient: Tensor) -> Tensor:
    if norm == "Linf":
        return torch.sign(gradient)
    return torch.stack([g / g.pow(2).sum().sqrt() for g in gradient])


def projected(norm: str, z: Tensor, x: Tensor, eps: float) -> Tensor:
    if norm == "Linf":
        return torch.minimum(torch.maximum(z, x - eps), x + eps)
    lengths = [(a - b).pow(2).sum().sqrt() for a, b in zip(z, x, strict=True)]
    return torch.stack([b + (a - b) * min(1.0, eps / float(n)) for a, b, n in zip(z, x, lengths, strict=True)])


def kl(p: Tensor, q: Tensor) -> Tensor:
    """The mean over samples of sum p log(p / q), from logits."""
    p, q = p.exp() / p.exp().sum(dim=1, keepdim=True), q.exp() / q.exp().sum(dim=1, keepdim=True)
    return (p * torch.log(p / q)).sum(dim=1).mean()


def ce(z: Tensor, y: Tensor) -> Tensor:
    return torch.stack([torch.log(row.exp().sum()) - row[label] for row, label in zip(z, y, strict=True)]).mean()


def slope(function: Callable[[Tensor], Tensor], at: Tensor) -> Tensor:
    at = at.detach().clone().requires_grad_()
    return torch.autograd.grad(function(at), at)[0]


class Oracle:
    """What the papers and the module's head say, in the order in which the documentation says that it happens."""

    def __init__(self, model: nn.Module, threat: ThreatModel, limits: tuple[float, float] | None) -> None:
        self.model, self.norm, self.eps = model, threat.norm, threat.eps
        self.low, self.high = limits or (-math.inf, math.inf)
        self.clipped = 0

    def clip(self, z: Tensor) -> Tensor:
        self.clipped += int(((z < self.low) | (z > self.high)).sum())
        return torch.clamp(z, self.low, self.high)

    def start(self, x: Tensor, kind: str) -> Tensor:
        if kind == "none":
            return x
        if kind == "gaussian":
            moved = x + 0.03 * self.eps * torch.randn(x.shape, dtype=x.dtype)
            return self.clip(projected(self.norm, moved, x, self.eps))
        return self.clip(x + noise(self.norm, x, self.eps))

    def ascend(
        self, objective: Callable[[Tensor], Tensor], x: Tensor, start: str, steps: int, step_size: float
    ) -> list[Tensor]:
        z, iterates = self.start(x, start), []
        for _ in range(steps):
            moved = z + step_size * direction(self.norm, slope(objective, z))
            z = self.clip(projected(self.norm, moved, x, self.eps))
            iterates.append(z)
        return iterates

    def madry(self, x: Tensor, y: Tensor, steps: int, step_size: float, start: str) -> Tensor:
        """min E[max CE(f(x + delta), y)]: arXiv 1706.06083, (2.1) and the PGD of its section 2.1."""
        self.model.eval()
        adversary = self.ascend(lambda z: ce(self.model(z), y), x, start, steps, step_size)[-1]
        self.model.train()
        return ce(self.model(adversary), y)

    def trades(self, x: Tensor, y: Tensor, beta: float, steps: int, step_size: float, start: str) -> Tensor:
        """CE(f(x), y) + beta max KL(f(x) || f(x')): arXiv 1901.08573, (5) and algorithm 1."""
        self.model.eval()
        natural = self.model(x).detach()
        adversary = self.ascend(lambda z: kl(natural, self.model(z)), x, start, steps, step_size)[-1]
        self.model.train()
        clean = self.model(x)
        return ce(clean, y) + beta * kl(clean, self.model(adversary))

    def local_ball(self, x: Tensor, y: Tensor, s: dict[str, Any]) -> Tensor:
        self.model.eval()
        natural = self.model(x).detach()
        is_kl = s["global_loss"] == "kl"
        ascended = (lambda z: kl(natural, self.model(z))) if is_kl else (lambda z: ce(self.model(z), y))
        iterates = self.ascend(ascended, x, s["start"], s["steps"], s["step_size"])
        center, r = iterates[-1], s["radius"] * self.eps
        at_center = self.model(center).detach()
        beside = self.clip(center + noise(self.norm, center, 0.5 * r))
        gradient = slope(lambda z: kl(at_center, self.model(z)), beside)
        point = center + r * direction(self.norm, gradient)
        point = self.clip(projected(self.norm, point, x, self.eps) if s["within_threat"] else point)
        self.model.train()
        clean = self.model(x) if is_kl or s["clean_weight"] else None
        adversary = self.model(center)
        total = s["global_weight"] * (kl(clean, adversary) if is_kl else ce(adversary, y))
        if clean is not None:
            total = total + s["clean_weight"] * ce(clean, y)
        return total + s["local_weight"] * kl(adversary, self.model(point))


def compare_steps(
    trainer: RobustTrainer, oracle: Oracle, expected: Callable[[Tensor, Tensor], Tensor], x: Tensor, steps: int = 4
) -> None:
    """Losses, all gradients and the weights and statistics that follow from them, over several optimizer steps."""
    trainer.classifier.model.double()
    models = (trainer.classifier.model, oracle.model)
    optimizers = [torch.optim.SGD(model.parameters(), 0.2, momentum=0.9) for model in models]
    first = copy.deepcopy(models[0].state_dict())
    for step in range(steps):
        rows = slice(12 * step, 12 * step + 12)
        losses = []
        for function in (trainer.training_loss, expected):
            torch.manual_seed(step)
            losses.append(function(x[rows], Y[rows]))
        torch.testing.assert_close(*losses, rtol=1e-10, atol=0)
        for optimizer, loss in zip(optimizers, losses, strict=True):
            optimizer.zero_grad()
            loss.backward()
        for (name, one), other in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
            scale = float(other.grad.abs().max())
            torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=1e-10 * scale, msg=f"{step} {name}")
        for optimizer in optimizers:
            optimizer.step()
    for (name, one), other in zip(models[0].state_dict().items(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9, msg=name)
    assert float((models[0].state_dict()["0.weight"] - first["0.weight"]).abs().max()) > 1e-3


@pytest.mark.parametrize("limits", [(0, 1), None])
@pytest.mark.parametrize("network", [normed, plain])
@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_pgd_is_madrys(threat: ThreatModel, network: Any, limits: tuple[float, float] | None) -> None:
    trainer = PGDTrainer(classifier(network(), clip_values=limits), threat=threat, steps=3)
    oracle = Oracle(network().double(), threat, limits)
    step_size = threat.eps * 2.5 / 3
    compare_steps(trainer, oracle, lambda x, y: oracle.madry(x, y, 3, step_size, "uniform"), X.double())
    assert (oracle.clipped > 0) == (limits is not None)


@pytest.mark.parametrize("start", ["none", "gaussian"])
def test_pgd_from_other_starts_and_with_ten_steps(start: Any) -> None:
    trainer = PGDTrainer(classifier(), threat=L2, start=start)
    oracle = Oracle(normed().double(), L2, (0, 1))
    compare_steps(trainer, oracle, lambda x, y: oracle.madry(x, y, 10, 0.2, start), X.double())


@pytest.mark.parametrize("limits", [(0, 1), None])
@pytest.mark.parametrize("network", [normed, plain])
@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
def test_trades_is_zhangs(threat: ThreatModel, network: Any, limits: tuple[float, float] | None) -> None:
    trainer = TRADESTrainer(classifier(network(), clip_values=limits), threat=threat, steps=4, beta=3.5)
    oracle = Oracle(network().double(), threat, limits)
    compare_steps(trainer, oracle, lambda x, y: oracle.trades(x, y, 3.5, 4, threat.eps / 4, "uniform"), X.double())
    assert (oracle.clipped > 0) == (limits is not None)


def test_trades_with_the_start_and_the_step_of_its_authors() -> None:
    """0.001 and 0.003 at 8/255, but as shares of the radius."""
    threat = ThreatModel("Linf", "8/255")
    trainer = TRADESTrainer(classifier(), threat=threat, start="gaussian", step_size=0.003)
    oracle = Oracle(normed().double(), threat, (0, 1))
    compare_steps(trainer, oracle, lambda x, y: oracle.trades(x, y, 6.0, 10, 0.003, "gaussian"), X.double())


OBJECTIVES: list[dict[str, Any]] = [
    {},
    {"within_threat": False},
    {"global_loss": "kl"},
    {"steps": 3, "global_loss": "kl", "clean_weight": 0.0},
    {"steps": 2, "clean_weight": 0.7, "start": "none"},
    {"global_weight": 0.0, "local_weight": 2.5, "radius": 1.5, "clean_weight": 1.0, "start": "gaussian"},
    {"global_loss": "kl", "global_weight": 0.0, "clean_weight": 0.3, "steps": 2},
]


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("changes", OBJECTIVES, ids=str)
def test_the_objective_is_the_formula(changes: dict[str, Any], threat: ThreatModel) -> None:
    is_kl, steps = changes.get("global_loss") == "kl", changes.get("steps", 1)
    defaults = {
        "steps": 1,
        "step_size": {1: 1.25, 2: 1.25, 3: 2.5 / 3}[steps] * threat.eps,
        "global_loss": "ce",
        "global_weight": 6.0 if is_kl else 1.0,
        "local_weight": 6.0,
        "radius": 0.5,
        "clean_weight": 1.0 if is_kl else 0.0,
        "within_threat": True,
        "start": "uniform",
    }
    trainer = LocalBallTrainer(classifier(), threat=threat, **changes)
    oracle = Oracle(normed().double(), threat, (0, 1))
    compare_steps(trainer, oracle, lambda x, y: oracle.local_ball(x, y, {**defaults, **changes}), X.double(), steps=3)
    assert oracle.clipped > 0


def test_the_divergence() -> None:
    """sum p log(p / q), never negative, and flat where both are equal."""
    trainer = LocalBallTrainer(classifier(), threat=LINF)
    torch.manual_seed(0)
    p, q = (5 * torch.randn(20, 10, dtype=torch.float64) for _ in range(2))
    torch.testing.assert_close(trainer.divergence(p, q), kl(p, q), rtol=1e-12, atol=0)
    assert float(trainer.divergence(p, q)) > 1
    torch.testing.assert_close(trainer.divergence(p, p + 3), torch.zeros((), dtype=torch.float64), rtol=0, atol=1e-14)
    one, other = p.clone().requires_grad_(), p.clone().requires_grad_()
    trainer.divergence(one, other).backward()
    assert float(one.grad.abs().max()) < 1e-15
    assert float(other.grad.abs().max()) < 1e-15


# ------------------------------------------------------------------------------------------------------- what it costs


class Counted(TorchDispatchMode):
    """Passes through the network's one convolution and one linear layer, as the kernels see them."""

    def __init__(self) -> None:
        super().__init__()
        self.forward = self.backward = self.to_weights = self.to_linear_weights = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        name = function.name()
        if name == "aten::convolution":
            self.forward += 1
        elif name == "aten::convolution_backward":
            for_input, for_weight, for_bias = args[10]
            assert for_weight == for_bias
            assert for_input != for_weight  # gradients of the input alone, or of the weights alone: x is no leaf then
            self.backward += 1
            self.to_weights += for_weight
        elif name == "aten::mm":
            self.to_linear_weights += tuple(out.shape) in {(10, 36), (36, 10)}
        return out


costs = st.fixed_dictionaries(
    {
        "steps": st.integers(1, 4),
        "global_loss": st.sampled_from(["ce", "kl"]),
        "global_weight": st.sampled_from([None, 0.0, 2.0]),
        "local_weight": st.sampled_from([0.0, 1.0]),
        "clean_weight": st.sampled_from([None, 0.0, 0.5]),
        "overfitting": st.sampled_from(["warn", "rollback", "ignore"]),
    }
)


@settings(max_examples=120)
@given(costs)
def test_passes_are_those_that_a_step_takes(changes: dict[str, Any]) -> None:
    if changes["global_weight"] == 0 and changes["local_weight"] == 0:
        changes["local_weight"] = 1.0
    estimator = classifier(plain())
    trainer = LocalBallTrainer(estimator, threat=LINF, **changes)
    with Counted() as making:
        loss = trainer.training_loss(X[:7], Y[:7])
    assert making.to_weights == making.to_linear_weights == 0
    assert making.backward == trainer.passes.backward - trainer.passes.to_weights
    assert all(parameter.grad is None for parameter in estimator.model.parameters())
    with Counted() as counted:
        loss.backward()
    assert counted.forward == 0
    assert making.forward == trainer.passes.forward
    assert counted.backward == counted.to_weights == counted.to_linear_weights == trainer.passes.to_weights
    assert all(bool(parameter.grad.abs().max() > 0) for parameter in estimator.model.parameters())


@pytest.mark.parametrize("k", [1, 2, 10])
def test_passes_as_documented(k: int) -> None:
    assert LocalBallTrainer(classifier(), threat=LINF, steps=k).passes == (k + 4, k + 3, 2)
    assert PGDTrainer(classifier(), threat=LINF, steps=k).passes == (k + 1, k + 1, 1)
    assert TRADESTrainer(classifier(), threat=LINF, steps=k).passes == (k + 3, k + 2, 2)


# -------------------------------------------------------------------------------------------- where the points may lie


def seen_in(network: nn.Module, run: Callable[[], object]) -> list[tuple[bool, Tensor, list[Tensor]]]:
    """Each forward pass of ``network`` in a run: its mode, its input, and copies of the buffers before it."""
    seen: list[tuple[bool, Tensor, list[Tensor]]] = []

    def look(module: nn.Module, inputs: tuple[Tensor]) -> None:
        seen.append((module.training, inputs[0].detach().clone(), [b.clone() for b in module.buffers()]))

    handle = network.register_forward_pre_hook(look)
    run()
    handle.remove()
    return seen


PER_FEATURE = (np.linspace(-1, 0, 12, dtype=np.float32), np.linspace(0.5, 3, 12, dtype=np.float32))
ranges = st.sampled_from([(0, 1), (0, 255), (-1, 1), PER_FEATURE, None])


@settings(max_examples=150)
@given(
    norm=st.sampled_from(["Linf", "L2", "L1"]),
    limits=ranges,
    share=st.floats(0.001, 0.99),
    stride=st.none() | st.floats(0.01, 5),
    radius=st.floats(0.05, 2),
    steps=st.integers(1, 4),
    start=st.sampled_from(["uniform", "gaussian", "none"]),
    global_loss=st.sampled_from(["ce", "kl"]),
    warm=st.none() | st.floats(0, 1),
    within=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_points_stay_in_their_balls_and_in_the_range(
    norm: str,
    limits: Any,
    share: float,
    stride: float | None,
    radius: float,
    steps: int,
    start: Any,
    global_loss: Any,
    warm: float | None,
    within: bool,
    seed: int,
) -> None:
    start = "uniform" if start == "none" and global_loss == "kl" else start
    low, high = (-1.0, 1.0) if limits is None else (torch.as_tensor(v, dtype=torch.float64) for v in limits)
    width = float(np.max(np.asarray(high - low)))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight /= width
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), (12,), 3, optimizer=optimizer, clip_values=limits)
    threat = ThreatModel(norm, share * width)
    trainer = LocalBallTrainer(
        estimator,
        threat=threat,
        steps=steps,
        step_size=None if stride is None else min(stride * threat.eps, 0.99 * width),
        radius=radius,
        start=start,
        global_loss=global_loss,
        within_threat=within,
        eps_warmup_epochs=0 if warm is None else 2,
    )
    trainer.epochs_done = 0.0 if warm is None else 2 * warm
    eps = threat.eps * (1.0 if warm is None else max(warm, 0.01))
    model.double()
    x = torch.rand(5, 12, dtype=torch.float64).round(decimals=1) * (high - low) + low  # some at the range's ends
    y = torch.randint(0, 3, (5,))

    def distance(a: Tensor, b: Tensor) -> float:
        order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
        return max(float(torch.linalg.vector_norm(row, order)) for row in a - b)

    def in_range(points: Tensor) -> bool:
        return limits is None or bool(((points >= low) & (points <= high)).all())

    passed = seen_in(model, lambda: trainer.adversary(x, y))
    assert len(passed) == steps + (global_loss == "kl")
    adversary = trainer.adversary(x, y)
    assert not adversary.requires_grad
    for z in [*(z for _, z, _ in passed), adversary]:
        assert distance(z, x) <= eps * (1 + 1e-9)
        assert in_range(z)
    point = trainer.local_point(x, adversary)
    passed = seen_in(model, lambda: trainer.local_point(x, adversary))
    longer = 2 if norm == "L1" and within else 1  # the projection on an L1 ball moves along other coordinates
    for z in [*(z for _, z, _ in passed), point]:
        assert distance(z, adversary) <= longer * radius * eps * (1 + 1e-9)
        assert in_range(z)
    assert distance(point, x) <= (1 if within else 1 + radius) * eps * (1 + 1e-9)
    assert distance(passed[-1][1], adversary) <= 0.5 * radius * eps * (1 + 1e-9)


@pytest.mark.parametrize("changes", OBJECTIVES, ids=str)
def test_batch_statistics_are_those_of_the_training_passes(changes: dict[str, Any]) -> None:
    """x where it counts, xa, then the local point; the ascent changes no statistic."""
    made: list[Any] = []

    class Watching(LocalBallTrainer):
        def objective(self, x: Tensor, y: Tensor, xa: Tensor, xl: Tensor | None = None) -> Tensor:
            made.extend((xa, xl))
            return super().objective(x, y, xa, xl)

    estimator = classifier()
    trainer = Watching(estimator, threat=LINF, **changes)
    before = copy.deepcopy(estimator.model)
    x, y = X[:20], Y[:20]
    seen = seen_in(estimator.model, lambda: trainer.training_loss(x, y))
    first = next(index for index, (training, _, _) in enumerate(seen) if training)
    assert all(training for training, _, _ in seen[first:])
    assert same(list(before.buffers()), seen[first][2])
    adversary, point = made
    has_x = changes.get("global_loss") == "kl" or changes.get("clean_weight", 0) > 0
    if changes.get("global_loss") == "kl" and changes.get("global_weight") == 0:
        has_x = changes["clean_weight"] > 0
    intended = [*[x] * has_x, adversary, point]
    assert same(intended, [z for _, z, _ in seen[first:]])
    mean, variance = torch.zeros(4), torch.ones(4)
    for z in intended:
        hidden = before[0](z).detach()
        mean = 0.7 * mean + 0.3 * hidden.mean(dim=(0, 2, 3))
        variance = 0.7 * variance + 0.3 * hidden.var(dim=(0, 2, 3))
    normalisation = estimator.model[1]
    torch.testing.assert_close(normalisation.running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(normalisation.running_var, variance, rtol=1e-5, atol=1e-6)
    assert int(normalisation.num_batches_tracked) == len(intended)
    assert estimator.model.training


# ------------------------------------------------------------------------------------------------ what the ascent finds


def linear(classes: int = 2, **arguments: Any) -> tuple[PyTorchClassifier, Tensor]:
    """A linear network of 2 classes and the gradient of its margin f_1 - f_0."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, classes))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    arguments = {"clip_values": (0, 1), **arguments}
    trained = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), classes, optimizer=optimizer, **arguments)
    return trained, (model[1].weight[1] - model[1].weight[0]).detach().view(1, 8, 8)


@pytest.mark.parametrize("limits", [(0, 1), None])
@pytest.mark.parametrize("start", ["uniform", "gaussian", "none"])
def test_the_adversary_of_a_linear_network_is_the_worst_one(start: Any, limits: Any) -> None:
    estimator, margin = linear(clip_values=limits)
    trainer = PGDTrainer(estimator, threat=LINF, steps=1, step_size=0.2, start=start)
    y = Y[:50] % 2
    found = trainer.adversary(X[:50], y)
    worst = X[:50] + 0.1 * torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1) * margin.sign()
    torch.testing.assert_close(found, worst if limits is None else worst.clamp(0, 1), rtol=0, atol=1e-6)


def test_one_step_in_l2_and_l1_is_the_worst_one_too() -> None:
    estimator, margin = linear(clip_values=None)
    y = Y[:50] % 2
    away = torch.where(y == 0, 1.0, -1.0).view(-1, 1, 1, 1)
    found = PGDTrainer(estimator, threat=L2, steps=1, start="none").adversary(X[:50], y)
    torch.testing.assert_close(found, X[:50] + 0.8 * away * margin / margin.norm(), rtol=0, atol=1e-6)
    found = PGDTrainer(estimator, threat=L1, steps=1, start="none").adversary(X[:50], y)
    largest = margin * (margin.abs() == margin.abs().max())
    torch.testing.assert_close(found, X[:50] + 2.0 * away * largest.sign(), rtol=0, atol=1e-6)


def test_the_divergence_of_a_linear_network_is_ascended_along_its_margin() -> None:
    """Away from p(x), on the side of the start: both ends of that line are adversaries of the divergence."""
    estimator, margin = linear(clip_values=None)
    trainer = TRADESTrainer(estimator, threat=LINF, steps=1, step_size=0.2)
    found = trainer.adversary(X[:200], Y[:200] % 2)
    sides = ((found - X[:200]) / (0.1 * margin.sign())).flatten(1)
    torch.testing.assert_close(sides.abs(), torch.ones_like(sides), rtol=1e-4, atol=0)
    torch.testing.assert_close(sides.mean(dim=1).abs(), torch.ones(200), rtol=1e-4, atol=0)
    assert 0.3 < float((sides[:, 0] > 0).float().mean()) < 0.7


@pytest.fixture(scope="module")
def trained() -> PyTorchClassifier:
    estimator = classifier()
    StandardTrainer(estimator, options=TrainingOptions(seed=0)).fit(X[:1000], Y[:1000], **quiet(6))
    return estimator


@pytest.mark.parametrize("global_loss", ["ce", "kl"])
@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_more_steps_find_more(trained: PyTorchClassifier, threat: ThreatModel, global_loss: Any) -> None:
    x, y = X[1000:1200], Y[1000:1200]
    trained.model.eval()
    heights = []
    for steps in (1, 3, 10):
        trainer = LocalBallTrainer(
            trained, threat=threat, steps=steps, step_size=threat.eps / 3, global_loss=global_loss
        )
        torch.manual_seed(0)
        adversary = trainer.adversary(x, y)
        trained.model.eval()
        with torch.no_grad():
            at_x, at_adversary = trainer.logits(x), trainer.logits(adversary)
        heights.append(float(ce(at_adversary, y) if global_loss == "ce" else kl(at_x, at_adversary)))
    at_start = float(ce(at_x, y)) if global_loss == "ce" else 0.0
    assert at_start < heights[0] < heights[1] < heights[2]


@pytest.mark.parametrize("threat", [LINF, L2, L1], ids=str)
def test_the_local_point_is_worse_than_a_random_one(trained: PyTorchClassifier, threat: ThreatModel) -> None:
    x = X[1000:1200]
    trained.model.eval()
    trainer = LocalBallTrainer(trained, threat=threat)
    found = trainer.local_point(x, x)
    random = threat.project(x + 10 * torch.randn_like(x), x, 0, 1)
    random = x + 0.5 * (random - x)
    with torch.no_grad():
        at_x, at_found, at_random = trainer.logits(x), trainer.logits(found), trainer.logits(random)
    assert float(kl(at_x, at_found)) > 2 * float(kl(at_x, at_random))


def test_no_local_point_stays_at_its_center_in_l1(trained: PyTorchClassifier) -> None:
    """A step in L1 moves one coordinate, and must not choose one that the range holds back (digits are 0 or 1)."""
    trained.model.eval()
    x = X[1000:1200]
    found = LocalBallTrainer(trained, threat=L1).local_point(x, x)
    assert bool(((found - x).flatten(1).abs().amax(dim=1) > 0).all())


# -------------------------------------------------------------------------------------------------- limits and presets


@pytest.mark.filterwarnings("ignore:catastrophic")  # two epochs on few images leave what looks like it
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda c, **o: LocalBallTrainer(c, local_weight=0, global_loss="kl", steps=3, **o), (TRADESTrainer, 3)),
        (lambda c, **o: LocalBallTrainer(c, local_weight=0, steps=3, **o), (PGDTrainer, 3)),
        (lambda c, **o: LocalBallTrainer.preset("trades", c, **o), (TRADESTrainer, 10)),
        (lambda c, **o: LocalBallTrainer.preset("pgd", c, **o), (PGDTrainer, 10)),
        (lambda c, **o: LocalBallTrainer.preset("weak", c, local_weight=0, **o), (PGDTrainer, 1)),
    ],
)
def test_limits_are_exact(one: Any, other: tuple[type[RobustTrainer], int]) -> None:
    kind, steps = other
    results = []
    for make in (one, lambda c, **o: kind(c, steps=steps, **o)):
        estimator = classifier()
        make(estimator, threat=LINF, options=TrainingOptions(seed=4)).fit(X[:150], Y[:150], **quiet())
        results.append(weights(estimator))
    assert same(*results)
    assert not same(results[0], weights(classifier()))


def test_presets() -> None:
    def preset(name: str, **changes: Any) -> LocalBallTrainer:
        return LocalBallTrainer.preset(name, classifier(), threat=LINF, **changes)

    def terms(t: LocalBallTrainer) -> tuple[Any, ...]:
        return t.steps, t.step_size, t.global_loss, t.global_weight, t.local_weight, t.clean_weight

    assert terms(preset("weak")) == (1, pytest.approx(0.125), "ce", 1, 6, 0)
    assert terms(preset("strong")) == (10, pytest.approx(0.025), "ce", 1, 6, 0)
    assert terms(preset("pgd")) == (10, pytest.approx(0.025), "ce", 1, 0, 0)
    assert terms(preset("trades")) == (10, pytest.approx(0.025), "kl", 6, 0, 1)
    assert terms(preset("trades", steps=2, global_weight=3.0)) == (2, pytest.approx(0.125), "kl", 3, 0, 1)
    assert preset("weak", radius=0.25).radius == 0.25
    with pytest.raises(ValueError, match="name: got 'madry', expected one of 'weak', 'strong', 'pgd', 'trades'"):
        preset("madry")


@pytest.mark.parametrize(("steps", "share"), [(1, 1.25), (2, 1.25), (3, 2.5 / 3), (4, 0.25), (10, 0.25)])
def test_default_steps(steps: int, share: float) -> None:
    assert LocalBallTrainer(classifier(), threat=L2, steps=steps).step_size == pytest.approx(share * 0.8)


# ------------------------------------------------------------------------------------------------------ the ramp of eps


def test_eps_grows_linearly_step_by_step_with_step_size_and_radius(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    steps: list[tuple[float, float]] = []
    ascend, steepest = ThreatModel.ascend, ThreatModel.steepest_ascent

    def watched_ascend(self: ThreatModel, *args: Any, **kwargs: Any) -> Tensor:
        steps.append((self.eps, kwargs["step_size"]))
        return ascend(self, *args, **kwargs)

    local_radii: list[float] = []

    def watched_steepest(self: ThreatModel, gradient: Tensor, step_size: float) -> Tensor:
        if step_size == self.eps:  # a step of the whole ball is the local point's
            local_radii.append(step_size)
        return steepest(self, gradient, step_size)

    class Watched(LocalBallTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(self.current_threat.eps)
            return super().training_loss(x, y)

    monkeypatch.setattr(ThreatModel, "ascend", watched_ascend)
    monkeypatch.setattr(ThreatModel, "steepest_ascent", watched_steepest)
    threat = ThreatModel("Linf", 0.4)
    trainer = Watched(classifier(), threat=threat, eps_warmup_epochs=1.5, step_size=0.3, overfitting="ignore")
    trainer.fit(X[:80], Y[:80], **quiet(3, 20))
    ramp = [0.004, *(0.4 * (step / 4) / 1.5 for step in range(1, 6)), *[0.4] * 6]
    assert seen == pytest.approx(ramp)
    assert steps == [(pytest.approx(eps), pytest.approx(0.75 * eps)) for eps in ramp]
    assert local_radii == pytest.approx([0.5 * eps for eps in ramp])
    assert trainer.current_threat == threat


def test_without_a_ramp_eps_is_full_from_the_first_step() -> None:
    trainer = LocalBallTrainer(classifier(), threat=LINF)
    assert trainer.current_threat == LINF


SCRIPT = [(0.9, 0.8), (0.9, 0.1), (0.8, 0.7), (0.9, 0.2), (0.9, 0.0), (0.9, 0.9)]
"""Accuracies under the own and the strong adversary, by epoch: good, bad, good, bad, bad, good."""


def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    def counts(watch: OverfittingWatch) -> tuple[float, float, int]:
        own, strong = SCRIPT[len(watch.trainer.history)]
        return 64 * own, 64 * strong, 64

    monkeypatch.setattr(OverfittingWatch, "_counts", counts)


@pytest.mark.filterwarnings("ignore:catastrophic")
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a ramp of eps, a falling learning rate, and rollbacks before and after every interruption."""
    scripted(monkeypatch)

    def run(folder: Path, epochs: list[int]) -> tuple[list[Tensor], list[dict[str, float]], Any]:
        for number, last in enumerate(epochs):
            model = normed()
            model[6].p = 0.2
            optimizer = torch.optim.Adam(model.parameters(), 0.01)
            estimator = PyTorchClassifier(
                model, nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer=optimizer, clip_values=(0, 1)
            )
            trainer = LocalBallTrainer(
                estimator,
                threat=LINF,
                eps_warmup_epochs=4.5,
                overfitting="rollback",
                instruments=[BANG(ratio=0.5)],
                options=TrainingOptions(seed=1, checkpoint_dir=folder, resume=number > 0),
            )
            scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
            trainer.fit(X[:120], Y[:120], scheduler=scheduler, **quiet(last, 40))
        return weights(estimator), [{**h, "seconds": 0} for h in trainer.history], optimizer.state_dict()

    whole, history, optimizer = run(tmp_path / "whole", [6])
    assert [record.get("rolled_back", 0) for record in history] == [0, 1, 0, 1, 1, 0]
    for parts in ([1, 6], [2, 6], [3, 4, 6], [5, 6]):
        again, other_history, other_optimizer = run(tmp_path / str(parts), parts)
        assert same(whole, again)
        assert other_history == history
        assert other_optimizer["param_groups"] == optimizer["param_groups"]
        for index, state in optimizer["state"].items():
            assert all(torch.equal(value, other_optimizer["state"][index][name]) for name, value in state.items())


# ---------------------------------------------------------------------------------- every set-up of a PyTorchClassifier


def accuracy(estimator: PyTorchClassifier, x: Tensor, y: Tensor) -> float:
    return float((estimator.predict(x.numpy()).argmax(axis=1) == y.numpy()).mean())


@pytest.mark.parametrize("global_loss", ["ce", "kl"])
def test_mixed_labels_train(global_loss: Any) -> None:
    seen: list[Tensor] = []

    class Watching(LocalBallTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(y)
            return super().training_loss(x, y)

    mixup = MixupPyTorch(num_classes=10, device_type="cpu")
    estimator = classifier(preprocessing_defences=mixup)
    trainer = Watching(estimator, threat=LINF, global_loss=global_loss, options=TrainingOptions(seed=0))
    trainer.fit(X[:600], Y[:600], **quiet(8))
    assert all(y.shape == (50, 10) for y in seen)
    assert any(bool(((y > 0.01) & (y < 0.99)).any()) for y in seen)
    assert 0 <= trainer.history[-1]["own_adversary_accuracy"] <= 1
    assert accuracy(estimator, X[600:900], Y[600:900]) > 0.5


def test_mixed_labels_are_those_of_the_formula() -> None:
    """Cross-entropy with class probabilities, in the ascent and in the loss."""
    trainer = PGDTrainer(classifier(plain()), threat=LINF, steps=1, start="none")
    trainer.classifier.model.double()
    x, y = X[:10].double(), torch.rand(10, 10, dtype=torch.float64)
    y = y / y.sum(dim=1, keepdim=True)
    model = trainer.classifier.model

    def soft(z: Tensor) -> Tensor:
        outputs = model(z)
        return -(y * (outputs - outputs.exp().sum(dim=1, keepdim=True).log())).sum(dim=1).mean()

    adversary = projected("Linf", x + 0.125 * slope(soft, x).sign(), x, 0.1).clamp(0, 1)
    torch.testing.assert_close(trainer.training_loss(x, y), soft(adversary), rtol=1e-10, atol=0)


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.BCELoss()], ids=lambda loss: type(loss).__name__)
def test_a_binary_network_with_one_output(loss: nn.Module) -> None:
    """The divergence is that of two classes: p log(p / q) + (1 - p) log((1 - p) / (1 - q))."""
    rows = Y < 2
    x, y = X[rows], Y[rows]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Identity())
    if isinstance(loss, nn.BCELoss):
        model[2] = nn.Sigmoid()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    estimator = PyTorchClassifier(model, loss, (1, 8, 8), 2, optimizer=optimizer, clip_values=(0, 1))
    trainer = TRADESTrainer(estimator, threat=LINF, steps=2, beta=2.0)
    made: list[Tensor] = []
    passed = seen_in(model, lambda: made.append(trainer.training_loss(x[:20], y[:20]).detach()))
    clean, adversary = (z for training, z, _ in passed if training)
    with torch.no_grad():
        p, q = (torch.sigmoid(model[1](z.flatten(1)))[:, 0].double() for z in (clean, adversary))
    divergence = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).mean()
    expected = -torch.where(y[:20] == 1, p.log(), (1 - p).log()).mean() + 2.0 * divergence
    assert float(made[0]) == pytest.approx(float(expected), rel=1e-4)
    for method in (trainer, LocalBallTrainer(estimator, threat=LINF)):
        method.fit(x, y, **quiet(8))
        assert method._validate(x, y)["validation_accuracy"] > 0.95
        assert method.history[-1]["own_adversary_accuracy"] > 0.5


def test_a_saturated_probability_gives_a_finite_loss() -> None:
    """A sigmoid's output of exactly 1, whose logit is infinite; ART's binary loss is finite there, and so is this."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Sigmoid())
    nn.init.zeros_(model[1].weight)
    nn.init.constant_(model[1].bias, 20.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    estimator = PyTorchClassifier(model, nn.BCELoss(), (1, 8, 8), 2, optimizer=optimizer, clip_values=(0, 1))
    assert bool(torch.isfinite(PGDTrainer(estimator, threat=LINF).training_loss(X[:8], Y[:8] % 2)))
    assert bool(torch.isfinite(LocalBallTrainer(estimator, threat=LINF).training_loss(X[:8], Y[:8] % 2)))


@pytest.mark.parametrize("global_loss", ["ce", "kl"])
def test_preprocessing_belongs_to_the_network(global_loss: Any) -> None:
    """eps is in the units of the estimator's input, whatever mean and deviation make of them."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = normed()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner((x - 0.3) / 0.5)

    results = []
    for estimator in (classifier(preprocessing=(0.3, 0.5)), classifier(Scaled())):
        trainer = LocalBallTrainer(estimator, threat=LINF, global_loss=global_loss, options=TrainingOptions(seed=0))
        trainer.fit(X[:100], Y[:100], **quiet())
        results.append(weights(estimator))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_pixels_up_to_255_train_as_those_up_to_1() -> None:
    results = []
    for scale in (1, 255):
        # In L2: 255 is no power of 2, so sums round differently, and in Linf a sign could flip.
        estimator = classifier(plain(), clip_values=(0, scale), preprocessing=(0.0, scale))
        threat = ThreatModel("L2", 0.8 * scale)
        trainer = LocalBallTrainer(estimator, threat=threat, global_loss="kl", options=TrainingOptions(seed=0))
        trainer.fit(X[:100] * scale, Y[:100], **quiet())
        results.append(weights(estimator))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_ranges_of_each_feature() -> None:
    high = np.linspace(0.5, 1.5, 64, dtype=np.float32).reshape(1, 8, 8)
    estimator = classifier(clip_values=(np.zeros((1, 8, 8), np.float32), high))
    x = X[:100] * torch.from_numpy(high)
    seen: list[Tensor] = []
    estimator.model.register_forward_pre_hook(lambda _, z: seen.append(z[0].detach()))
    LocalBallTrainer(estimator, threat=ThreatModel("Linf", 0.3)).fit(x, Y[:100], **quiet(1))
    points = torch.cat(seen)
    assert bool((points <= torch.from_numpy(high)).all())
    assert bool((points >= 0).all())
    assert bool((points == torch.from_numpy(high)).any())


@pytest.mark.parametrize("changes", [{}, {"global_loss": "kl"}])
def test_bf16_reaches_all_weights(changes: dict[str, Any]) -> None:
    """Passes without gradients come first in a step; their casts of the weights must not serve the others."""
    results = []
    for precision in ("no", "bf16"):
        estimator = classifier(plain(), lr=1.0)
        before = weights(estimator)
        options = TrainingOptions(seed=0, mixed_precision=precision)
        trainer = LocalBallTrainer(estimator, threat=L2, steps=2, options=options, **changes)
        trainer.fit(X[:64], Y[:64], **quiet(1, 64))
        assert all(tensor.dtype == torch.float32 for tensor in weights(estimator))
        results.append([after - start for after, start in zip(weights(estimator), before, strict=True)])
    for full, half in zip(*results, strict=True):
        assert float((full - half).norm()) < 0.2 * float(full.norm())


def test_bf16_and_channels_last_train() -> None:
    found = {}
    for name, changes in {
        "plain": {},
        "bf16": {"mixed_precision": "bf16"},
        "channels_last": {"channels_last": True},
    }.items():
        trainer = LocalBallTrainer(classifier(), threat=LINF, options=TrainingOptions(seed=0, **changes))
        trainer.fit(X[:600], Y[:600], **quiet(6))
        found[name] = trainer._validate(X[600:900], Y[600:900])["validation_robust_accuracy"]
    assert found["plain"] > 0.5
    assert found["bf16"] > found["plain"] - 0.1
    assert found["channels_last"] == pytest.approx(found["plain"], abs=0.05)


def test_three_ways_in_one_loop() -> None:
    """The same batches give the same weights, wherever they come from; a generator's labels are one-hot."""
    loader = DataLoader(TensorDataset(X[:100], Y[:100]), batch_size=32)
    generator = NumpyDataGenerator(X[:100].numpy(), np.eye(10)[Y[:100]], 32, drop_remainder=False)
    results = []
    for run in (
        lambda t: t.fit(X[:100], Y[:100], **quiet(2, 32)),
        lambda t: t.fit_loader(loader, nb_epochs=2, verbose=False),
        lambda t: t.fit_generator(generator, nb_epochs=2, verbose=False),
    ):
        estimator = classifier()
        # Without random numbers: a loader draws from the stream that a random start draws from.
        trainer = PGDTrainer(
            estimator, threat=LINF, steps=2, start="none", options=TrainingOptions(seed=0, shuffle=False)
        )
        run(trainer)
        results.append(weights(estimator))
    assert same(results[0], results[1])
    assert same(results[0], results[2])


def test_a_seed_makes_a_run_repeatable() -> None:
    def run(seed: int) -> list[Tensor]:
        estimator = classifier()
        LocalBallTrainer(estimator, threat=L2, options=TrainingOptions(seed=seed)).fit(X[:100], Y[:100], **quiet())
        return weights(estimator)

    assert same(run(1), run(1))
    assert not same(run(1), run(2))


def test_it_resists_what_plain_training_does_not() -> None:
    found = {}
    for name, make in {"standard": StandardTrainer, "local-ball": LocalBallTrainer}.items():
        trainer = make(classifier(), threat=LINF, options=TrainingOptions(seed=0, validation_steps=20))
        trainer.fit(X[:1000], Y[:1000], **quiet(8))
        found[name] = trainer._validate(X[1000:], Y[1000:])
    assert found["local-ball"]["validation_robust_accuracy"] > found["standard"]["validation_robust_accuracy"] + 0.15
    assert found["local-ball"]["validation_accuracy"] > 0.8


# ----------------------------------------------------------------------------------------------------------- bad input


SETTINGS: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps: got 0, expected a positive whole number."),
    ({"steps": 2.0}, "steps: got 2.0, expected a positive whole number."),
    ({"steps": True}, "steps: got True, expected a positive whole number."),
    ({"step_size": 0}, "step_size: got 0, expected a positive number."),
    ({"step_size": "2/255"}, "step_size: got '2/255', expected a positive number."),
    ({"step_size": math.nan}, "step_size: got nan, expected a positive number."),
    ({"global_loss": "mse"}, "global_loss: got 'mse', expected one of 'ce', 'kl'."),
    ({"global_weight": -1.0}, "global_weight: got -1.0, expected a number that is not negative."),
    ({"local_weight": math.inf}, "local_weight: got inf, expected a number that is not negative."),
    ({"local_weight": None}, "local_weight: got None, expected a number that is not negative."),
    ({"clean_weight": -0.5}, "clean_weight: got -0.5, expected a number that is not negative."),
    ({"radius": 0.0}, "radius: got 0.0, expected a positive number."),
    ({"within_threat": 1}, "within_threat: got 1, expected True or False."),
    ({"start": "zero"}, "start: got 'zero', expected one of 'uniform', 'gaussian', 'none'."),
    ({"start": ["uniform"]}, "start: got ['uniform'], expected one of 'uniform', 'gaussian', 'none'."),
    (
        {"start": "none", "global_loss": "kl"},
        "start: got 'none' with global_loss 'kl', whose gradient is 0 there, expected another.",
    ),
    ({"eps_warmup_epochs": -1}, "eps_warmup_epochs: got -1, expected a number that is not negative."),
    ({"overfitting": "stop"}, "overfitting: got 'stop', expected one of 'warn', 'rollback', 'ignore'."),
    (
        {"global_weight": 0, "local_weight": 0},
        "global_weight: got 0, as is local_weight, expected a term of the adversary that counts.",
    ),
]


@pytest.mark.parametrize(("changes", "sentence"), SETTINGS, ids=[sentence for _, sentence in SETTINGS])
def test_bad_settings_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole sentence is compared)
        LocalBallTrainer(classifier(), threat=LINF, **changes)
    assert str(error.value) == sentence


@pytest.mark.parametrize("kind", [LocalBallTrainer, PGDTrainer, TRADESTrainer])
def test_a_threat_is_needed(kind: type[RobustTrainer]) -> None:
    for threat in (None, 0.1, ("Linf", 0.1)):
        expected = f"threat: got {type(threat).__name__}, expected a ThreatModel."
        with pytest.raises(TypeError, match=re.escape(expected)):
            kind(classifier(), threat=threat)
    with pytest.raises(TypeError, match="threat"):
        kind(classifier())


def test_beta_and_the_classifier_are_checked() -> None:
    for beta in (0, -1.0, "6", math.nan):
        with pytest.raises(ValueError, match=re.escape(f"beta: got {beta!r}, expected a positive number.")):
            TRADESTrainer(classifier(), threat=LINF, beta=beta)
    with pytest.raises(TypeError, match="classifier: got Sequential, expected an ART PyTorchClassifier"):
        LocalBallTrainer(plain(), threat=LINF)
    with pytest.raises(TypeError, match="unexpected keyword argument 'eps'"):
        LocalBallTrainer(classifier(), threat=LINF, eps=0.1)


# --------------------------------------------------------------------------------------------------------- instruments


@pytest.mark.parametrize(("make", "passes"), [(PGDTrainer, 1), (TRADESTrainer, 2), (LocalBallTrainer, 2)])
def test_an_instrument_acts_in_the_passes_that_reach_the_weights(make: Any, passes: int) -> None:
    """BANG's rule on each pass: the weight's gradient is sum_i s_i g_i z_i, with the ratio for the misclassified."""
    changes, before = {}, {}
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(module: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
        if module.training:
            outputs.retain_grad()
            seen.append((inputs[0].detach().flatten(1), outputs))

    for name, instruments in {"plain": [], "bang": [BANG(0.5, 0.7, 0.5)]}.items():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        estimator = PyTorchClassifier(
            model,
            nn.CrossEntropyLoss(),
            (1, 8, 8),
            10,
            optimizer=torch.optim.SGD(model.parameters(), 1.0),
            clip_values=(0, 1),
        )
        if name == "plain":
            StandardTrainer(estimator).fit(X[:300], Y[:300], **quiet(3))  # some samples are right, some are wrong
            start = copy.deepcopy(model.state_dict())
        model.load_state_dict(start)
        handle = model.register_forward_hook(keep) if name == "plain" else None
        options = TrainingOptions(seed=0, shuffle=False)
        trainer = make(estimator, threat=LINF, instruments=instruments, overfitting="ignore", options=options)
        trainer.fit(X[:40], Y[:40], **quiet(1, 40))
        if handle is not None:
            handle.remove()
        changes[name] = start["1.weight"] - model[1].weight.detach()
        before[name] = start["1.bias"] - model[1].bias.detach()
    assert len(seen) == passes
    expected, expected_bias, wrongs = torch.zeros(10, 64), torch.zeros(10), 0
    for z, outputs in seen:
        g = outputs.grad
        n = g.norm(dim=1)
        wrong = outputs.argmax(dim=1) != Y[:40]
        exponent = torch.where(wrong, 0.35, 0.7) * (1 - n / n.max())
        scaled = (n.max() / n).pow(exponent)[:, None] * g
        expected += 0.5 * scaled.t() @ z
        expected_bias += 0.5 * scaled.sum(dim=0)
        wrongs += int(wrong.sum())
    assert 0 < wrongs < 40 * passes
    torch.testing.assert_close(changes["bang"], expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(before["bang"], expected_bias, rtol=1e-4, atol=1e-5)
    assert float((changes["bang"] - 0.5 * changes["plain"]).norm()) > 0.05 * float(changes["plain"].norm())


def test_a_run_goes_on_only_with_its_instruments_and_settings(tmp_path: Path) -> None:
    def start(resume: bool, instruments: Any, **changes: Any) -> None:
        options = TrainingOptions(seed=0, checkpoint_dir=tmp_path, resume=resume)
        trainer = LocalBallTrainer(classifier(), threat=LINF, instruments=instruments, options=options, **changes)
        trainer.fit(X[:100], Y[:100], **quiet(2 if resume else 1))

    start(False, [BANG(ratio=0.5)])
    with pytest.raises(ValueError, match=r"was written with instruments \[BANG\(.*ratio=0.5.*but this run has .*0.25"):
        start(True, [BANG(ratio=0.25)])
    with pytest.raises(ValueError, match=r"was written with instruments \[BANG\(.*, but this run has \[\]"):
        start(True, [])
    for name, value in {
        "steps": 2,
        "step_size": 0.1,
        "global_loss": "kl",
        "global_weight": 2.0,
        "local_weight": 3.0,
        "radius": 0.25,
        "clean_weight": 0.5,
        "within_threat": False,
        "start": "gaussian",
        "eps_warmup_epochs": 1,
        "overfitting": "ignore",
    }.items():
        with pytest.raises(ValueError, match=rf"was written with {name} .*, but this run has {value}\."):
            start(True, [BANG(ratio=0.5)], **{name: value})
    start(True, [BANG(ratio=0.5)])

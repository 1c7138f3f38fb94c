"""PGD, TRADES and the local ball against their formulas, written out from the papers."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_robust_plugins import (
    LocalBallTrainer,
    PGDTrainer,
    RobustTrainer,
    ThreatModel,
    TRADESTrainer,
)

from .adversaries import L2, LINF, OBJECTIVES, X, Y, ce, classifier, kl, make_normed, plain, project, slope


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
            return self.clip(project(self.norm, moved, x, self.eps))
        return self.clip(x + noise(self.norm, x, self.eps))

    def ascend(
        self, objective: Callable[[Tensor], Tensor], x: Tensor, start: str, steps: int, step_size: float
    ) -> list[Tensor]:
        z, iterates = self.start(x, start), []
        for _ in range(steps):
            moved = z + step_size * direction(self.norm, slope(objective, z))
            z = self.clip(project(self.norm, moved, x, self.eps))
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
        point = self.clip(project(self.norm, point, x, self.eps) if s["within_threat"] else point)
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
@pytest.mark.parametrize("network", [make_normed, plain])
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
    oracle = Oracle(make_normed().double(), L2, (0, 1))
    compare_steps(trainer, oracle, lambda x, y: oracle.madry(x, y, 10, 0.2, start), X.double())


@pytest.mark.parametrize("limits", [(0, 1), None])
@pytest.mark.parametrize("network", [make_normed, plain])
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
    oracle = Oracle(make_normed().double(), threat, (0, 1))
    compare_steps(trainer, oracle, lambda x, y: oracle.trades(x, y, 6.0, 10, 0.003, "gaussian"), X.double())


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
    oracle = Oracle(make_normed().double(), threat, (0, 1))
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

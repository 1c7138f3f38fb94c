"""What each option of the local term changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from art_robust_plugins import LocalBallTrainer, ThreatModel

from .adversaries import L2, LINF, X, Y, ce, classifier, kl, plain, quiet, seen_in, slope

SAMPLES = X[:20], Y[:20]


def loss_of(trainer: LocalBallTrainer, epochs_done: float = 0.0) -> float:
    trainer.epochs_done = epochs_done
    torch.manual_seed(0)
    return float(trainer.training_loss(*SAMPLES).detach())


def test_the_local_weight_grows_with_eps() -> None:
    settings: dict[str, Any] = {"threat": LINF, "eps_warmup_epochs": 4}
    growing = LocalBallTrainer(classifier(plain()), local_weight=6.0, local_weight_grows=True, **settings)
    for epochs, weight in [(0.0, 0.06), (1.0, 1.5), (3.0, 4.5), (4.0, 6.0), (7.5, 6.0)]:
        steady = LocalBallTrainer(classifier(plain()), local_weight=weight, **settings)
        assert loss_of(growing, epochs) == pytest.approx(loss_of(steady, epochs), rel=1e-5)
        assert growing.current_local_weight == pytest.approx(weight)
        if 1 < weight < 6:  # at 1 % of eps the local term is lost in rounding
            without = LocalBallTrainer(classifier(plain()), local_weight=6.0, **settings)
            assert loss_of(growing, epochs) < loss_of(without, epochs)


@pytest.mark.parametrize("threat", [LINF, L2], ids=str)
@pytest.mark.parametrize("global_loss", ["ce", "kl"])
@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("within", [False, True])
def test_the_local_point_lies_along_the_last_gradient_of_the_ascent(
    threat: ThreatModel, global_loss: Any, steps: int, within: bool
) -> None:
    x, y = X[:20].double(), Y[:20]
    network = plain()
    trainer = LocalBallTrainer(
        classifier(network),
        threat=threat,
        steps=steps,
        step_size=0.3 * threat.eps,
        global_loss=global_loss,
        local_direction="ascent",
        within_threat=within,
    )
    network.double()
    points = [z for _, z, _ in seen_in(network, lambda: trainer.training_loss(x, y))]
    extra = 2 * (global_loss == "kl")  # p(x), before the ascent and in the objective
    assert len(points) == steps + 2 + extra == trainer.passes.forward
    xa, xl = points[-2:]
    last = points[steps - 1 + (global_loss == "kl")]

    def ascend(z: Tensor) -> Tensor:
        return ce(network(z), y) if global_loss == "ce" else kl(network(x).detach(), network(z))

    gradient = slope(ascend, last)
    if threat == LINF:
        step, sure = gradient.sign(), gradient.abs() > 1e-12
    else:
        lengths = gradient.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        step, sure = gradient / lengths, torch.ones_like(x, dtype=torch.bool)
    expected = xa + 0.5 * threat.eps * step
    expected = threat.project(expected, x, 0, 1) if within else expected.clamp(0, 1)
    torch.testing.assert_close(xl[sure], expected[sure], rtol=0, atol=1e-5)
    assert float((xl - xa).abs().max()) > 0.01
    torch.testing.assert_close(
        xa[sure], threat.project(last + 0.3 * threat.eps * step, x, 0, 1)[sure], rtol=0, atol=1e-5
    )


def test_smoothness_of_logits_is_their_squared_distance() -> None:
    x, y = SAMPLES
    network = plain()
    trainer = LocalBallTrainer(classifier(network), threat=LINF, smoothness="logits", local_weight=2.5)
    found: list[Tensor] = []
    points = [z for _, z, _ in seen_in(network, lambda: found.append(trainer.training_loss(x, y)))]
    at_xa, at_xl = network(points[-2]), network(points[-1])
    distances = torch.stack([((a - b) ** 2).sum() for a, b in zip(at_xa, at_xl, strict=True)])
    torch.testing.assert_close(found[0], ce(at_xa, y) + 2.5 * distances.mean(), rtol=1e-5, atol=1e-6)
    assert float(distances.mean()) > 1e-4
    beside = LocalBallTrainer(classifier(plain()), threat=LINF, local_weight=2.5)
    assert loss_of(beside) != loss_of(
        LocalBallTrainer(classifier(plain()), threat=LINF, local_weight=2.5, smoothness="logits")
    )


def test_all_options_train_together() -> None:
    trainer = LocalBallTrainer(
        classifier(),
        threat=LINF,
        start="previous",
        start_noise=0.5,
        step_size=0.05,
        eps_warmup_epochs=1,
        local_weight_grows=True,
        local_direction="ascent",
        smoothness="logits",
    )
    trainer.fit(X[:200], Y[:200], **quiet(6, 20))
    assert trainer.history[-1]["loss"] < trainer.history[0]["loss"]
    assert trainer.passes == (3, 3, 2)

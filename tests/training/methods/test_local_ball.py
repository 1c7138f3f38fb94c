"""The local ball's limits, presets, growing radius, and resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_robust_plugins import (
    LocalBallTrainer,
    PGDTrainer,
    RobustTrainer,
    ThreatModel,
    TRADESTrainer,
    TrainingOptions,
)
from art_robust_plugins.training import BANG
from art_robust_plugins.training.overfitting import OverfittingWatch

from ..builders import same, weights
from .adversaries import L2, LINF, X, Y, classifier, make_normed, quiet


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
    assert terms(preset("previous")) == (1, pytest.approx(0.125), "ce", 1, 1, 0)
    assert (preset("previous").start, preset("previous").smoothness) == ("previous", "logits")
    with pytest.raises(ValueError, match="name: got 'madry',"):
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


def follow_script(monkeypatch: pytest.MonkeyPatch) -> None:
    def counts(watch: OverfittingWatch) -> tuple[float, float, int]:
        own, strong = SCRIPT[len(watch.trainer.history)]
        return 64 * own, 64 * strong, 64

    monkeypatch.setattr(OverfittingWatch, "count_resisting", counts)


@pytest.mark.filterwarnings("ignore:catastrophic")
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a ramp of eps, a falling learning rate, and rollbacks before and after every interruption."""
    follow_script(monkeypatch)

    def run(folder: Path, epochs: list[int]) -> tuple[list[Tensor], list[dict[str, float]], Any]:
        for number, last in enumerate(epochs):
            model = make_normed()
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

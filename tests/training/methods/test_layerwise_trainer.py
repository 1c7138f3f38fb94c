"""Layerwise adversarial training in the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_robust_plugins import LocalBallTrainer, StandardTrainer, ThreatModel, TrainingOptions
from art_robust_plugins.training import BANG
from art_robust_plugins.training.methods.layerwise import (
    MEASURED_EVERY,
    MOMENTUM,
    Layerwise,
    LayerwiseAdversarialTrainer,
)

from ..builders import same
from .tiny import classifier, fit


def test_eps_0_trains_like_no_instrument_bit_for_bit() -> None:
    options = TrainingOptions(seed=3)
    plain = fit(StandardTrainer(classifier(), options=options))
    assert same(plain, fit(LayerwiseAdversarialTrainer(classifier(), eps=0, options=options)))
    assert not same(plain, fit(LayerwiseAdversarialTrainer(classifier(), eps=0.1, options=options)))


def test_a_run_is_repeatable_also_with_the_same_trainer_object() -> None:
    trainer = LayerwiseAdversarialTrainer(classifier(), eps=0.3, options=TrainingOptions(seed=3))
    first = fit(trainer)
    fresh = classifier()
    trainer.classifier.model.load_state_dict(fresh.model.state_dict())
    trainer.classifier.optimizer.load_state_dict(fresh.optimizer.state_dict())
    assert same(first, fit(trainer))


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
        return fit(trainers(kind, options), epochs)

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

    def watch(x: Tensor, y: Tensor) -> Tensor:
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

    trainer.training_loss = watch  # type: ignore[method-assign]
    layerwise, states = trainer.instruments[0], []
    trainer.end_epoch = lambda record: states.append(layerwise.state_dict())  # type: ignore[method-assign]
    fit(trainer, 6)
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
    fit(trainer, 1)
    calls = {key.split(":")[1] for key in states[0] if key.startswith("sign:")}
    assert calls == {"0"}
    without = LocalBallTrainer(
        classifier(),
        threat=trainer.threat,
        global_loss="kl",
        instruments=[BANG(0.9, ratio=0.5)],
        options=TrainingOptions(seed=0),
    )
    assert not same(fit(without, 1), [t.clone() for t in trainer.classifier.model.state_dict().values()])


def test_bang_still_acts_on_a_perturbed_network() -> None:
    results = []
    for instruments in ([], [BANG(0.5)]):
        options = TrainingOptions(seed=0)
        results.append(
            fit(LayerwiseAdversarialTrainer(classifier(), eps=0.3, instruments=instruments, options=options))
        )
    assert not same(*results)


def test_a_step_costs_one_forward_and_one_backward_pass() -> None:
    def passes(trainer: type, **arguments: Any) -> list[str]:
        trained, seen = classifier(), []
        trainer = trainer(trained, options=TrainingOptions(seed=0), **arguments)
        trained.model[3].register_forward_hook(lambda module, *_: seen.append("forward" if module.training else "eval"))
        trained.model[3].register_full_backward_hook(lambda *_: seen.append("backward"))
        fit(trainer, 2)
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

"""Instruments in adversarial training."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import make_linear
from torch import Tensor, nn

from art_robust_plugins import (
    LocalBallTrainer,
    PGDTrainer,
    StandardTrainer,
    TRADESTrainer,
    TrainingOptions,
)
from art_robust_plugins.training import BANG

from .adversaries import LINF, X, Y, classifier, quiet


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
        model = make_linear()
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
    with pytest.raises(ValueError, match=r"^resume: .*BANG\(.*ratio=0\.5.*0\.25"):
        start(True, [BANG(ratio=0.25)])
    with pytest.raises(ValueError, match=r"^resume: .*BANG\(.* \[\]"):
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
        with pytest.raises(ValueError, match=rf"^resume: .*{name} .* {value}\."):
            start(True, [BANG(ratio=0.5)], **{name: value})
    start(True, [BANG(ratio=0.5)])

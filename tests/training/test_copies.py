"""Copies of trainers, and NumPy's numbers as their settings."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from art import config

from art_robust_plugins import (
    BANGTrainer,
    LayerwiseAdversarialTrainer,
    LipschitzMarginTrainer,
    LocalBallTrainer,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    TRADESTrainer,
    TrainingOptions,
)
from art_robust_plugins.experiments import TrainingPlan
from art_robust_plugins.training import BANG

from .builders import same, weights
from .engine.small import LINF, X, Y, classifier, fit

METHODS: dict[str, Callable[..., RobustTrainer]] = {
    "standard": StandardTrainer,
    "bang": lambda c, **o: BANGTrainer(c, ratio=0.5, **o),
    "layerwise": LayerwiseAdversarialTrainer,
    "lipschitz-margin": lambda c, **o: LipschitzMarginTrainer(c, c=0.2, **o),
    "local-ball": lambda c, **o: LocalBallTrainer(c, threat=LINF, overfitting="rollback", instruments=[BANG()], **o),
    "trades": lambda c, **o: TRADESTrainer(c, threat=LINF, steps=1, **o),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_trainer_copies_and_pickles(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(config, "ART_DATA_PATH", str(tmp_path))  # where ART pickles weights
    options = TrainingOptions(seed=0, schedule="cosine", ema_decay=0.5)
    trainer = METHODS[name](classifier(preprocessing=(0.1, 0.5)), options=options)
    small: dict[str, Any] = {"x": X[:64], "y": Y[:64], "batch_size": 32, "nb_epochs": 1}
    if name == "lipschitz-margin":  # which takes seconds to trace
        fit(trainer, **small)
    for _ in range(1 if name == "lipschitz-margin" else 2):  # before and after fit
        twins = [copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer)), copy.copy(trainer)]
        before = weights(trainer.classifier)
        for twin in twins[:2]:
            assert twin.history == trainer.history
            assert same(weights(twin.classifier), before)
            fit(twin, **small)
            assert not same(weights(twin.classifier), before)
        assert same(weights(trainer.classifier), before)
        fit(twins[2], **small)  # which trains the same network
        assert all(same(weights(twin.classifier), weights(trainer.classifier)) for twin in twins)


def test_numbers_of_numpy_are_numbers() -> None:
    plain = TrainingOptions(seed=3, crop_padding=2, schedule="piecewise", milestones=(1, 1.5), ema_decay=0.5)
    given = TrainingOptions(
        seed=np.int64(3),  # type: ignore[arg-type]
        crop_padding=np.uint8(2),  # type: ignore[arg-type]
        schedule="piecewise",
        milestones=[np.int32(1), np.float32(1.5)],
        ema_decay=np.float32(0.5),  # type: ignore[arg-type]
    )
    assert repr(given) == repr(plain)
    assert repr(BANG(np.int64(1), np.float32(0.5), cap=np.int64(9))) == repr(BANG(1, 0.5, cap=9))  # type: ignore[arg-type]
    trainer = LocalBallTrainer(
        classifier(),
        threat=ThreatModel("Linf", Fraction(1, 8)),  # type: ignore[arg-type]
        steps=np.int64(2),  # type: ignore[arg-type]
        radius=np.float32(0.5),  # type: ignore[arg-type]
    )
    assert [type(trainer.parameters[name]) for name in ("steps", "radius")] == [int, float]
    fit(trainer, batch_size=np.int64(150), nb_epochs=np.int32(1))
    assert len(trainer.history) == 1
    plan = TrainingPlan("standard", epochs=np.int64(2), validation=np.int64(3))  # type: ignore[arg-type]
    assert repr(plan) == repr(TrainingPlan("standard", epochs=2, validation=3))
    for wrong in (True, 0.5):
        with pytest.raises(ValueError, match="validation: got"):
            TrainingPlan("standard", validation=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eps: got True"):
        ThreatModel("L2", True)
    with pytest.raises(ValueError, match="norm: got True"):
        ThreatModel(True, 1)

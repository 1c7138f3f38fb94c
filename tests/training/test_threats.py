"""Radii in other units than the classifier's input."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from art_robust_plugins import (
    LipschitzMarginTrainer,
    PGDTrainer,
    PyTorchLipschitzCertifier,
    StandardTrainer,
    ThreatModel,
)

from .engine.small import X, Y, classifier, refused

PER_CHANNEL = (np.zeros((1, 8, 8), np.float32), np.linspace(1, 10, 64, dtype=np.float32).reshape(1, 8, 8))


@pytest.mark.parametrize(
    ("limits", "norm", "whole"),
    [
        ((0, 1), "Linf", 1.0),
        ((0, 1), "L2", 8.0),
        ((-1, 1), "L1", 128.0),
        (PER_CHANNEL, "Linf", 10.0),
        (PER_CHANNEL, "L2", float(np.linalg.norm(PER_CHANNEL[1]))),
        (PER_CHANNEL, "L1", float(PER_CHANNEL[1].sum())),
    ],
)
@pytest.mark.parametrize("make", [StandardTrainer, PGDTrainer])
def test_a_ball_that_holds_every_input_is_refused(make: Any, limits: Any, norm: str, whole: float) -> None:
    make(classifier(clip_values=limits), threat=ThreatModel(norm, whole * 0.999))
    with pytest.raises(ValueError, match="eps: got "):
        make(classifier(clip_values=limits), threat=ThreatModel(norm, whole * 1.001))


@pytest.mark.parametrize("limits", [None, (-np.inf, np.inf)])
def test_without_limits_any_radius_is_one(limits: Any) -> None:
    StandardTrainer(classifier(clip_values=limits), threat=ThreatModel("Linf", 8))


def test_limits_that_shrink_after_the_trainer_is_made() -> None:
    estimator = classifier(clip_values=(0, 255))
    trainer = PGDTrainer(estimator, threat=ThreatModel("Linf", 8), steps=1)
    estimator.set_params(clip_values=(0, 1))
    refused(trainer, "eps: got 8", "'8/255'")


def test_other_lengths_in_other_units() -> None:
    with pytest.raises(ValueError, match="step_size: got 2 "):
        PGDTrainer(classifier(), threat=ThreatModel("Linf", "8/255"), step_size=2)
    with pytest.raises(ValueError, match="c: got 36 "):
        LipschitzMarginTrainer(classifier(), c=36)
    certifier = PyTorchLipschitzCertifier.from_classifier(classifier())
    assert 0 <= certifier.certified_accuracy(X[:5], Y[:5], 0) <= 1
    with pytest.raises(ValueError, match="eps: got 36 "):
        certifier.certified_accuracy(X[:5], Y[:5], 36)

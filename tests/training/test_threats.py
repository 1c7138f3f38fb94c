"""Radii in other units than the classifier's input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier

from art_robust_plugins import (
    Evaluator,
    LipschitzMarginTrainer,
    PGDTrainer,
    PyTorchLipschitzCertifier,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    evaluate,
)
from art_robust_plugins.evaluation import sweep

from .engine.small import X, Y, check_refusal, classifier, fit

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


MAKES: dict[str, Callable[[PyTorchClassifier, float], RobustTrainer]] = {
    "eps": lambda estimator, radius: StandardTrainer(estimator, threat=ThreatModel("Linf", radius)),
    "step_size": lambda estimator, radius: PGDTrainer(
        estimator, threat=ThreatModel("Linf", 0.9), steps=1, step_size=radius
    ),
    "c": lambda estimator, radius: LipschitzMarginTrainer(estimator, c=radius),
    "c_start": lambda estimator, radius: LipschitzMarginTrainer(estimator, c=0.1, c_start=radius),
}
OPEN_LIMITS = [None, (-np.inf, np.inf), (0, np.inf), (np.zeros((1, 8, 8)), np.full((1, 8, 8), np.inf))]


@pytest.mark.parametrize("limits", OPEN_LIMITS)
@pytest.mark.parametrize("name", MAKES)
def test_without_limits_the_training_inputs_are_the_range(name: str, limits: Any) -> None:
    """Images in [0, 1] are no farther apart than 1 in Linf, and than 8 in L2."""
    whole = 8.0 if name[0] == "c" else 1.0
    trainer = MAKES[name](classifier(clip_values=limits), 1.01 * whole)
    check_refusal(trainer, f"{name}: got {1.01 * whole:g}")
    with pytest.raises(ValueError, match=f"^{name}: got"):
        trainer.fit_loader([(X, Y)], nb_epochs=1, verbose=False)
    assert trainer.history == []
    fit(MAKES[name](classifier(clip_values=limits), 0.99 * whole), nb_epochs=1)


def test_a_certificate_without_limits_counts_the_inputs() -> None:
    certifier = PyTorchLipschitzCertifier.from_classifier(classifier(clip_values=None))
    with pytest.raises(ValueError, match="eps: got 36 "):
        certifier.certified_accuracy(X[:5], Y[:5], 36)


@pytest.mark.parametrize("name", ["eps", "step_size", "c"])
@pytest.mark.filterwarnings("ignore:training ended at chance")
def test_a_fraction_of_a_level_is_warned_of(name: str) -> None:
    """A radius of images in [0, 1] beside images in [0, 255]: once, as soon as the range is known."""
    make = MAKES[name]
    with pytest.warns(UserWarning, match=f"^{name}: got 0.0313725 .* 8 here"):
        trainer = make(classifier(clip_values=(0, 255)), 8 / 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(trainer, 255 * X, nb_epochs=1)
        trainer = make(classifier(clip_values=None), 8 / 255)
        fit(make(classifier(clip_values=None), 8 / 255), X, nb_epochs=1)
        make(classifier(clip_values=(0, 255)), 8)
        make(classifier(clip_values=(0, 1)), 1e-4)
    with pytest.warns(UserWarning, match=f"^{name}: got 0.0313725 .* 8 here"):
        fit(trainer, 255 * X, nb_epochs=1)


def test_evaluations_and_certificates_warn_of_a_fraction_of_a_level() -> None:
    estimator, small = classifier(clip_values=(0, 255)), ThreatModel("Linf", "8/255")
    plain = {"attacks": "pgd-20", "verbose": False}
    calls: list[Callable[[], object]] = [
        lambda: Evaluator(estimator, small),
        lambda: Evaluator(estimator.model, small, bounds=(0, 255), **plain).evaluate(255 * X[:2], Y[:2]),
        lambda: evaluate(estimator, 255 * X[:2], Y[:2], "Linf", "8/255", **plain),
        lambda: evaluate(estimator.model, 255 * X[:2], Y[:2], "Linf", "8/255", bounds=(0, 255), **plain),
        lambda: sweep(estimator, "Linf", ["8/255"], 255 * X[:2], Y[:2], attacks="apgd-ce", verbose=False),
        lambda: PyTorchLipschitzCertifier.from_classifier(estimator).certified_accuracy(
            255 * X[:2], Y[:2], "8/255", norm="Linf"
        ),
    ]
    for call in calls:
        with pytest.warns(UserWarning, match="^eps: got 0.0313725 .* 8 here"):
            call()


def test_limits_that_shrink_after_the_trainer_is_made() -> None:
    estimator = classifier(clip_values=(0, 255))
    trainer = PGDTrainer(estimator, threat=ThreatModel("Linf", 8), steps=1)
    estimator.set_params(clip_values=(0, 1))
    check_refusal(trainer, "eps: got 8", "'8/255'")


def test_other_lengths_in_other_units() -> None:
    with pytest.raises(ValueError, match="step_size: got 2 "):
        PGDTrainer(classifier(), threat=ThreatModel("Linf", "8/255"), step_size=2)
    with pytest.raises(ValueError, match="c: got 36 "):
        LipschitzMarginTrainer(classifier(), c=36)
    certifier = PyTorchLipschitzCertifier.from_classifier(classifier())
    assert 0 <= certifier.certified_accuracy(X[:5], Y[:5], 0) <= 1
    with pytest.raises(ValueError, match="eps: got 36 "):
        certifier.certified_accuracy(X[:5], Y[:5], 36)

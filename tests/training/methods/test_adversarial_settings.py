"""Settings of adversarial methods that are refused."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from art_robust_plugins import (
    LocalBallTrainer,
    PGDTrainer,
    RobustTrainer,
    TRADESTrainer,
)

from .adversaries import LINF, classifier, plain

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
        expected = f"threat: got {type(threat).__name__}, expected a ThreatModel, "
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
    with pytest.raises(TypeError, match=r"^eps: got an unknown keyword"):
        LocalBallTrainer(classifier(), threat=LINF, eps=0.1)

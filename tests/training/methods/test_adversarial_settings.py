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
    ({"steps": 0}, "steps: got 0,"),
    ({"steps": 2.0}, "steps: got 2.0,"),
    ({"steps": True}, "steps: got True,"),
    ({"step_size": 0}, "step_size: got 0,"),
    ({"step_size": "2/0"}, "step_size: got '2/0',"),
    ({"step_size": math.nan}, "step_size: got nan,"),
    ({"global_loss": "mse"}, "global_loss: got 'mse',"),
    ({"global_weight": -1.0}, "global_weight: got -1.0,"),
    ({"local_weight": math.inf}, "local_weight: got inf,"),
    ({"local_weight": None}, "local_weight: got None,"),
    ({"clean_weight": -0.5}, "clean_weight: got -0.5,"),
    ({"radius": 0.0}, "radius: got 0.0,"),
    ({"within_threat": 1}, "within_threat: got 1,"),
    ({"start": "zero"}, "start: got 'zero',"),
    ({"start": ["uniform"]}, "start: got ['uniform'],"),
    ({"local_weight_grows": True}, "local_weight_grows: got True with eps_warmup_epochs 0,"),
    ({"local_weight_grows": 1}, "local_weight_grows: got 1,"),
    ({"local_direction": "ce"}, "local_direction: got 'ce',"),
    ({"smoothness": "l2"}, "smoothness: got 'l2',"),
    ({"start_noise": 0.5}, "start_noise: got 0.5 with start 'uniform',"),
    ({"start": "previous", "start_noise": -0.5}, "start_noise: got -0.5,"),
    ({"start": "none", "global_loss": "kl"}, "start: got 'none' with global_loss 'kl',"),
    ({"eps_warmup_epochs": -1}, "eps_warmup_epochs: got -1,"),
    ({"overfitting": "stop"}, "overfitting: got 'stop',"),
    ({"global_weight": 0, "local_weight": 0}, "global_weight: got 0, as is local_weight,"),
]


@pytest.mark.parametrize(("changes", "sentence"), SETTINGS, ids=[sentence for _, sentence in SETTINGS])
def test_bad_settings_are_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        LocalBallTrainer(classifier(), threat=LINF, **changes)
    assert str(error.value).startswith(sentence)


@pytest.mark.parametrize("kind", [LocalBallTrainer, PGDTrainer, TRADESTrainer])
def test_a_threat_is_needed(kind: type[RobustTrainer]) -> None:
    for threat in (None, 0.1, ("Linf", 0.1)):
        expected = f"threat: got {type(threat).__name__},"
        with pytest.raises(TypeError, match=re.escape(expected)):
            kind(classifier(), threat=threat)
    with pytest.raises(TypeError, match="threat"):
        kind(classifier())


def test_beta_and_the_classifier_are_checked() -> None:
    for beta in (0, -1.0, "6", math.nan):
        with pytest.raises(ValueError, match=re.escape(f"beta: got {beta!r},")):
            TRADESTrainer(classifier(), threat=LINF, beta=beta)
    with pytest.raises(TypeError, match="classifier: got Sequential,"):
        LocalBallTrainer(plain(), threat=LINF)
    with pytest.raises(TypeError, match=r"^eps: got an unknown keyword"):
        LocalBallTrainer(classifier(), threat=LINF, eps=0.1)


def test_a_step_size_may_be_a_fraction() -> None:
    assert PGDTrainer(classifier(), threat=LINF, step_size="2/255").step_size == 2 / 255

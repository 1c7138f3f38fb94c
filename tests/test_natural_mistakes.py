"""docs/bad-inputs.md: what is said about the mistakes that come naturally."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_bad_inputs import PAIRS, ROWS, Forward, X, Y, compile_sentence, wrap
from torch import nn
from torch.utils.data import DataLoader

from art_robust_plugins import (
    BANGTrainer,
    Evaluator,
    LayerwiseAdversarialTrainer,
    LocalBallTrainer,
    PGDTrainer,
    PyTorchLipschitzCertifier,
    StandardTrainer,
    ThreatModel,
    TRADESTrainer,
    TrainingOptions,
    certify,
    create,
    evaluate,
    export_classifier,
)

LINEAR = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
CONVOLUTION = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.LazyLinear(4))
CONVOLUTION(torch.zeros(1, 1, 8, 8))


def attack(model: Any = LINEAR, x: Any = X, y: Any = Y, norm: Any = "Linf", eps: Any = 0.1, **settings: Any) -> None:
    evaluate(model, x, y, norm, eps, **{"attacks": "pgd-20", "verbose": False, **settings})


def fit(x: Any = X, y: Any = Y, **settings: Any) -> None:
    StandardTrainer(wrap()).fit(x, y, **{"nb_epochs": 1, "verbose": False, **settings})


def make_network() -> nn.Module:
    return LINEAR


CASES: dict[str, Callable[[], object]] = {
    "`evaluate` of images in 0 to 255": lambda: attack(x=255 * X),
    "of standardised images": lambda: attack(x=3 * X - 1),
    "of images with the channels last": lambda: attack(CONVOLUTION, np.repeat(X, 3, 1).transpose(0, 2, 3, 1)),
    "of images without an axis of channels": lambda: attack(CONVOLUTION, X[:, 0]),
    "labels that count from 1": lambda: attack(y=Y + 1),
    "labels forgotten": lambda: evaluate(LINEAR, X, norm="Linf", eps=0.1),
    "labels forgotten, norm and radius in their places": lambda: evaluate(LINEAR, X, "Linf", 0.1),
    "the norm forgotten": lambda: evaluate(LINEAR, X, Y, eps=0.1),
    "the radius forgotten": lambda: evaluate(LINEAR, X, Y, "Linf"),
    "images and labels exchanged": lambda: attack(x=Y, y=X),
    "norm and radius exchanged": lambda: attack(norm="8/255", eps="Linf"),
    "`eps=8` for images in [0, 1]": lambda: attack(eps=8),
    "`eps=8/255` for images in [0, 255]": lambda: attack(x=255 * X, eps="8/255", bounds=(0, 255)),
    '`eps="8px"`': lambda: attack(eps="8px"),
    '`norm="Lx"`': lambda: attack(norm="Lx"),
    "the class of a network": lambda: attack(nn.Linear),
    "a state dict": lambda: attack(LINEAR.state_dict()),
    "the path of a file": lambda: attack("weights.pt"),
    "a function that makes the network": lambda: attack(make_network),
    "a network that returns a pair": lambda: attack(Forward(lambda x, layer: (layer(x), x))),
    "a network that returns the chosen class": lambda: attack(Forward(lambda x, layer: layer(x).argmax(1))),
    "a network for segmentation": lambda: attack(nn.Conv2d(1, 4, 1)),
    "a lazy network that has seen no input": lambda: attack(nn.Sequential(nn.Flatten(), nn.LazyLinear(4))),
    "a network without outputs": lambda: attack(Forward(lambda x, layer: layer(x)[:, :0])),
    "a network on no device": lambda: attack(nn.Linear(8, 4, device="meta")),
    "a network in half precision": lambda: attack(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).half()),
    "`certify` of TorchScript": lambda: certify(torch.jit.script(LINEAR), X),
    "`mean` without `std`": lambda: attack(mean=0.5),
    "three means for one channel": lambda: attack(mean=(0.5, 0.5, 0.5), std=(1, 1, 1)),
    "`mean` in 0 to 255": lambda: attack(mean=125, std=60),
    "`bounds=1`": lambda: attack(bounds=1),
    "`bounds` beside an ART classifier": lambda: attack(wrap(), bounds=(0, 1)),
    '`attacks="pgd20"`': lambda: attack(attacks="pgd20"),
    "`evaluate(..., epsilon=0.1)`": lambda: evaluate(LINEAR, X, Y, "Linf", epsilon=0.1),
    "`evaluate(..., threat=threat)`": lambda: evaluate(LINEAR, X, Y, threat=ThreatModel("Linf", 0.1)),
    "`Evaluator(classifier, eps=0.1)`": lambda: Evaluator(wrap(), eps=0.1),
    "a `Dataset` and labels": lambda: attack(x=PAIRS),
    "`certify` of a `DataLoader`": lambda: certify(LINEAR, DataLoader(PAIRS)),
    "`certify(..., n_classes=10)`": lambda: certify(LINEAR, X, n_classes=10),
    "`PyTorchLipschitzCertifier(..., eps=0.1)`": lambda: PyTorchLipschitzCertifier(
        LINEAR, nn.CrossEntropyLoss(), (1, 8, 8), 4, eps=0.1
    ),
    "`export_classifier` of a plain network": lambda: export_classifier(LINEAR, "n.pt2", X),
    "a trainer of a plain network": lambda: StandardTrainer(LINEAR),
    "a trainer of a classifier without optimizer": lambda: StandardTrainer(wrap(optimizer=lambda network: None)),
    "`StandardTrainer(..., nb_epochs=5)`": lambda: StandardTrainer(wrap(), nb_epochs=5),
    "`StandardTrainer(..., seed=1)`": lambda: StandardTrainer(wrap(), seed=1),
    "`StandardTrainer(..., lr=0.1)`": lambda: StandardTrainer(wrap(), lr=0.1),
    "`fit(x, y, epochs=5)`": lambda: fit(epochs=5),
    "`fit` on images in 0 to 255": lambda: fit(255 * X),
    "`fit` on images with the channels last": lambda: fit(X.transpose(0, 2, 3, 1)),
    "`fit_loader` of an iterator": lambda: StandardTrainer(wrap()).fit_loader(iter([(X, Y)])),
    "`TRADESTrainer(classifier)`": lambda: TRADESTrainer(wrap()),
    "`TRADESTrainer(..., eps=8)`": lambda: TRADESTrainer(wrap(), eps=8),
    "`TRADESTrainer(..., threat=0.1)`": lambda: TRADESTrainer(wrap(), threat=0.1),
    '`PGDTrainer(..., threat=ThreatModel("Linf", 8))`': lambda: PGDTrainer(wrap(), threat=ThreatModel("Linf", 8)),
    "the same without `clip_values`, in `fit`": lambda: PGDTrainer(
        wrap(clip_values=None), threat=ThreatModel("Linf", 8)
    ).fit(np.round(X), Y, verbose=False),
    '`ThreatModel("Linf", "8/255")` for `clip_values=(0, 255)`': lambda: PGDTrainer(
        wrap(clip_values=(0, 255)), threat=ThreatModel("Linf", "8/255")
    ),
    '`LocalBallTrainer(..., norm="Linf")`': lambda: LocalBallTrainer(wrap(), norm="Linf"),
    "`BANGTrainer(..., eps=0.1)`": lambda: BANGTrainer(wrap(), eps=0.1),
    "`LayerwiseAdversarialTrainer(..., epsilon=0.1)`": lambda: LayerwiseAdversarialTrainer(wrap(), epsilon=0.1),
    "`TrainingOptions(epochs=5)`": lambda: TrainingOptions(epochs=5),
    '`TrainingOptions(schedule="cos")`': lambda: TrainingOptions(schedule="cos"),
    "`TrainingOptions(resume=True)`": lambda: TrainingOptions(resume=True),
    '`create("trade", classifier)`': lambda: create("trade", wrap()),
    '`create("trades", classifier, eps=0.1)`': lambda: create("trades", wrap(), eps=0.1),
}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_the_sentence_is_the_one_that_is_printed(case: str) -> None:
    with pytest.raises((ValueError, TypeError, UserWarning), match=compile_sentence(ROWS[case])):
        CASES[case]()

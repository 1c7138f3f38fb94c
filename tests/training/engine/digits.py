"""A network and a classifier of digits on which the loop is tried."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_robust_plugins import BANGTrainer, TrainingOptions

from ..builders import IMAGES, LABELS, make_builder, momentum, weights

X = IMAGES[:600]
Y = LABELS[:600]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, 10),
    )


classifier = make_builder(network)
OPTIMIZERS = {
    "SGD": momentum(0.05),
    "Adam": partial(torch.optim.Adam, lr=0.003),
    "RMSprop": partial(torch.optim.RMSprop, lr=0.001),
}


def accuracy(trained: PyTorchClassifier) -> float:
    return float((trained.predict(X).argmax(axis=1) == Y).mean())


# ----------------------------------------------------------------------------------------- seeds, schedules, selection
def run(seed: int | None, **options: Any) -> list[Tensor]:
    trained = classifier()
    trainer = BANGTrainer(trained, options=TrainingOptions(seed=seed, **options))
    trainer.fit(X[:200], Y[:200], nb_epochs=2, verbose=False)
    return weights(trained)

"""Small classifiers, and changes of their files."""

from __future__ import annotations

import json

import numpy as np
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_robust_plugins.files import (
    seal,
)
from art_robust_plugins.models import create_model

SHAPE = (1, 8, 8)

X = np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32)


def network():
    return create_model("small-cnn", SHAPE, 10, channels=4, hidden=8)


def classifier(model=None, loss=None, **arguments):
    model = network() if model is None else model
    return PyTorchClassifier(model, loss or nn.CrossEntropyLoss(), SHAPE, 10, clip_values=(0, 1), **arguments)


class OwnLoss(nn.CrossEntropyLoss):
    pass


def own_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def change(folder, **entries):
    """Change a record as someone who knows how its digest is made."""
    path = folder / "classifier.json"
    path.write_text(json.dumps(seal({**json.loads(path.read_text()), **entries})))

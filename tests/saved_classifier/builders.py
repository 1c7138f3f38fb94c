"""Small classifiers, and changes of their files."""

from __future__ import annotations

import json

import numpy as np
from builders import make_classifier
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
    return make_classifier(network() if model is None else model, loss, **arguments)


class OwnLoss(nn.CrossEntropyLoss):
    pass


def change(folder, **entries):
    """Change a record as someone who knows how its digest is made."""
    path = folder / "classifier.json"
    path.write_text(json.dumps(seal({**json.loads(path.read_text()), **entries})))

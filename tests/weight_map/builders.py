"""What the tests of weight maps in ART's classifiers share."""

from __future__ import annotations

from functools import partial

import torch
from art.estimators.classification import PyTorchClassifier
from builders import make_classifier
from torch import nn

from art_robust_plugins.models import create_model

SHAPE = (1, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return create_model("small-cnn", SHAPE, 10, channels=4, hidden=16)


def classifier(model: nn.Module | None = None, **options) -> PyTorchClassifier:
    """A classifier of images [1, 8, 8] in [0, 1], with SGD; what is random after it is the same in every test."""
    torch.manual_seed(0)
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    return make_classifier(network() if model is None else model, **{"optimizer": optimizer, **options})

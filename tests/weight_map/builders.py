"""What the tests of weight maps in ART's classifiers share."""

from __future__ import annotations

import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_robust_plugins.models import create_model

SHAPE = (1, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return create_model("small-cnn", SHAPE, 10, channels=4, hidden=16)


def classifier(model: nn.Module | None = None, **options) -> PyTorchClassifier:
    """A classifier of images [1, 8, 8] in [0, 1], with SGD; what is random after it is the same in every test."""
    torch.manual_seed(0)
    model = network() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), SHAPE, 10, optimizer, clip_values=(0, 1), **options)

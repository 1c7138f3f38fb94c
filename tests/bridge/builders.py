"""Classifiers of every kind that the bridge takes."""

from __future__ import annotations

import numpy as np
import torch
from art.defences.preprocessor import CutoutPyTorch, MixupPyTorch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from builders import make_classifier
from torch import nn
from torch.nn import functional

SHAPE = (3, 6, 5)

N = 7

RNG = np.random.default_rng(0)


class Blur(PreprocessorPyTorch):
    """A differentiable defence: the mean of each pixel's neighbourhood, and a curve."""

    def __init__(self, apply_fit=True, apply_predict=True):
        super().__init__(device_type="cpu", apply_fit=apply_fit, apply_predict=apply_predict)

    def forward(self, x, y=None):
        return functional.avg_pool2d(torch.tanh(x), 3, 1, 1), y


class Pad(PreprocessorPyTorch):
    """A defence that makes its images square."""

    def forward(self, x, y=None):
        return functional.pad(x, (0, 1), value=0.5), y


class ChannelsLast(nn.Module):
    def forward(self, x):
        return x.movedim(-1, 1)


def network(shape=SHAPE, nb_classes=4, channels_last=False):
    torch.manual_seed(0)
    channels, height, width = shape
    return nn.Sequential(
        ChannelsLast() if channels_last else nn.Identity(),
        nn.Conv2d(channels, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(5 * height * width, nb_classes),
    )


def classifier(model=None, loss=None, shape=SHAPE, nb_classes=4, **arguments):
    model = network(shape, nb_classes) if model is None else model
    arguments = {"device_type": "cpu", **arguments}
    return make_classifier(model, loss, input_shape=shape, nb_classes=nb_classes, **arguments)


PER_CHANNEL = (np.array([0.1, 0.2, 0.3], np.float32), np.array([0.4, 0.5, 0.6], np.float32))

SET_UPS = {
    "plain": {},
    "no preprocessing": {"preprocessing": None},
    "0 to 255": {"clip_values": (0, 255), "preprocessing": (120.0, 60.0)},
    "-1 to 1": {"clip_values": (-1, 1)},
    "scalar mean": {"preprocessing": (0.4, 0.2)},
    "mean per channel": {"preprocessing": PER_CHANNEL},
    "mean per pixel": {"preprocessing": (RNG.random(SHAPE, dtype=np.float32), np.full(SHAPE, 0.5, np.float32))},
    "defence": {"preprocessing_defences": Blur(), "preprocessing": PER_CHANNEL},
    "two defences": {"preprocessing_defences": [Blur(), Blur(apply_fit=False)], "clip_values": (0, 255)},
    "training only": {"preprocessing_defences": [CutoutPyTorch(2), MixupPyTorch(4)]},
    "defence as preprocessing": {"preprocessing": Blur()},
}

IMAGES = RNG.random((N, *SHAPE), dtype=np.float32)
LABELS = np.array([0, 3, 1, 2, 2, 0, 3])
ONE_HOT = np.eye(4)[LABELS]

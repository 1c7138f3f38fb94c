"""The networks of BANG's experiments (Rozsa, Guenther, Boult; arXiv 1612.00138)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import nn

from .building import Layered, check_dropout, check_image_shape, describe_recipe, weighted_layers


class LeNet(Layered):
    """The LeNet of BANG's MNIST experiments (Rozsa et al., arXiv 1612.00138): no ReLU after the convolutions.

    Weights start uniform in +-sqrt(3 / fan_in), biases at 0.

    Args:
        input_shape: (C, H, W), at least 16 x 16.
        nb_classes: number of logits.
        dropout: probability of dropping a hidden unit.

    Raises:
        ValueError: for images that are too small.

    Example:
        >>> import torch
        >>> LeNet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, input_shape: Sequence[int] = (1, 28, 28), nb_classes: int = 10, *, dropout: float = 0.5) -> None:
        super().__init__()
        dropout = check_dropout(dropout)
        channels, height, width = check_image_shape(input_shape, "lenet", smallest=16)
        self.recipe = describe_recipe("lenet", input_shape, nb_classes, dropout=dropout)
        features = 50 * _lenet_size(height) * _lenet_size(width)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 20, 5),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(features, 500),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(500, nb_classes),
        )
        for layer in weighted_layers(self):
            bound = math.sqrt(3 / layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound)


class QuickNet(Layered):
    """The CIFAR-10 quick net of BANG's experiments (Rozsa et al., arXiv 1612.00138), with ceil-mode pooling.

    Weights start gaussian with standard deviations 1e-4, 1e-2, 1e-2, 0.1, 0.1, biases at 0. The paper feeds it pixels
    of 0 .. 255 minus the mean training image: on [0, 1] this start is too small to learn from quickly.

    Args:
        input_shape: (C, H, W), at least 8 x 8.
        nb_classes: number of logits.
        dropout: probability of dropping a hidden unit.

    Raises:
        ValueError: for images that are too small.

    Example:
        >>> import torch
        >>> QuickNet()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, input_shape: Sequence[int] = (3, 32, 32), nb_classes: int = 10, *, dropout: float = 0.5) -> None:
        super().__init__()
        dropout = check_dropout(dropout)
        channels, height, width = check_image_shape(input_shape, "quick", smallest=8)
        self.recipe = describe_recipe("quick", input_shape, nb_classes, dropout=dropout)
        features = 64 * _quick_size(height) * _quick_size(width)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 32, 5, padding=2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.ReLU(),
            nn.Conv2d(32, 32, 5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(32, 64, 5, padding=2),
            nn.ReLU(),
            nn.AvgPool2d(3, 2, ceil_mode=True),
            nn.Flatten(),
            nn.Linear(features, 64),
            nn.Dropout(dropout),
            nn.Linear(64, nb_classes),
        )
        for layer, std in zip(weighted_layers(self), (1e-4, 1e-2, 1e-2, 0.1, 0.1), strict=True):
            nn.init.normal_(layer.weight, std=std)


def _lenet_size(pixels: int) -> int:
    """Two times: a 5x5 convolution without padding, then 2x2 pooling."""
    return ((pixels - 4) // 2 - 4) // 2


def _quick_size(pixels: int) -> int:
    """Three times: 3x3 pooling of stride 2 in ceil mode."""
    for _ in range(3):
        pixels = math.ceil((pixels - 3) / 2) + 1
    return pixels

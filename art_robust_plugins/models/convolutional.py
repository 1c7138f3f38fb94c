"""Small convolutional networks: for digits, and those of the literature on certified L2 radii."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

from torch import nn

from ..checks import check_choice, check_count
from .activations import MinMax
from .building import Layered, check_dropout, check_image_shape, describe_recipe, weighted_layers

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "minmax": MinMax}


class SmallCNN(Layered):
    """Two 3x3 convolutions, each with ReLU and 2x2 max-pooling, and two linear layers; for digits of 8x8 to 28x28.

    Weights start gaussian with standard deviation sqrt(2 / fan_in) (He et al., 2015), biases at 0.

    Args:
        input_shape: (C, H, W), at least 4 x 4.
        nb_classes: number of logits.
        channels: outputs of the first convolution; the second has twice as many.
        hidden: outputs of the first linear layer.
        dropout: probability of dropping a hidden unit.

    Raises:
        ValueError: for images that are too small.

    Example:
        >>> import torch
        >>> SmallCNN((1, 8, 8), channels=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 8, 8),
        nb_classes: int = 10,
        *,
        channels: int = 32,
        hidden: int = 128,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, hidden = check_count("channels", channels), check_count("hidden", hidden)
        dropout = check_dropout(dropout)
        inputs, height, width = check_image_shape(input_shape, "small-cnn", smallest=4)
        self.recipe = describe_recipe(
            "small-cnn", input_shape, nb_classes, channels=channels, hidden=hidden, dropout=dropout
        )
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(2 * channels * (height // 4) * (width // 4), hidden),
            nn.ReLU(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(hidden, nb_classes),
        )
        for layer in weighted_layers(self):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


class _ConvolutionsThenLinear(Layered):
    """Convolutions with padding 1 and linear layers, an activation between any two."""

    name: ClassVar[str]
    convolutions: ClassVar[tuple[tuple[int, int, int], ...]]  # outputs, kernel size, stride
    hidden: ClassVar[int]

    def __init__(
        self,
        input_shape: Sequence[int],
        nb_classes: int = 10,
        *,
        activation: Literal["relu", "minmax"] = "relu",
        init: Literal["he", "orthogonal"] = "he",
    ) -> None:
        super().__init__()
        channels, *size = check_image_shape(input_shape, self.name, smallest=8)
        check_choice("activation", activation, tuple(_ACTIVATIONS))
        check_choice("init", init, ("he", "orthogonal"))
        self.recipe = describe_recipe(self.name, input_shape, nb_classes, activation=activation, init=init)
        layers: list[nn.Module] = []
        for outputs, kernel, stride in self.convolutions:
            layers += [nn.Conv2d(channels, outputs, kernel, stride, padding=1), _ACTIVATIONS[activation]()]
            channels, size = outputs, [(length + 2 - kernel) // stride + 1 for length in size]
        features = channels * math.prod(size)
        layers += [nn.Flatten(), nn.Linear(features, self.hidden), _ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(self.hidden, nb_classes))
        for layer in weighted_layers(self):
            if init == "he":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.orthogonal_(layer.weight)


class CNN2C2F(_ConvolutionsThenLinear):
    """The small MNIST network of the literature on certified L2 radii: conv 16 and 32 (4x4, stride 2), linear 100.

    As in Lipschitz-margin training (Tsuzuku et al., arXiv 1802.04034) and in later comparisons with it.

    Args:
        input_shape: (C, H, W), at least 8 x 8.
        nb_classes: number of logits.
        activation: ``"relu"``, or ``"minmax"`` (see `MinMax`).
        init: ``"he"``, gaussian with standard deviation sqrt(2 / fan_in), or ``"orthogonal"``; biases at 0.

    Raises:
        ValueError: for images that are too small, and unknown names.

    Example:
        >>> import torch
        >>> CNN2C2F((1, 28, 28))(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    name = "2c2f"
    convolutions = ((16, 4, 2), (32, 4, 2))
    hidden = 100


class CNN6C2F(_ConvolutionsThenLinear):
    """The CIFAR-10 network of that literature: conv 32, 32, 32 (stride 2), 64, 64, 64 (stride 2), linear 512.

    Kernels are 3x3, those with stride 2 4x4, all padded by 1 (Lee, Lee, Park, arXiv 2010.06387, NeurIPS 2020; their
    code has this variant and one without padding in the last convolution). Arguments as for `CNN2C2F`.

    Example:
        >>> import torch
        >>> CNN6C2F((3, 32, 32), activation="minmax")(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    name = "6c2f"
    convolutions = ((32, 3, 1), (32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 3, 1), (64, 4, 2))
    hidden = 512

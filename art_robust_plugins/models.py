"""The papers' networks and the usual ones: LeNet, the CIFAR-10 quick net, small CNNs, PreActResNet-18, WideResNet.

Each takes images [N, *input_shape] and returns logits [N, nb_classes]. Each carries its ``recipe``, the arguments with
which `create_model` makes it again, so that a saved classifier can be loaded without the code that made it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn


class LeNet(nn.Module):
    """The LeNet of BANG's MNIST experiments (Rozsa et al., arXiv 1612.00138): no ReLU after the convolutions.

    Weights start uniform in +-sqrt(3 / fan_in), biases at 0.

    Args:
        input_shape: (C, H, W), at least 16 x 16.
        nb_classes: number of logits.
        dropout: probability of dropping a hidden unit.

    Raises:
        ValueError: for images that are too small.

    Example:
        >>> LeNet()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, input_shape: Sequence[int] = (1, 28, 28), nb_classes: int = 10, *, dropout: float = 0.5) -> None:
        super().__init__()
        channels, height, width = _image_shape(input_shape, "lenet", smallest=16)
        self.recipe = _recipe("lenet", input_shape, nb_classes, dropout=dropout)
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
        for layer in _weighted_layers(self):
            bound = math.sqrt(3 / layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class QuickNet(nn.Module):
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
        >>> QuickNet()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, input_shape: Sequence[int] = (3, 32, 32), nb_classes: int = 10, *, dropout: float = 0.5) -> None:
        super().__init__()
        channels, height, width = _image_shape(input_shape, "quick", smallest=8)
        self.recipe = _recipe("quick", input_shape, nb_classes, dropout=dropout)
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
        for layer, std in zip(_weighted_layers(self), (1e-4, 1e-2, 1e-2, 0.1, 0.1), strict=True):
            nn.init.normal_(layer.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class SmallCNN(nn.Module):
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
        inputs, height, width = _image_shape(input_shape, "small-cnn", smallest=4)
        self.recipe = _recipe("small-cnn", input_shape, nb_classes, channels=channels, hidden=hidden, dropout=dropout)
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
        for layer in _weighted_layers(self):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class MinMax(nn.Module):
    """Sorts pairs of channels: the larger one goes to the first half of the channels, the smaller one to the second.

    GroupSort with groups of two (Anil, Lucas, Grosse, arXiv 1811.05381, ICML 2019). A permutation for each input, so it
    keeps the norm of every gradient, where ReLU drops part of it: Lipschitz bounds come closer to the truth.

    Raises:
        ValueError: for an odd number of channels (axis 1).

    Example:
        >>> MinMax()(torch.tensor([[1.0, 5.0, 3.0, 2.0]]))
        tensor([[3., 5., 1., 2.]])
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % 2:
            raise ValueError(f"x: got {x.shape[1]} channels, expected an even number.")
        a, b = x.chunk(2, dim=1)
        return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "minmax": MinMax}


class _ConvolutionsThenLinear(nn.Module):
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
        channels, *size = _image_shape(input_shape, self.name, smallest=8)
        for option, value, known in (("activation", activation, _ACTIVATIONS), ("init", init, ("he", "orthogonal"))):
            if value not in known:
                raise ValueError(f"{option}: got {value!r}, expected one of {', '.join(map(repr, known))}.")
        self.recipe = _recipe(self.name, input_shape, nb_classes, activation=activation, init=init)
        layers: list[nn.Module] = []
        for outputs, kernel, stride in self.convolutions:
            layers += [nn.Conv2d(channels, outputs, kernel, stride, padding=1), _ACTIVATIONS[activation]()]
            channels, size = outputs, [(length + 2 - kernel) // stride + 1 for length in size]
        features = channels * math.prod(size)
        layers += [nn.Flatten(), nn.Linear(features, self.hidden), _ACTIVATIONS[activation]()]
        self.layers = nn.Sequential(*layers, nn.Linear(self.hidden, nb_classes))
        for layer in _weighted_layers(self):
            if init == "he":
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            else:
                nn.init.orthogonal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


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
        >>> CNN6C2F((3, 32, 32), activation="minmax")(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    name = "6c2f"
    convolutions = ((32, 3, 1), (32, 3, 1), (32, 4, 2), (64, 3, 1), (64, 3, 1), (64, 4, 2))
    hidden = 512


class _PreActBlock(nn.Module):
    """Batch norm, ReLU, conv, batch norm, ReLU, (dropout,) conv, added to its input or to a 1x1 conv of it.

    Where the shapes differ, the shortcut starts from the activated input (He et al. 2016, Zagoruyko & Komodakis 2016).
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        same = inputs == outputs and stride == 1
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.bn1(x))
        residual: Tensor = self.conv1(active)
        residual = self.conv2(self.dropout(torch.relu(self.bn2(residual))))
        return residual + (x if self.shortcut is None else self.shortcut(active))


class PreActResNet18(nn.Module):
    """The 18-layer pre-activation ResNet for small images (He et al., "Identity Mappings", 2016), widths 64 to 512.

    11,172,170 parameters for 3 channels and 10 classes. Convolutions start gaussian with standard deviation
    sqrt(2 / fan_out) (He et al., 2015).

    Args:
        input_shape: (C, H, W), any size.
        nb_classes: number of logits.
        final_norm: batch norm and ReLU after the last block, as in the paper; a widespread implementation leaves them
            out (11,171,146 parameters).

    Example:
        >>> PreActResNet18()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self, input_shape: Sequence[int] = (3, 32, 32), nb_classes: int = 10, *, final_norm: bool = True
    ) -> None:
        super().__init__()
        channels, _, _ = _image_shape(input_shape, "preact-resnet18", smallest=1)
        self.recipe = _recipe("preact-resnet18", input_shape, nb_classes, final_norm=final_norm)
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.stages = _stages(64, (64, 128, 256, 512), blocks=2)
        self.final = nn.Sequential(nn.BatchNorm2d(512), nn.ReLU()) if final_norm else nn.Identity()
        self.linear = nn.Linear(512, nb_classes)
        _init_resnet(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.final(self.stages(self.conv1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class WideResNet(nn.Module):
    """The wide residual network WRN-depth-widen_factor (Zagoruyko & Komodakis, 2016).

    WRN-28-10 has 36,479,194 parameters for 3 channels and 10 classes. Convolutions start gaussian with standard
    deviation sqrt(2 / fan_out) (He et al., 2015).

    Args:
        input_shape: (C, H, W), any size.
        nb_classes: number of logits.
        depth: 6 n + 4, for n blocks in each of the three stages.
        widen_factor: the stages have 16, 32 and 64 times as many channels.
        dropout: probability of dropping a value between a block's two convolutions.

    Raises:
        ValueError: for another depth.

    Example:
        >>> WideResNet(depth=10, widen_factor=1)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        nb_classes: int = 10,
        *,
        depth: int = 28,
        widen_factor: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, _, _ = _image_shape(input_shape, "wide-resnet", smallest=1)
        if depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth: got {depth}, expected 6 n + 4 with n blocks a stage: 10, 16, 22, 28, ...")
        self.recipe = _recipe(
            "wide-resnet", input_shape, nb_classes, depth=depth, widen_factor=widen_factor, dropout=dropout
        )
        widths = tuple(width * widen_factor for width in (16, 32, 64))
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stages = _stages(16, widths, blocks=(depth - 4) // 6, dropout=dropout)
        self.final = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())
        self.linear = nn.Linear(widths[-1], nb_classes)
        _init_resnet(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.final(self.stages(self.conv1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


MODELS: dict[str, type[nn.Module]] = {
    "lenet": LeNet,
    "quick": QuickNet,
    "small-cnn": SmallCNN,
    "2c2f": CNN2C2F,
    "6c2f": CNN6C2F,
    "preact-resnet18": PreActResNet18,
    "wide-resnet": WideResNet,
}
"""The names that `create_model` knows."""


def create_model(name: str, input_shape: Sequence[int], nb_classes: int, **arguments: Any) -> nn.Module:
    """Make a network by its name, with fresh weights from torch's random stream.

    Args:
        name: ``"lenet"``, ``"quick"``, ``"small-cnn"``, ``"2c2f"``, ``"6c2f"``, ``"preact-resnet18"`` or
            ``"wide-resnet"``.
        input_shape: shape of one image, (C, H, W).
        nb_classes: number of logits.
        **arguments: those of the network's class, such as ``depth`` of a wide ResNet.

    Raises:
        ValueError: for an unknown name, an input that does not fit the network, or fewer than 2 classes.
        TypeError: for arguments that the network does not have.

    Example:
        >>> network = create_model("wide-resnet", (3, 32, 32), 10, depth=10, widen_factor=2)
        >>> network.recipe["widen_factor"]
        2
    """
    if name not in MODELS:
        near = get_close_matches(str(name).lower(), MODELS, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(f"name: got the model {name!r}{hint}, expected one of {', '.join(MODELS)}.")
    if nb_classes < 2:
        raise ValueError(f"nb_classes: got {nb_classes}, expected at least 2.")
    known = list(inspect.signature(MODELS[name]).parameters)[2:]
    for given in arguments:
        if given not in known:
            near = get_close_matches(given, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f", expected {' or '.join(known) or 'none'}."
            raise TypeError(f"{given}: the network {name!r} has no such argument{hint}")
    return MODELS[name](input_shape, nb_classes, **arguments)


def _recipe(name: str, input_shape: Sequence[int], nb_classes: int, **arguments: Any) -> dict[str, Any]:
    """The arguments of `create_model`, as JSON data."""
    return {
        "name": name,
        "input_shape": [int(size) for size in input_shape],
        "nb_classes": int(nb_classes),
        **arguments,
    }


def _image_shape(input_shape: Sequence[int], name: str, *, smallest: int) -> tuple[int, int, int]:
    if len(input_shape) != 3 or min(input_shape) < 1 or min(input_shape[1:]) < smallest:
        raise ValueError(
            f"input_shape: got {tuple(input_shape)}, expected (C, H, W) of at least {smallest} x {smallest} pixels "
            f"for {name!r}."
        )
    channels, height, width = input_shape
    return channels, height, width


def _lenet_size(pixels: int) -> int:
    """Two times: a 5x5 convolution without padding, then 2x2 pooling."""
    return ((pixels - 4) // 2 - 4) // 2


def _quick_size(pixels: int) -> int:
    """Three times: 3x3 pooling of stride 2 in ceil mode."""
    for _ in range(3):
        pixels = math.ceil((pixels - 3) / 2) + 1
    return pixels


def _weighted_layers(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """The convolutions and linear layers in order, their biases set to 0."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layers


def _stages(inputs: int, widths: Sequence[int], *, blocks: int, dropout: float = 0.0) -> nn.Sequential:
    """Stages of pre-activation blocks; each after the first halves the image in its first block."""
    stages = nn.Sequential()
    for number, outputs in enumerate(widths):
        stage = nn.Sequential()
        for block in range(blocks):
            stride = 2 if number > 0 and block == 0 else 1
            stage.append(_PreActBlock(inputs, outputs, stride, dropout))
            inputs = outputs
        stages.append(stage)
    return stages


def _init_resnet(network: nn.Module) -> None:
    """He's initialisation by fan_out for the convolutions; torch's own for the last layer's weight, bias 0."""
    for layer in _weighted_layers(network):
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

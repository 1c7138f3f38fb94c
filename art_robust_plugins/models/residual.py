"""Residual networks with pre-activation blocks: PreActResNet-18, WideResNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..checks import check_count, check_flag, is_integer
from .building import check_dropout, check_image_shape, describe_recipe, weighted_layers


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


class _PreActivationNetwork(nn.Module):
    """The forward pass that both networks share: stages of blocks, the mean over the image, a linear layer."""

    conv1: nn.Conv2d
    stages: nn.Sequential
    final: nn.Module
    linear: nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        x = self.final(self.stages(self.conv1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class PreActResNet18(_PreActivationNetwork):
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
        check_flag("final_norm", final_norm)
        channels, _, _ = check_image_shape(input_shape, "preact-resnet18", smallest=1)
        self.recipe = describe_recipe("preact-resnet18", input_shape, nb_classes, final_norm=final_norm)
        self.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        self.stages = _stages(64, (64, 128, 256, 512), blocks=2)
        self.final = nn.Sequential(nn.BatchNorm2d(512), nn.ReLU()) if final_norm else nn.Identity()
        self.linear = nn.Linear(512, nb_classes)
        _init_resnet(self)


class WideResNet(_PreActivationNetwork):
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
        channels, _, _ = check_image_shape(input_shape, "wide-resnet", smallest=1)
        widen_factor, dropout = check_count("widen_factor", widen_factor), check_dropout(dropout)
        if not is_integer(depth) or depth < 10 or depth % 6 != 4:
            raise ValueError(f"depth: got {depth}, expected 6 n + 4 with n blocks a stage: 10, 16, 22, 28, ...")
        self.recipe = describe_recipe(
            "wide-resnet", input_shape, nb_classes, depth=depth, widen_factor=widen_factor, dropout=dropout
        )
        widths = tuple(width * widen_factor for width in (16, 32, 64))
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stages = _stages(16, widths, blocks=(depth - 4) // 6, dropout=dropout)
        self.final = nn.Sequential(nn.BatchNorm2d(widths[-1]), nn.ReLU())
        self.linear = nn.Linear(widths[-1], nb_classes)
        _init_resnet(self)


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
    for layer in weighted_layers(network):
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

"""Networks of several kinds, written as people write them, with the places where weight maps belong by default."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins.models import CNN6C2F, PreActResNet18


def sequential() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


class Functional(nn.Module):
    """Activations and pooling are functions; one convolution is followed by a module."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1)
        self.fc = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.bn1(self.conv1(x))), 2)
        x = functional.relu(self.conv2(x))
        return self.fc(x.flatten(1))


class VGG(nn.Module):
    """Features made from a list, a classifier after them."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 1
        for outputs in (4, "pool", 8, 8, "pool"):
            if isinstance(outputs, str):
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(32, 16), nn.ReLU(inplace=True), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class BasicBlock(nn.Module):
    """A residual block with one ReLU module that it uses twice."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """A stem, stages of residual blocks, global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(4, 4), BasicBlock(4, 4))
        self.layer2 = nn.Sequential(BasicBlock(4, 8, 2), BasicBlock(8, 8))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class ConvAndReLU(nn.Module):
    """One convolution and a function, as a block of its own."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.conv(x))


def blocks() -> nn.Module:
    return nn.Sequential(
        ConvAndReLU(1, 4), ConvAndReLU(4, 4), nn.MaxPool2d(2), ConvAndReLU(4, 4), nn.Flatten(), nn.Linear(64, 10)
    )


class Shared(nn.Module):
    """One convolution that runs twice, and one that runs once."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 4, 3, padding=1)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.again(torch.relu(self.again(x))))
        return self.fc(x.flatten(1))


# One-channel images of 8x8 pixels, and the expected places: name -> [C, H, W] of the map.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, int, int]]]] = {
    "sequential": (sequential, {"2": (4, 8, 8), "6": (8, 4, 4)}),
    "functional": (Functional, {"bn1": (4, 8, 8), "conv2": (8, 4, 4)}),
    "vgg": (VGG, {"features.2": (4, 8, 8), "features.6": (8, 4, 4)}),
    "resnet": (ResNet, {"layer1.0": (4, 8, 8), "layer2.0": (8, 4, 4)}),
    "blocks": (blocks, {"0": (4, 8, 8), "3": (4, 4, 4)}),
    "shared": (Shared, {"first": (4, 8, 8)}),
    "6c2f": (lambda: CNN6C2F((1, 8, 8)), {"layers.1": (32, 8, 8), "layers.5": (32, 4, 4)}),
    "preact-resnet18": (
        lambda: PreActResNet18((1, 8, 8)),
        {"stages.0.0": (64, 8, 8), "stages.1.0": (128, 4, 4)},
    ),
}


def settle(network: nn.Module) -> nn.Module:
    """Weights from a fixed seed, and batch statistics that are not the initial ones; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) * 0.4 - 0.1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.add_(0.5)
    return network.eval()

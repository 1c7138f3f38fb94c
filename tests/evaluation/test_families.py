"""Networks of torchvision, timm, Hugging Face's transformers, and of RobustBench's form: one call, random weights."""

from __future__ import annotations

import importlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from art_robust_plugins import evaluate

POINTS = 2


@pytest.fixture(scope="module", autouse=True)
def torchvision() -> Iterator[Any]:
    """torchvision; where its build is not the one of this torch, with names alone for its own operators."""
    named = torch.library.Library("torchvision", "FRAGMENT")
    for _ in range(64):
        try:
            yield importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.match(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            named.define(f"{missing[1]}(Tensor x) -> Tensor")
            for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    raise AssertionError("torchvision cannot be imported")


def check(network: nn.Module, channels: int, size: int, **settings: Any) -> None:
    """The accuracy is that of the network's own logits, and an attack runs."""
    rng = np.random.default_rng(0)
    x = rng.random((POINTS, channels, size, size), dtype=np.float32)
    network.eval()
    mean, std = (
        torch.tensor(settings.get(name, default)).view(-1, 1, 1) for name, default in (("mean", 0.0), ("std", 1.0))
    )
    with torch.no_grad():
        outputs = network((torch.from_numpy(x) - mean) / std)
    y = (outputs if isinstance(outputs, Tensor) else outputs.logits).argmax(dim=1)
    y[0] = (y[0] + 1) % 10
    report = evaluate(network, x, y, "Linf", "1/255", attacks="fgsm", verbose=False, **settings)
    assert report.correct.tolist() == [False, True]
    assert [result.name for result in report.attacks] == ["fgsm"]


def test_torchvision(torchvision: Any) -> None:
    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(num_classes=10)
    check(network, 3, 32, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


def test_timm() -> None:
    import timm

    torch.manual_seed(0)
    network = timm.create_model("test_resnet", pretrained=False, num_classes=10)
    check(network, 3, 32, mean=network.pretrained_cfg["mean"], std=network.pretrained_cfg["std"])


def test_hugging_face() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import ResNetConfig, ResNetForImageClassification, ViTConfig, ViTForImageClassification
    torch.manual_seed(0)
    residual = ResNetConfig(
        num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=10
    )
    check(ResNetForImageClassification(residual), 1, 8)
    attention = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=10,
    )
    check(ViTForImageClassification(attention), 1, 8, mean=0.5, std=0.5)


class Normalised(nn.Module):
    """What RobustBench's ``load_model`` returns: a network on [0, 1] that normalises inside."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.4914, 0.4822, 0.4465]).view(1, 3, 1, 1))
        self.register_buffer("sigma", torch.tensor([0.2471, 0.2435, 0.2616]).view(1, 3, 1, 1))
        self.conv, self.linear = nn.Conv2d(3, 4, 3, stride=4), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Any:
        return self.linear(self.conv((x - self.mean) / self.sigma).relu().mean(dim=(2, 3)))


def test_robustbench() -> None:
    torch.manual_seed(0)
    check(Normalised(), 3, 32)

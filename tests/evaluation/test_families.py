"""Networks of torchvision, timm, Hugging Face's transformers, and of RobustBench's form: one call, random weights."""

from __future__ import annotations

import importlib
import json
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
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


@pytest.fixture(scope="module")
def manual() -> dict[str, Any]:
    """The functions that docs/index.md shows, as they stand there."""
    text = (Path(__file__).parents[2] / "docs" / "index.md").read_text(encoding="utf-8")
    (block,) = [each for each in re.findall(r"^```python\n(.*?)^```", text, re.M | re.S) if "def from_timm" in each]
    functions: dict[str, Any] = {}
    exec(compile(block, "docs/index.md", "exec"), functions)
    return functions


def test_the_manuals_line_for_timm(manual: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import timm

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, *, pretrained: create(name, pretrained=not pretrained))
    torch.manual_seed(0)
    network, conventions = manual["from_timm"]("test_resnet")
    assert len(conventions["mean"]) == len(conventions["std"]) == 3
    check(network, 3, 32, **conventions)


def test_the_manuals_line_for_torchvision(
    torchvision: Any, manual: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    get = torchvision.models.get_model
    asked = []
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, *, weights: asked.append(weights) or get(name))
    torch.manual_seed(0)
    network, conventions = manual["from_torchvision"]("squeezenet1_1")
    assert asked == ["DEFAULT"]
    check(network, 3, 32, **conventions)


def test_the_manuals_line_for_hugging_face(manual: dict[str, Any], tmp_path: Path) -> None:
    """From a folder, which holds what a name of the hub stands for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import ResNetConfig, ResNetForImageClassification
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic", num_labels=10)
    ResNetForImageClassification(config).save_pretrained(tmp_path)
    images = {"image_processor_type": "ConvNextImageProcessor", "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images), encoding="utf-8")
    network, conventions = manual["from_hugging_face"](str(tmp_path))
    assert [list(conventions[name]) for name in ("mean", "std")] == [images["image_mean"], images["image_std"]]
    check(network, 3, 16, **conventions)


def test_the_manuals_line_for_robustbench(manual: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """With a package of that name in place of RobustBench, whose pins exclude the versions here."""

    def load_model(name: str, *, dataset: str, threat_model: str) -> nn.Module:
        assert (name, dataset, threat_model) == ("Author2026Small", "cifar10", "L2")
        return Normalised()

    package = ModuleType("robustbench")
    vars(package)["load_model"] = load_model
    monkeypatch.setitem(sys.modules, "robustbench", package)
    torch.manual_seed(0)
    network, conventions = manual["from_robustbench"]("Author2026Small", threat_model="L2")
    check(network, 3, 32, **conventions)

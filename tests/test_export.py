"""Exported networks: the estimator's logits, without this package and without ART."""

from __future__ import annotations

import errno
import importlib.util
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_robust_plugins import (
    PyTorchLipschitzCertifier,
    PyTorchWeightMapClassifier,
    WeightMapPreprocessor,
    export_classifier,
    save_classifier,
)
from art_robust_plugins.export import SUFFIXES, Format
from art_robust_plugins.files import save_tensors
from art_robust_plugins.models import create_model

Forward = Callable[[Tensor], Tensor]

FORMATS: list[Format] = ["torch-export", "onnx", "torchscript"]


class Squared(PreprocessorPyTorch):
    """Preprocessing of a user's own."""

    def __init__(self) -> None:
        super().__init__(is_fitted=True, apply_fit=True, apply_predict=True)

    def forward(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        return x * x, y


class ChannelsLast(nn.Module):
    """A network for images [N, H, W, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.network = create_model("small-cnn", (3, 8, 8), 10, channels=4)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x.movedim(-1, 1))
        return logits


def estimator(network: nn.Module, shape: tuple[int, ...] = (3, 8, 8), **settings: Any) -> PyTorchClassifier:
    settings = {"clip_values": (0.0, 1.0), "device_type": "cpu", **settings}
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), shape, 10, **settings)


def small(**arguments: Any) -> nn.Module:
    return create_model("small-cnn", (3, 8, 8), 10, channels=4, **arguments)


def make_standardised() -> PyTorchClassifier:
    mean, std = np.float32([[[90.0]], [[100.0]], [[110.0]]]), np.float32([[[60.0]], [[50.0]], [[70.0]]])
    return estimator(small(dropout=0.5), clip_values=(0.0, 255.0), preprocessing=(mean, std))


def make_normalised() -> PyTorchClassifier:
    classifier = estimator(create_model("wide-resnet", (3, 8, 8), 10, depth=10, widen_factor=1))
    classifier.model.train()
    classifier.model(torch.rand(32, 3, 8, 8))  # running statistics of its own
    return classifier


def make_mapped() -> PyTorchClassifier:
    classifier = PyTorchWeightMapClassifier.from_classifier(estimator(small()), kernel="unsharp")
    for layer in classifier.weight_maps.values():
        nn.init.uniform_(layer.map, 0.5, 1.5)
    return classifier


def mapped_input() -> PyTorchClassifier:
    defence = WeightMapPreprocessor((3, 8, 8), kernel="smoothing", clip_values=(0.0, 1.0))
    nn.init.uniform_(defence.layer.map, 0.5, 1.5)
    return estimator(small(), preprocessing_defences=[defence], preprocessing=(0.4, 0.3))


CLASSIFIERS: dict[str, Callable[[], PyTorchClassifier]] = {
    "mean and deviation, 0 to 255": make_standardised,
    "batch normalisation": make_normalised,
    "weight maps": make_mapped,
    "a map of the input": mapped_input,
    "MinMax": lambda: estimator(create_model("2c2f", (3, 8, 8), 10, activation="minmax")),
    "a certifier": lambda: PyTorchLipschitzCertifier.from_classifier(estimator(small(), preprocessing=(0.4, 0.3))),
    "a defence of a user's own": lambda: estimator(small(), preprocessing_defences=[Squared()]),
    "channels last": lambda: estimator(ChannelsLast(), (8, 8, 3), channels_first=False),
}


def inputs(classifier: PyTorchClassifier, count: int) -> np.ndarray[Any, Any]:
    high = float(np.max(classifier.clip_values[1]))
    return (high * np.random.default_rng(count).random((count, *classifier.input_shape))).astype(np.float32)


def logits_of(path: Path, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """As a user would compute them."""
    if path.suffix == ".onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(path)
        found: np.ndarray[Any, Any] = session.run(["logits"], {"x": x})[0]
        return found
    network = torch.export.load(path).module() if path.suffix == ".pt2" else torch.jit.load(path)
    with torch.no_grad():
        outputs: Tensor = network(torch.from_numpy(x))
    return outputs.numpy()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_file_gives_the_estimators_logits_for_any_batch(name: str, format: Format, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    torch.manual_seed(0)
    classifier = CLASSIFIERS[name]()
    path = tmp_path / f"network{SUFFIXES[format]}"
    before = {key: value.clone() for key, value in classifier.model.state_dict().items()}
    difference = export_classifier(classifier, path, inputs(classifier, 4), format=format)
    assert difference < 1e-5
    for count in (1, 2, 7):
        x = inputs(classifier, count)
        wanted = classifier.predict(x)
        assert np.abs(wanted).max() > 0.01
        np.testing.assert_allclose(logits_of(path, x), wanted, atol=1e-5 * max(1, np.abs(wanted).max()))
    after = classifier.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(parameter.requires_grad for parameter in classifier.model.parameters())
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("format", ["torch-export", "onnx"])
def test_a_fixed_batch(format: Format, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    classifier, path = estimator(small()), tmp_path / f"network{SUFFIXES[format]}"
    export_classifier(classifier, path, inputs(classifier, 2), format=format, batch=3)
    x = inputs(classifier, 3)
    np.testing.assert_allclose(logits_of(path, x), classifier.predict(x), atol=1e-5)
    with pytest.raises(Exception, match=r"3|[Ss]hape|batch|Guard|dimension"):
        logits_of(path, inputs(classifier, 4))


PLAIN = """
import sys
sys.modules["art_robust_plugins"] = sys.modules["art"] = None  # an import of them is an error
import torch
from safetensors.torch import load_file

expected = load_file("expected.safetensors")
x, logits = expected["x"], expected["logits"]

# in three lines
import torch
network = torch.export.load("network.pt2").module()
found = [network(x)]

network = torch.jit.load("network.pt")
found.append(network(x))

# the weights themselves, into the same layers
network = torch.nn.Module()
network.layers = torch.nn.Sequential(
    torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.Conv2d(4, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.MaxPool2d(2),
    torch.nn.Flatten(), torch.nn.Linear(32, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10),
)
network.load_state_dict(load_file("weights.safetensors"))
found.append(network.layers((x - 0.4) / 0.3))

for outputs in found:
    torch.testing.assert_close(outputs.detach(), logits, atol=1e-5, rtol=1e-5)
assert not any(name.startswith(("art.", "art_robust_plugins.")) for name in sys.modules)
"""


def test_plain_pytorch_loads_a_run_without_this_package_or_art(tmp_path: Path) -> None:
    classifier = estimator(small(), preprocessing=(0.4, 0.3))
    save_classifier(classifier, tmp_path)
    x = inputs(classifier, 5)
    export_classifier(classifier, tmp_path / "network.pt2", x)
    export_classifier(classifier, tmp_path / "network.pt", x, format="torchscript")
    expected = {"x": torch.from_numpy(x), "logits": torch.from_numpy(classifier.predict(x))}
    save_tensors(tmp_path / "expected.safetensors", expected)
    subprocess.run([sys.executable, "-c", PLAIN], cwd=tmp_path, check=True)


class Branching(nn.Module):
    """A network that computes something else for bright batches."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits if bool(x.mean() < 0.5) else -logits


def test_a_file_that_would_give_other_logits_is_not_written(tmp_path: Path) -> None:
    classifier = estimator(Branching(), (3, 2, 2))
    x = np.full((3, 3, 2, 2), 0.9, dtype=np.float32)
    x[0] = 0.0  # alone it takes the other branch
    path = tmp_path / "network.pt"
    path.write_text("an earlier one")
    with pytest.raises(ValueError, match=r"torchscript \(TracerWarning: "):
        export_classifier(classifier, path, x, format="torchscript")
    assert path.read_text() == "an earlier one"
    with pytest.raises(ValueError, match=r"torch-export "):
        export_classifier(classifier, tmp_path / "network.pt2", x)
    assert [file.name for file in tmp_path.iterdir()] == ["network.pt"]


def silently(forward: Forward) -> Forward:
    """The same forward, which lets no warning out."""

    def quiet(logits: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return forward(logits)

    return quiet


CONSTANTS: dict[str, Forward] = {
    "branch": lambda logits: logits if logits.mean() < 0 else -logits,
    "numpy": lambda logits: -logits if np.ptp(logits.detach().numpy()) == 0 else logits,
    "array": lambda logits: logits * float(np.asarray(logits.detach()).max() > 0),
    "number": lambda logits: logits * round(logits.mean().item()),
    "list": lambda logits: logits + max(logits.flatten().tolist()),
    "index": lambda logits: logits.roll([1, 2, 3][logits.argmax() % 3], dims=1),
    "loop": lambda logits: torch.stack([row / (1 + place) for place, row in enumerate(logits)]),
    "length": lambda logits: logits * len(logits),
    "tensor": lambda logits: logits + torch.tensor(logits.shape[0]),
}


class Told(nn.Module):
    """A network whose trace computes something else for other inputs than those it was made with."""

    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.layer, self.end = nn.Linear(12, 10), forward

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.layer(x.flatten(1)))


@pytest.mark.parametrize(
    ("name", "quiet"),
    [(name, quiet) for name in CONSTANTS for quiet in (False, True) if not quiet or name not in ("loop", "tensor")],
)
def test_what_tracing_warns_of_is_refused(name: str, quiet: bool, tmp_path: Path) -> None:
    """Also where all inputs take one branch, and where the network silences its warnings."""
    forward = CONSTANTS[name]
    network = Told(silently(forward) if quiet else forward)
    x = np.full((3, 3, 2, 2), 0.2, dtype=np.float32)
    with pytest.raises(ValueError, match=r"torchscript \(TracerWarning: "):
        export_classifier(estimator(network, (3, 2, 2)), tmp_path / "network.pt", x, format="torchscript")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_fails_for_another_batch_is_refused(tmp_path: Path) -> None:
    network = Told(silently(CONSTANTS["loop"]))
    x = np.full((3, 3, 2, 2), 0.2, dtype=np.float32)
    with pytest.raises(ValueError, match=r"^classifier: .*\(RuntimeError"):
        export_classifier(estimator(network, (3, 2, 2)), tmp_path / "network.pt", x, format="torchscript")
    assert list(tmp_path.iterdir()) == []


LIBRARY: dict[str, nn.Module] = {
    "upsampling": nn.Sequential(nn.Upsample(scale_factor=2), nn.Flatten(), nn.Linear(48, 10)),
    "pooling": nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10)),
    "normalisation": nn.Sequential(nn.GroupNorm(3, 3), nn.Flatten(), nn.LayerNorm(12), nn.Linear(12, 10)),
    "attention": nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(4, 2), nn.Flatten(), nn.Linear(12, 10)),
}


@pytest.mark.parametrize("name", LIBRARY)
def test_torchs_own_modules_are_traced(name: str, tmp_path: Path) -> None:
    classifier = estimator(LIBRARY[name], (3, 2, 2))
    x = inputs(classifier, 4)
    assert export_classifier(classifier, tmp_path / "network.pt", x, format="torchscript") < 1e-5


class Quiet(nn.Module):
    """A network whose trace is another one for inputs that the caller did not give, without a warning."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return logits.where(x.mean() < 0.5, 1.5 * logits) if torch.jit.is_tracing() else logits


def test_files_are_compared_on_more_than_the_callers_inputs(tmp_path: Path) -> None:
    x = np.full((3, 3, 2, 2), 0.2, dtype=np.float32)
    with pytest.raises(ValueError, match="the file of its network gives"):
        export_classifier(estimator(Quiet(), (3, 2, 2)), tmp_path / "network.pt", x, format="torchscript")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", FORMATS)
def test_a_network_in_torchscript_is_refused(format: Format, tmp_path: Path) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    network = nn.Sequential(torch.jit.script(nn.Flatten()), nn.Linear(12, 10))
    x = np.zeros((2, 3, 2, 2), dtype=np.float32)
    with pytest.raises(ValueError, match=r"^classifier: got .*RecursiveScriptModule"):
        export_classifier(estimator(network, (3, 2, 2)), tmp_path / f"n{SUFFIXES[format]}", x, format=format)


class Jumping(nn.Module):
    """A network of equal logits, which in a trace are others."""

    def __init__(self, logits: float) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 10)
        nn.init.zeros_(self.layer.weight)
        nn.init.constant_(self.layer.bias, logits)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layer(x.flatten(1))
        return 1.01 * logits if torch.jit.is_tracing() else logits


def test_small_logits_are_compared_at_their_own_scale(tmp_path: Path) -> None:
    x = np.zeros((3, 3, 2, 2), dtype=np.float32)
    with pytest.raises(ValueError, match="1e-06"):
        export_classifier(estimator(Jumping(1e-4), (3, 2, 2)), tmp_path / "network.pt", x, format="torchscript")
    assert list(tmp_path.iterdir()) == []
    nothing = estimator(Jumping(0.0), (3, 2, 2))
    assert export_classifier(nothing, tmp_path / "network.pt", x, format="torchscript") == 0


@pytest.mark.parametrize("format", FORMATS)
def test_a_full_disk_is_not_the_networks_fault(
    format: Format, tmp_path: Path, no_larger_file_than: Callable[[int], AbstractContextManager[None]]
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    classifier, path = estimator(small()), tmp_path / f"network{SUFFIXES[format]}"
    path.write_text("an earlier one")
    with no_larger_file_than(1000), pytest.raises(OSError, match=path.name) as full:
        export_classifier(classifier, path, inputs(classifier, 2), format=format)
    assert full.value.errno == errno.EFBIG
    assert path.read_text() == "an earlier one"
    assert list(tmp_path.iterdir()) == [path]


def test_the_classifier_stays_in_its_modes(tmp_path: Path) -> None:
    classifier = estimator(small(dropout=0.5))
    classifier.model.train()
    classifier.model.layers[0].eval()
    before = [module.training for module in classifier.model.modules()]
    export_classifier(classifier, tmp_path / "network.pt2", inputs(classifier, 2))
    assert [module.training for module in classifier.model.modules()] == before


def test_bad_arguments_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classifier = estimator(small())
    x = inputs(classifier, 2)

    def check_refusal(sentence: str, *arguments: Any, **settings: Any) -> None:
        with pytest.raises((ValueError, TypeError, ImportError), match=sentence):
            export_classifier(*arguments, **settings)
        assert list(tmp_path.iterdir()) == []

    path = tmp_path / "network.pt2"
    check_refusal("classifier: got SmallCNN,", classifier.model, path, x)
    check_refusal("format: got 'tflite',", classifier, path, x, format="tflite")
    check_refusal(r"path: got 'network.pt2',", classifier, path, x, format="onnx")
    check_refusal("batch: got 0,", classifier, path, x, batch=0)
    check_refusal("x: got one input,", classifier, path, x[:1])
    check_refusal("x: got values in", classifier, path, 2 * x + 1)
    script = {"format": "torchscript", "batch": 2}
    check_refusal("batch: got 2 for torchscript", classifier, tmp_path / "network.pt", x, **script)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    missing = r"onnxscript is not installed,"
    check_refusal(missing, classifier, tmp_path / "network.onnx", x, format="onnx")


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network, self.lock = create_model("small-cnn", (3, 8, 8), 10, channels=4), threading.Lock()

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        return logits


def test_a_network_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    x = torch.rand(3, 3, 8, 8)
    with pytest.raises(ValueError, match=r"^classifier: .*network .*copied"):
        export_classifier(estimator(Locked()), tmp_path / "network.pt2", x)

    class LockedDefence(Squared):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    network = create_model("small-cnn", (3, 8, 8), 10, channels=4)
    with pytest.raises(ValueError, match="LockedDefence cannot be copied"):
        export_classifier(estimator(network, preprocessing_defences=LockedDefence()), tmp_path / "network.pt2", x)


def test_a_network_in_place_of_a_classifier_is_named_first(tmp_path: Path) -> None:
    network: Any = create_model("small-cnn", (3, 8, 8), 10, channels=4)
    with pytest.raises(TypeError, match="classifier: got SmallCNN"):
        export_classifier(network, tmp_path / "network.wrong", None)

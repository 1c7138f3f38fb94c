"""The registry: entry points, what it refuses, and a real second package."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from art.defences.preprocessor.preprocessor import Preprocessor
from art.defences.trainer import Trainer
from art.estimators.classification import PyTorchClassifier
from builders import make_tiny

from art_robust_plugins import (
    BANGTrainer,
    PyTorchLipschitzCertifier,
    PyTorchWeightMapClassifier,
    WeightMapPreprocessor,
    available_methods,
    create,
    registry,
)
from art_robust_plugins.registry import available_instruments, create_instrument, parameters_of
from art_robust_plugins.training import BANG, Layerwise


@pytest.fixture
def classifier() -> PyTorchClassifier:
    return make_tiny()


def points(monkeypatch: pytest.MonkeyPatch, *named: tuple[str, str]) -> None:
    monkeypatch.setattr(
        registry, "entry_points", lambda group: [EntryPoint(name, value, group) for name, value in named]
    )


def test_our_methods_are_art_trainers_and_estimators_with_a_source() -> None:
    methods = available_methods()
    assert methods["bang"] is BANGTrainer
    assert methods["lipschitz-certifier"] is PyTorchLipschitzCertifier
    assert list(methods) == sorted(methods)
    for kind in methods.values():
        assert issubclass(kind, Trainer | PyTorchClassifier | Preprocessor)
        assert kind.source


def test_the_parameters_of_an_estimator_are_those_that_create_takes(classifier: PyTorchClassifier) -> None:
    assert parameters_of(PyTorchLipschitzCertifier) == {}
    assert parameters_of(BANGTrainer)["epsilon"] == 0.815
    assert create("lipschitz-certifier", classifier).model is classifier.model
    with pytest.raises(TypeError, match=r"c: 'lipschitz-certifier' "):
        create("lipschitz-certifier", classifier, c=1)


def test_weight_maps_are_methods(classifier: PyTorchClassifier) -> None:
    assert available_methods()["weight-map"] is PyTorchWeightMapClassifier
    preprocessor = create("weight-map-preprocessor", classifier, input_shape=(1, 4, 4), kernel="unsharp")
    assert isinstance(preprocessor, WeightMapPreprocessor)
    assert parameters_of(PyTorchWeightMapClassifier)["kernel"] is None  # smoothing, or what is there already
    with pytest.raises(ValueError, match="no convolutional block"):
        create("weight-map", classifier)


def test_create(classifier: PyTorchClassifier) -> None:
    trainer = create("bang", classifier, epsilon=0.855, ratio=0.5)
    assert isinstance(trainer, BANGTrainer)
    assert (trainer.classifier, trainer.epsilon, trainer.ratio) == (classifier, 0.855, 0.5)


def test_unknown_names_and_parameters_suggest_the_nearest(classifier: PyTorchClassifier) -> None:
    with pytest.raises(ValueError, match=r"name: got 'bnag', .*'bang'\?"):
        create("bnag", classifier)
    with pytest.raises(TypeError, match=r"epsilom: 'bang' .*'epsilon'\?"):
        create("bang", classifier, epsilom=1.0)
    with pytest.raises(TypeError, match=r"xyz: 'bang' "):
        create("bang", classifier, xyz=1.0)


def test_what_is_no_art_class_is_refused_by_the_name_of_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    points(monkeypatch, ("odd", "collections:OrderedDict"))
    with pytest.raises(TypeError, match=r"'odd' \(collections:OrderedDict\)"):
        available_methods()
    points(monkeypatch, ("gone", "art_robust_plugins.nowhere:Trainer"))
    with pytest.raises(ImportError, match=r"the entry point 'gone' "):
        available_methods()
    points(monkeypatch, ("bang", "one:A"), ("bang", "other:B"))
    with pytest.raises(ValueError, match=r"'bang' .*one:A .*other:B"):
        available_methods()


def test_instruments(monkeypatch: pytest.MonkeyPatch) -> None:
    assert available_instruments() == {"bang": BANG, "layerwise": Layerwise}
    assert create_instrument("bang", beta=0.4, ratio=0.5).setting.beta == 0.4
    with pytest.raises(ValueError, match=r"name: got 'layer', .*'layerwise'\?"):
        create_instrument("layer")
    with pytest.raises(TypeError, match=r"bta: 'bang' .*'beta'\?"):
        create_instrument("bang", bta=1)
    points(monkeypatch, ("odd", "art_robust_plugins.training.methods.bang:BANGTrainer"))
    with pytest.raises(TypeError, match=r"art_robust_plugins\.training\.Instrument"):
        available_instruments()


def test_preprocessors_and_estimators_can_be_methods(
    monkeypatch: pytest.MonkeyPatch, classifier: PyTorchClassifier
) -> None:
    points(
        monkeypatch,
        ("cutout", "art.defences.preprocessor.cutout.cutout_pytorch:CutoutPyTorch"),
        ("plain", "art.estimators.classification:PyTorchClassifier"),
    )
    assert create("cutout", classifier, length=2, channels_first=True).length == 2
    with pytest.raises(TypeError, match=r"'plain' .*from_classifier"):
        create("plain", classifier)


@pytest.fixture(scope="module")
def second_package(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which tests/second_package is installed as pip installs it."""
    site = tmp_path_factory.mktemp("site")
    source = Path(__file__).parent / "second_package"
    build = tmp_path_factory.mktemp("build")
    for path in [p for p in source.rglob("*") if p.is_file() and "__pycache__" not in p.parts]:
        copy = build / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*install, "--target", str(site), str(build)], check=True)
    python_path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": python_path, "COLUMNS": "200"}


def test_a_second_package_adds_a_method(second_package: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "art_robust_plugins"]
    listed = subprocess.run([*command, "methods"], env=second_package, check=True, capture_output=True, text=True)
    assert "noisy" in listed.stdout
    shown = subprocess.run(
        [*command, "methods", "noisy"], env=second_package, check=True, capture_output=True, text=True
    )
    assert "sigma = 0.1" in shown.stdout
    arguments = ["train", "noisy", "--set", "sigma=0.2", "--epochs", "1", "--out", str(tmp_path / "noisy")]
    subprocess.run([*command, *arguments], env=second_package, check=True, capture_output=True)
    assert '"sigma": 0.2' in (tmp_path / "noisy" / "classifier.json").read_text()

"""``art-robust train``: what its options do."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from art_robust_plugins import (
    PyTorchWeightMapClassifier,
    TrainingOptions,
    load_classifier,
    weight_maps,
)
from art_robust_plugins.cli import train
from art_robust_plugins.cli.settings import sort_settings
from art_robust_plugins.data import Dataset


def test_train_saves_a_working_estimator_with_its_record(trained_run: Path, digits: Dataset) -> None:
    classifier = load_classifier(trained_run)
    assert (classifier.predict(digits.x_test).argmax(axis=1) == digits.y_test).mean() > 0.8
    record = json.loads((trained_run / "classifier.json").read_text())["extra"]
    assert record["method"] == "bang"
    assert record["parameters"]["ratio"] == 0.5
    assert record["data"] == "digits"
    assert len(record["history"]) == 3
    assert record["history"][-1]["validation_robust_accuracy"] <= record["history"][-1]["validation_accuracy"]


def test_instruments_join_a_method_and_are_recorded(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "run"
    joined = ["--with", "layerwise", "--with", "bang", "--set", "bang.beta=0.4", "--set", "layerwise.eps=0.05"]
    command = ["train", "local-ball", "--eps", "0.1", "--set", "steps=2", *joined, "--epochs", "1"]
    assert run(*command, "--out", out)[0] == 0
    record = json.loads((out / "classifier.json").read_text())["extra"]
    assert record["parameters"]["steps"] == 2
    layerwise, bang = record["parameters"]["instruments"]
    assert layerwise.startswith("Layerwise(eps=0.05")
    assert "beta=0.4" in bang
    (out / "classifier.json").unlink()  # as if the run had been stopped: it cannot go on with other instruments
    code, text = run("train", "local-ball", "--eps", "0.1", "--set", "steps=2", "--epochs", 2, "--out", out, "--resume")
    assert code == 2
    assert "was written with instruments" in text


def test_resume_of_a_folder_without_a_run_says_that_a_new_one_begins(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, text = run("train", "standard", "--epochs", 1, "--out", tmp_path / "new", "--resume")
    assert code == 0
    assert f"{tmp_path / 'new'} holds no run yet; a new one begins." in text.replace("\n", "")
    assert (tmp_path / "new" / "classifier.json").exists()


def test_the_engines_options_reach_the_training(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    reached = []

    class Recorded(TrainingOptions):  # type: ignore[misc]
        def __post_init__(self) -> None:
            super().__post_init__()
            reached.append(self)

    monkeypatch.setattr(train, "TrainingOptions", Recorded)
    engine = ["--fused", "--ema-decay", "0.9", "--accumulate", 2, "--augment", "crop-flip", "--warmup", "0.5"]
    engine += ["--channels-last", "--clip", "2.5"]
    command = ["train", "standard", "--out", tmp_path / "run"]
    assert run(*command, "--epochs", "1", *engine)[0] == 0
    options = reached[-1]
    assert (options.fused_optimizer, options.ema_decay, options.accumulation_steps) == (True, 0.9, 2)
    assert (options.augmentation, options.schedule, options.warmup_epochs) == ("crop-flip", "cosine", 0.5)
    assert (options.channels_last, options.max_gradient_norm) == (True, 2.5)
    assert (options.compile, options.mixed_precision) == ("no", "no")
    (tmp_path / "run" / "classifier.json").unlink()  # as if the run had been stopped: it cannot go on with others
    code, text = run(*command, "--epochs", "1", "--resume", *engine[:1])
    assert code == 2
    assert "was written with" in text
    steps = ["--schedule", "piecewise", "--milestone", "0.5", "--milestone", 1, "--compile", "default"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda function, **_: function)
        assert run("train", "standard", "--epochs", "1", *steps, "--out", tmp_path / "steps")[0] == 0
    assert (reached[-1].schedule, reached[-1].milestones, reached[-1].compile) == ("piecewise", (0.5, 1.0), "default")


def test_weight_maps_by_a_method_of_their_own_or_with_any_other(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    epoch = ("--epochs", 1)
    arguments = ("--set", "kernel=unsharp", "--with", "bang", *epoch)
    code, text = run("train", "weight-map", *arguments, "--out", tmp_path / "own")
    assert (code, "Saved in" in text) == (0, True)
    own = load_classifier(tmp_path / "own")
    assert isinstance(own, PyTorchWeightMapClassifier)
    assert {layer.kernel for layer in own.weight_maps.values()} == {"unsharp"}
    record = json.loads((tmp_path / "own" / "classifier.json").read_text())["extra"]
    assert (record["method"], record["parameters"]["kernel"]) == ("weight-map", "unsharp")
    code, _ = run("train", "bang", "--weight-map", "smoothing", *epoch, "--out", tmp_path / "bang")
    assert code == 0
    assert list(weight_maps(load_classifier(tmp_path / "bang").model)) == ["layers.1", "layers.4"]
    code, _ = run("evaluate", tmp_path / "bang", "--eps", "0.1", "--attacks", "apgd-ce", "--points", 5)
    assert code == 0
    for arguments, sentence in (
        (("weight-map", "--weight-map", "unsharp"), "--weight-map: got unsharp for 'weight-map',"),
        (("weight-map", "--set", "kernel=blur"), "kernel: got 'blur',"),
        (("weight-map-preprocessor",), "METHOD: 'weight-map-preprocessor' is an ART Preprocessor,"),
        (("lipschitz-certifier",), "METHOD: 'lipschitz-certifier' is an ART estimator,"),
    ):
        code, text = run("train", *arguments, *epoch, "--out", tmp_path / "bad")
        assert code == 2
        assert sentence in text
        assert not (tmp_path / "bad").exists()


def test_frozen_batch_normalisation_is_an_option(run, digits: Dataset, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    part = {"x_train": digits.x_train[:64], "y_train": digits.y_train[:64]}
    np.savez(tmp_path / "few.npz", **part, x_test=digits.x_test[:9], y_test=digits.y_test[:9])
    chosen = ["train", "standard", "--data", tmp_path / "few.npz", "--epochs", 1, "--freeze-batch-norm"]
    code, text = run(*chosen, "--out", tmp_path / "frozen")
    assert code == 2
    assert "--freeze-batch-norm: got True for a network without batch normalisation" in text
    small = ["--model", "wide-resnet", "--model-set", "depth=10", "--model-set", "widen_factor=1"]
    code, text = run(*chosen, *small, "--out", tmp_path / "frozen")
    assert code == 0, text
    state = load_classifier(tmp_path / "frozen").model.state_dict()
    means = [tensor for name, tensor in state.items() if name.endswith("running_mean")]
    assert means
    assert not any(mean.any() for mean in means)


def test_values_are_json_or_constants_of_python() -> None:
    given = ["a=True", "b=false", "c=None", "d=null", "e=2/255", "f=[1, 2]", "g=none"]
    expected = {"a": True, "b": False, "c": None, "d": None, "e": "2/255", "f": [1, 2], "g": "none"}
    assert sort_settings(given, []) == (expected, {})

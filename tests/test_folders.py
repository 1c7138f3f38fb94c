"""Commands and folders: outputs that cannot be written, folders in use, and what killed processes left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_classifier, make_linear
from typer.testing import CliRunner

from art_robust_plugins import Evaluator, ThreatModel
from art_robust_plugins.cli import app
from art_robust_plugins.cli import data as command_data
from art_robust_plugins.data import Dataset
from art_robust_plugins.experiments import demo
from art_robust_plugins.experiments.recipes import benchmark, load_recipe, networks, run_recipe
from art_robust_plugins.experiments.runs import RUN_FILES
from art_robust_plugins.locks import FolderInUseError, locked_folder


def refuse_to_load(*_: object, **__: object) -> Dataset:
    raise AssertionError("data were loaded")


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (command_data, demo, benchmark, networks):
        monkeypatch.setattr(module, "load_data", refuse_to_load)


@pytest.mark.usefixtures("no_data")
@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "standard", "--out", "{file}"],
        ["train", "standard", "--out", "{file}/below"],
        ["demo", "--out", "{file}"],
        ["evaluate", "{run}", "--eps", "0.1", "--out", "{file}/below"],
        ["certify", "{run}", "--eps", "0.1", "--out", "{file}"],
        ["export", "{run}", "--out", "{file}/net.pt2"],
        ["report", "{run}", "--out", "{file}"],
        ["benchmark", "digits", "--quick", "--out", "{file}/below"],
    ],
    ids=" ".join,
)
def test_an_output_that_cannot_be_written_is_found_before_data_are_loaded(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    named = [each.format(file=tmp_path / "file", run=tmp_path / "run") for each in arguments]
    with pytest.raises(ValueError, match=r"^(--)?out: got .*file is a file"):
        CliRunner().invoke(app, ["--debug", *named], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def tiny() -> Dataset:
    images, labels = np.random.default_rng(0).random((12, 1, 8, 8)).astype("float32"), np.arange(12) % 3
    return Dataset("tiny", images, labels, images, labels, 3)


def test_two_runs_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_data, "load_data", lambda name, **_: tiny())
    command = ["--debug", "train", "standard", "--epochs", "1", "--out", str(tmp_path)]
    with locked_folder("--out", tmp_path, "run"), pytest.raises(FolderInUseError, match=r"^out: .* is in use"):
        CliRunner().invoke(app, command, catch_exceptions=False)
    with locked_folder("checkpoint_dir", tmp_path, "training"):
        refused = CliRunner().invoke(app, command[1:])
    assert refused.exit_code == 2
    assert f"error: --out: {tmp_path} is in use" in refused.output
    (tmp_path / ".0123abcd.training.pt").touch()  # of a training that was killed as it wrote its first checkpoint
    (tmp_path / ".training.art-robust.lock").touch()
    assert CliRunner().invoke(app, [*command, "--resume"], catch_exceptions=False).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == set(RUN_FILES)


def test_a_recipe_begins_in_a_folder_where_another_was_killed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(benchmark, "load_data", lambda name: tiny())
    monkeypatch.setattr(benchmark, "package_versions", interrupt)
    recipe = load_recipe("digits", quick=True)
    (tmp_path / ".0123abcd.recipe.json").touch()
    (tmp_path / ".benchmark.art-robust.lock").touch()
    with pytest.raises(InterruptedError):
        run_recipe(recipe, tmp_path, command="")
    with locked_folder("--out", tmp_path, "benchmark"), pytest.raises(FolderInUseError):
        run_recipe(recipe, tmp_path, command="")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="holds other files"):
        run_recipe(recipe, tmp_path, command="")


def test_an_evaluation_holds_its_state(tmp_path: Path) -> None:
    data = tiny()
    torch.manual_seed(0)
    classifier = make_classifier(make_linear(classes=3), nb_classes=3)

    def evaluate(folder: Path) -> Any:
        threat = ThreatModel("Linf", 0.1)
        evaluator = Evaluator(classifier, threat, attacks="apgd-ce", state_dir=folder, verbose=False)
        return evaluator.evaluate(data.x_test, data.y_test)

    with locked_folder("state_dir", tmp_path, "evaluation"), pytest.raises(FolderInUseError, match=r"^state_dir: "):
        evaluate(tmp_path)
    batches = tmp_path / "batches"
    batches.mkdir()
    (tmp_path / ".0123abcd.evaluation.pt").touch()
    (batches / ".0123abcd.00-000000.pt").touch()
    evaluate(tmp_path)
    assert not list(tmp_path.rglob(".*"))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^state_dir: got .*file is a file"):
        evaluate(tmp_path / "file" / "below")

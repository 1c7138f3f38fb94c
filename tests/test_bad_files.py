"""docs/bad-inputs.md: the sentences about resumed trainings, files and the command line are those that are printed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_bad_inputs import ROWS, Forward, X, Y, compile_sentence, wrap
from torch import nn

from art_robust_plugins import (
    Evaluator,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
    cli,
    export_classifier,
    load_classifier,
    save_classifier,
)
from art_robust_plugins.data import load_data
from art_robust_plugins.evaluation import EvaluationReport
from art_robust_plugins.evaluation.robustbench import LeaderboardEntry
from art_robust_plugins.experiments import recipes
from art_robust_plugins.experiments.recipes import load_recipe
from art_robust_plugins.files import seal
from art_robust_plugins.locks import locked_folder
from art_robust_plugins.models import create_model

PEPPER = np.random.default_rng(1).random((4, 1, 8, 8), dtype=np.float32)
"""Other images than X."""


def train(x: Any = X, validation: Any = None, resume: bool = False, folder: str = "runs/a", **settings: Any) -> None:
    """A run of one epoch, or another one: cases run in an empty folder."""
    options = TrainingOptions(checkpoint_dir=folder, resume=resume, seed=0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), settings.pop("activation", nn.ReLU()))
    optimizer = make_groups(settings.pop("rate", 0.01))
    trainer = StandardTrainer(wrap(network, optimizer=optimizer, **settings), options=options)
    trainer.fit(x, Y, validation, batch_size=4, nb_epochs=1 + resume, verbose=False)


def make_groups(rate: float) -> Callable[[Any], torch.optim.Optimizer]:
    """Of an optimizer of two groups, the second of this rate."""
    return lambda network: torch.optim.SGD(
        [{"params": [network[1].weight]}, {"params": [network[1].bias], "lr": rate}], 0.1
    )


def resume(**changes: Any) -> None:
    train()
    train(resume=True, **changes)


def train_in_a_folder_in_use() -> None:
    with locked_folder("checkpoint_dir", Path("runs/a"), "training"):
        train()


def train_below_a_file() -> None:
    Path("afile").write_text("")
    train(folder="afile/x")


def load_changed(change: Callable[[dict[str, Any]], None], sealed: bool = True) -> None:
    """Load a classifier after a change of its record, with or without another digest."""
    save_classifier(wrap(), "run")
    path = Path("run/classifier.json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(seal(record) if sealed else record))
    load_classifier("run", model=nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))


def load_text(text: str) -> None:
    save_classifier(wrap(), "run")
    Path("run/classifier.json").write_text(text)
    load_classifier("run")


def load_pipe() -> None:
    save_classifier(wrap(), "run")
    Path("run/classifier.json").unlink()
    os.mkfifo("run/classifier.json")
    load_classifier("run")


def load_report(change: Callable[[dict[str, Any]], None]) -> None:
    undecided = wrap(Forward(lambda x, layer: 0 * layer(x)))
    evaluator = Evaluator(undecided, ThreatModel("Linf", 0.1), attacks="pgd-20", verbose=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator.evaluate(X, Y).save("run")
    path = Path("run/report.json")
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(seal(record)))
    EvaluationReport.load("run")


def load_arrays(factor: float = 1, shift: int = 0) -> None:
    x, y = (factor * np.tile(X, (5, 1, 1, 1))).astype(np.float32), np.arange(20) % 10 + shift
    np.savez("e.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    load_data("e.npz")


def load_enormous_recipe() -> None:
    recipe = Path(recipes.__file__).with_name("digits.toml").read_text()
    Path("a.toml").write_text(recipe.replace('name = "small-cnn"', 'name = "small-cnn"\nchannels = 1000000000'))
    load_recipe("a.toml")


def enter_leaderboard() -> None:
    LeaderboardEntry(
        name="a",
        authors="a",
        dataset="cifar10",
        architecture="a",
        model_id="a",
        link="a",
        venue="a",
        additional_data=False,
        number_forward_passes=1,
        reported=120,
        footnote=None,
    )


def export_loop() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.stack([self.layer(each.flatten()) for each in x])

    export_classifier(wrap(Loop()), "n.pt", X, format="torchscript")


def command(*arguments: str) -> None:
    """A command line, whose error is raised."""
    save_classifier(wrap(create_model("small-cnn", (1, 8, 8), 10), nb_classes=10), "run")
    Path("afile").write_text("")
    Path("k").mkdir()
    Path("w/weights.safetensors").mkdir(parents=True)
    printed = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stderr(printed),
        contextlib.redirect_stdout(printed),
    ):
        patch.setattr(sys, "argv", ["art-robust", *arguments])
        with pytest.raises(SystemExit, match="2"):
            cli.main()
    raise ValueError(printed.getvalue().partition("error: ")[2].strip())


CASES: dict[str, Callable[[], object]] = {
    "`resume` with other data": lambda: resume(x=PEPPER),
    "`resume` with validation data that the earlier run had not": lambda: resume(validation=(X, Y)),
    "`resume` with another layer": lambda: resume(activation=nn.Tanh()),
    "`resume` with another loss": lambda: resume(loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
    "`resume` with other `clip_values`": lambda: resume(clip_values=(0, 2)),
    "`resume` with another rate of one group": lambda: resume(rate=0.02),
    "two trainings in one folder": train_in_a_folder_in_use,
    "`checkpoint_dir` below a file": train_below_a_file,
    "`classifier.json` with one changed digit": lambda: load_changed(
        lambda record: record.update(clip_values=[0.0, 2.0]), sealed=False
    ),
    "`classifier.json` without its digest": lambda: load_changed(lambda record: record.pop("sha256"), sealed=False),
    "a standard deviation of 0, loaded": lambda: load_changed(lambda record: record.update(preprocessing=[0.0, 0.0])),
    "12 classes for a network of 4 outputs": lambda: load_changed(lambda record: record.update(nb_classes=12)),
    "an unknown setting of the optimizer": lambda: load_changed(
        lambda record: record["optimizer"]["groups"][0]["settings"].update(momentums=1)
    ),
    "`clip_values` (1, 0)": lambda: load_changed(lambda record: record.update(clip_values=[1.0, 0.0])),
    "a loss that is a layer": lambda: load_changed(lambda record: record["loss"].update({"class": "Linear"})),
    "a report whose accuracy is not that of its arrays": lambda: load_report(
        lambda record: record.update(robust_accuracy=0.9)
    ),
    "a report with a script for a number": lambda: load_report(
        lambda record: record["settings"].update(classes="<script>x")
    ),
    "JSON nested 100,000 deep": lambda: load_text("[" * 100_000 + "]" * 100_000),
    "JSON with a key twice": lambda: load_text('{"a": 1, "a": 2}'),
    "a named pipe, device, socket or folder in place of a file": load_pipe,
    "`.npz` images outside [0, 1]": lambda: load_arrays(factor=255),
    "`.npz` labels from 1": lambda: load_arrays(shift=1),
    "a recipe with an enormous network": load_enormous_recipe,
    "a RobustBench entry with an accuracy that is none": enter_leaderboard,
    "a TorchScript export of a loop over the batch, with its warnings silenced": export_loop,
    "`train stndard`": lambda: command("train", "stndard", "--out", "new"),
    "`trian`": lambda: command("trian"),
    "`train` without a method": lambda: command("train"),
    "`train bang` without `--out`": lambda: command("train", "bang"),
    "`train bang --outt runs/a`": lambda: command("train", "bang", "--outt", "runs/a"),
    "`--epochs 2.5`": lambda: command("train", "bang", "--out", "new", "--epochs", "2.5"),
    "`--epochs` without a number": lambda: command("train", "bang", "--out", "new", "--epochs"),
    "`--optimizer sgdd`": lambda: command("train", "bang", "--out", "new", "--optimizer", "sgdd"),
    "`evaluate runs/a --eps 0.1 0.2`": lambda: command("evaluate", "runs/a", "--eps", "0.1", "0.2"),
    '`train bang --out "$OUT"`, where `OUT` is not set': lambda: command("train", "bang", "--out", ""),
    "`--quiet=yes`": lambda: command("evaluate", "runs/a", "--quiet=yes"),
    "`evaluate --norm Linf --eps 8`": lambda: command(
        "evaluate", "run", "--data", "digits", "--norm", "Linf", "--eps", "8"
    ),
    "`certify --eps 36`": lambda: command("certify", "run", "--data", "digits", "--eps", "36"),
    "`--out` below a file": lambda: command("train", "standard", "--out", "afile/x"),
    "`train --out` with a folder in place of a file": lambda: command("train", "standard", "--out", "w"),
    "`export --out` that is a folder": lambda: command("export", "run", "--out", "k"),
}


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize("case", CASES)
def test_the_sentence_is_the_one_that_is_printed(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, TypeError, OSError, RuntimeError, UserWarning)) as said:
        CASES[case]()
    assert compile_sentence(ROWS[case]).match(str(said.value)), said.value

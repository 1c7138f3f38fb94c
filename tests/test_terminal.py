"""What is shown: progress on a terminal and in a log, rows, and objects in one line."""

from __future__ import annotations

import io
import sys
from functools import partial

import numpy as np
import pytest
import torch
from builders import make_classifier
from torch import nn

from art_robust_plugins import (
    EvaluationReport,
    Evaluator,
    PyTorchLipschitzCertifier,
    ThreatModel,
    TRADESTrainer,
    TrainingOptions,
)
from art_robust_plugins.data import Dataset
from art_robust_plugins.evaluation import Attack
from art_robust_plugins.terminal import Progress, print_rows


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(progress: Progress) -> None:
    with progress:
        for stage in ("first", "second"):
            progress.begin(stage)
            progress.advance()
            progress.note("half")
            progress.conclude(f"{stage} done\x1b[31m")


def test_a_log_gets_one_line_a_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    work(Progress(2, "work"))
    assert log.getvalue() == "first: first done\\x1b[31m\nsecond: second done\\x1b[31m\n"
    work(Progress(2, "work", shown=False))
    assert log.getvalue().count("\n") == 2


@pytest.mark.parametrize("kept", [True, False])
def test_a_terminal_gets_a_bar_that_may_vanish(monkeypatch: pytest.MonkeyPatch, kept: bool) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    work(Progress(2, "work", kept=kept))
    text = screen.getvalue()
    assert "\r" in text
    left = text.rstrip("\n").split("\r")[-1].strip()
    assert ("second done" in left) == kept


def test_rows_are_cut_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("a-long-name", "x" * 100), ("b", "y")]
    monkeypatch.setenv("COLUMNS", "40")
    for output, width in ((io.StringIO(), 113), (Terminal(), 40)):
        monkeypatch.setattr(sys, "stdout", output)
        print_rows(rows)
        first, second = output.getvalue().splitlines()
        assert len(first) == width
        assert first.startswith("a-long-name  x")
        assert second == "b            y"


@pytest.fixture(scope="module")
def objects() -> dict[str, object]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    estimator = make_classifier(network, optimizer=partial(torch.optim.SGD, lr=0.1), nb_classes=4)
    threat = ThreatModel("Linf", "8/255")
    own = Attack("<b>own</b>", "a test", lambda setting: (lambda x, y: x, {}))
    evaluator = Evaluator(estimator, threat, attacks=own, verbose=False)
    x = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
    report = evaluator.evaluate(x, np.arange(40) % 4)
    certifier = PyTorchLipschitzCertifier.from_classifier(estimator)
    return {
        "report": report,
        "result": report.attacks[0],
        "examples": report.examples,
        "evaluator": evaluator,
        "trainer": TRADESTrainer(estimator, threat=threat, options=TrainingOptions(seed=1)),
        "options": TrainingOptions(seed=1),
        "certifier": certifier,
        "threat": threat,
        "data": Dataset("some", x, np.arange(40) % 4, x, np.arange(40) % 4, 4),
    }


NAMES = ["report", "result", "examples", "evaluator", "trainer", "options", "certifier", "threat", "data"]


@pytest.mark.parametrize("name", NAMES)
def test_objects_are_shown_in_one_line(objects: dict[str, object], name: str) -> None:
    shown = repr(objects[name])
    assert "\n" not in shown
    assert len(shown) < 250
    assert type(objects[name]).__name__ in shown
    assert " object at 0x" not in shown
    assert "array(" not in shown
    assert "tensor(" not in shown


def test_bounds_are_shown_as_a_table(objects: dict[str, object]) -> None:
    bound = objects["certifier"].lipschitz_report()  # type: ignore[attr-defined]
    assert repr(bound) == str(bound)
    assert len(repr(bound).splitlines()) == len(bound.operators) + 2


def test_a_notebook_shows_a_report_as_a_table_whose_texts_are_escaped(objects: dict[str, object]) -> None:
    report = objects["report"]
    assert isinstance(report, EvaluationReport)
    page = report._repr_html_()
    assert "<table>" in page
    assert "<b>own</b>" not in page
    assert "&lt;b&gt;own&lt;/b&gt;" in page
    assert "8/255" in page
    assert "<html" not in page
    assert "base64" not in page

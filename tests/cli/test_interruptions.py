"""What is stopped says how to go on, and going on gives the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from art_robust_plugins import (
    EvaluationReport,
    load_classifier,
)

from .builders import RECIPE

ART_ROBUST = [sys.executable, "-m", "art_robust_plugins"]
Run = Callable[..., tuple[int, str]]
"""The command in this process: what goes on where another one was stopped."""


def test_ctrl_c_in_a_benchmark_says_how_to_resume_and_it_works(run: Run, tmp_path: Path) -> None:
    path, out = tmp_path / "own.toml", tmp_path / "out"
    path.write_text(RECIPE)
    command = ["benchmark", str(path), "--out", str(out)]
    stopped = run_and_interrupt(command, out / "plain" / "seed-0" / "training.pt")
    assert stopped.returncode == 130
    assert f"to continue: art-robust benchmark {path} --out {out}" in stopped.stderr
    assert not (out / "results.json").exists()
    assert run(*command)[0] == 0
    (result,) = json.loads((out / "results.json").read_text())["results"]
    assert len(json.loads((out / "plain" / "seed-0" / "classifier.json").read_text())["extra"]["history"]) == 40
    assert result["clean"] > 0.5


def run_and_interrupt(
    command: list[str], until: Path, by: signal.Signals = signal.SIGINT
) -> subprocess.CompletedProcess[str]:
    """Start a command, send it Ctrl-C (or another signal) once a file is there, and collect what it says.

    A terminal sends it to the processes that the command started, too.
    """
    process = subprocess.Popen(
        [*ART_ROBUST, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Processes started in the background inherit that Ctrl-C is ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (no threads of ours yet)
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not until.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, by)
    output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def test_what_a_launcher_ends_says_how_to_resume(tmp_path: Path) -> None:
    command = ["train", "bang", "--epochs", "40", "--out", str(tmp_path / "run")]
    stopped = run_and_interrupt(command, tmp_path / "run" / "training.pt", signal.SIGTERM)
    assert stopped.returncode == 143
    advice = f"ended by SIGTERM; to continue: art-robust train bang --epochs 40 --out {tmp_path / 'run'} --resume"
    assert advice in stopped.stderr
    assert "Traceback" not in stopped.stderr


def test_ctrl_c_in_training_says_how_to_resume_and_it_works(run: Run, tmp_path: Path) -> None:
    command = ["train", "bang", "--epochs", "20"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stopped = run_and_interrupt([*command, "--out", str(parts)], parts / "training.pt")
    assert stopped.returncode == 130
    advice = stopped.stderr.split("to continue: art-robust ")[1].splitlines()[0]
    assert advice == f"train bang --epochs 20 --out {parts} --resume"
    assert not (parts / "classifier.json").exists()
    code, text = run(*command, "--out", parts)
    assert code == 2
    assert "--resume" in text
    assert run(*command, "--out", parts, "--resume")[0] == 0
    assert run(*command, "--out", whole)[0] == 0
    one, two = load_classifier(whole).model.state_dict(), load_classifier(parts).model.state_dict()
    assert all(np.array_equal(one[name].numpy(), two[name].numpy()) for name in one)


def test_ctrl_c_in_the_demo_says_how_to_resume(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    # Its workers begin with the networks that take longest.
    stopped = run_and_interrupt(["demo", "--out", str(out)], out / "pgd" / "training.pt")
    assert stopped.returncode == 130
    assert f"to continue: art-robust demo --out {out}\n" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert not (out / "index.html").exists()


def test_ctrl_c_in_an_evaluation_says_how_to_resume_and_it_works(run: Run, trained_run: Path, tmp_path: Path) -> None:
    command = ["evaluate", str(trained_run), "--eps", "0.08", "--batch-size", "4"]
    options = ["--points", "8", "--attacks", "apgd-ce", "--attacks", "apgd-t"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stopped = run_and_interrupt([*command, *options, "--out", str(parts)], parts / "state" / "evaluation.pt")
    assert stopped.returncode == 130
    assert f"to continue: art-robust evaluate {trained_run}" in stopped.stderr
    for out in (parts, whole):
        assert run(*command, *options, "--out", out)[0] == 0
    assert np.array_equal(EvaluationReport.load(whole).robust, EvaluationReport.load(parts).robust)

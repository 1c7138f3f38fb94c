"""An evaluation by several processes gives what one gives, also when one of them is killed and all start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.testing import assert_array_equal
from torch import nn
from torch.nn import functional

from art_robust_plugins import EvaluationReport, save_classifier
from art_robust_plugins.models import create_model

from .builders import digits

pytest.importorskip("pyautoattack")
# What accelerate launch starts on GPUs; on CPUs it starts one process only.
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
EVALUATE = ["-m", "art_robust_plugins", "evaluate"]
OPTIONS = ["--eps", "0.1", "--attacks", "apgd-ce", "--attacks", "square", "--points", "24", "--batch-size", "4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as art-robust train leaves it."""
    torch.manual_seed(0)
    network = create_model("small-cnn", (1, 8, 8), 10, channels=4, hidden=16)
    x, y = (torch.from_numpy(values[:1000]) for values in digits())
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 8, 8), 10, clip_values=(0.0, 1.0))
    folder = tmp_path_factory.mktemp("run")
    save_classifier(classifier, folder, extra={"data": "digits"})
    return folder


@pytest.fixture(scope="module")
def expected(run: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationReport:
    """By one process."""
    out = tmp_path_factory.mktemp("one")
    subprocess.run([sys.executable, *EVALUATE, str(run), *OPTIONS, "--out", str(out)], check=True, capture_output=True)
    return EvaluationReport.load(out)


def same(report: EvaluationReport, expected: EvaluationReport) -> None:
    assert report.settings["processes"] == 2
    assert expected.settings["processes"] == 1
    for name in ("robust", "correct", "adversarial"):
        assert_array_equal(getattr(report, name), getattr(expected, name))
    for one, other in zip(report.attacks, expected.attacks, strict=True):
        assert_array_equal(one.robust, other.robust)
        assert (one.forward_calls, one.backward_calls) == (other.forward_calls, other.backward_calls)
    assert (report.flags, report.curve) == (expected.flags, expected.curve)


@pytest.mark.slow
def test_two_processes_give_the_same_report(run: Path, expected: EvaluationReport, tmp_path: Path) -> None:
    command = [*LAUNCH, *EVALUATE, str(run), *OPTIONS, "--out", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Robustness evaluation") == 1
    same(EvaluationReport.load(tmp_path), expected)


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_then_goes_on(
    run: Path, expected: EvaluationReport, tmp_path: Path
) -> None:
    command = [*LAUNCH, *EVALUATE, str(run), *OPTIONS, "--out", str(tmp_path)]
    batches = tmp_path / "state" / "batches"
    with (tmp_path / "output").open("w") as output:
        launcher = subprocess.Popen(command, stdout=output, stderr=output)
        deadline = time.monotonic() + 90
        while not list(batches.glob("01-*.pt")) and time.monotonic() < deadline:  # the second attack has begun
            assert launcher.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.02)
        workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        assert launcher.wait(timeout=120) != 0
    assert "SIGKILL" in (tmp_path / "output").read_text() or "exitcode" in (tmp_path / "output").read_text()
    assert not (tmp_path / "report.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in batches.glob("*.pt")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert kept
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    same(EvaluationReport.load(tmp_path), expected)

"""An evaluation by several processes gives what one gives, also when one of them is killed and all start again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import load_digits
from numpy.testing import assert_allclose, assert_array_equal
from torch import nn
from torch.nn import functional

from art_robust_plugins import EvaluationReport, save_classifier
from art_robust_plugins.models import create_model

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
    x, y = (torch.from_numpy(values[:1000]) for values in load_digits())
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
def report_of_one(run: Path, tmp_path_factory: pytest.TempPathFactory) -> EvaluationReport:
    """By one process."""
    out = tmp_path_factory.mktemp("one")
    subprocess.run([sys.executable, *EVALUATE, str(run), *OPTIONS, "--out", str(out)], check=True, capture_output=True)
    return EvaluationReport.load(out)


def same(report: EvaluationReport, report_of_one: EvaluationReport) -> None:
    assert report.settings["processes"] == 2
    assert report_of_one.settings["processes"] == 1
    for name in ("robust", "correct"):
        assert_array_equal(getattr(report, name), getattr(report_of_one, name))
    # Passes of fewer images may round differently.
    assert_allclose(report.adversarial, report_of_one.adversarial, atol=1e-5)
    for one, other in zip(report.attacks, report_of_one.attacks, strict=True):
        assert_array_equal(one.robust, other.robust)
    assert (report.flags, report.curve) == (report_of_one.flags, report_of_one.curve)


@pytest.mark.slow
def test_two_processes_give_the_same_report(run: Path, report_of_one: EvaluationReport, tmp_path: Path) -> None:
    command = [*LAUNCH, *EVALUATE, str(run), *OPTIONS, "--out", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Robustness evaluation") == 1
    same(EvaluationReport.load(tmp_path), report_of_one)


@pytest.mark.slow
def test_workers_share_the_points_of_a_single_batch(run: Path, tmp_path: Path) -> None:
    options = ["--eps", "0.1", "--attacks", "apgd-t", "--attacks", "square", "--points", "25"]
    reports = []
    for workers in ("1", "2"):
        command = [
            sys.executable,
            *EVALUATE,
            str(run),
            *options,
            "--workers",
            workers,
            "--out",
            str(tmp_path / workers),
        ]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("Robustness evaluation") == 1
        reports.append(EvaluationReport.load(tmp_path / workers))
    same(reports[1], reports[0])
    # In another way than one process: what its pass has room for depends on how many points there are.
    one, two = ([attack.forward_calls for attack in report.attacks] for report in reports)
    assert one != two
    batches = sorted(path.name for path in (tmp_path / "2" / "state" / "batches").glob("*.pt"))
    assert batches == ["00-000000.pt", "01-000000.pt"]


@pytest.mark.slow
def test_ctrl_c_stops_all_workers_and_the_same_command_goes_on(
    run: Path, report_of_one: EvaluationReport, tmp_path: Path
) -> None:
    command = [sys.executable, *EVALUATE, str(run), *OPTIONS, "--workers", "2", "--out", str(tmp_path)]
    batches = tmp_path / "state" / "batches"
    with (tmp_path / "output").open("w") as output:
        # Processes started in the background inherit that Ctrl-C is ignored.
        heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
        starter = subprocess.Popen(command, stdout=output, stderr=output, preexec_fn=heard)  # noqa: PLW1509
        deadline = time.monotonic() + 90
        while not list(batches.glob("01-*.pt")) and time.monotonic() < deadline:
            assert starter.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.02)
        workers = Path(f"/proc/{starter.pid}/task/{starter.pid}/children").read_text().split()
        starter.send_signal(signal.SIGINT)
        assert starter.wait(timeout=60) == 130
    text = (tmp_path / "output").read_text()
    assert "to continue: art-robust evaluate" in text
    assert "--workers 2" in text
    assert "Traceback" not in text
    assert len(workers) == 2
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    same(EvaluationReport.load(tmp_path), report_of_one)


@pytest.mark.slow
def test_workers_end_with_the_command_that_started_them(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, *EVALUATE, str(run), *OPTIONS, "--workers", "2", "--out", str(tmp_path)]
    starter = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 90
    while not (tmp_path / "state").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    starter.kill()
    assert starter.stdout is not None
    starter.stdout.read()  # which ends when the first worker does: it holds the other end of the pipe
    starter.stdout.close()
    starter.wait()
    assert not (tmp_path / "report.json").exists()


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_then_goes_on(
    run: Path, report_of_one: EvaluationReport, tmp_path: Path
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
    same(EvaluationReport.load(tmp_path), report_of_one)


CERTIFYING = """
import os, sys
from pathlib import Path

import torch
from torch import nn

from art_robust_plugins import Evaluator, PyTorchLipschitzCertifier, ThreatModel
from art_robust_plugins.lipschitz.norms.linear import Linear

folder, rank = Path(sys.argv[1]), os.environ["RANK"]
prove = Linear.upper_bound


def note_and_prove(operator):
    with (folder / f"proofs-{rank}").open("a") as file:
        print(tuple(operator.weight.shape), file=file)
    return prove(operator)


Linear.upper_bound = note_and_prove
torch.manual_seed(0)
network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
certifier = PyTorchLipschitzCertifier(network, nn.CrossEntropyLoss(), (1, 4, 4), 3, clip_values=(0.0, 1.0))
x, y = torch.rand(12, 1, 4, 4), torch.arange(12) % 3
report = Evaluator(certifier, ThreatModel("L2", 0.01), attacks=["apgd-ce"]).evaluate(x.numpy(), y.numpy())
(folder / f"radii-{rank}").write_text(str(report.radii.tolist()))
"""


@pytest.mark.slow
def test_one_process_proves_the_norms_for_all(tmp_path: Path) -> None:
    script = tmp_path / "certifying.py"
    script.write_text(CERTIFYING)
    done = subprocess.run(
        [*LAUNCH, str(script), str(tmp_path)], check=False, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.glob("proofs-*")) == ["proofs-0"]
    radii = [(tmp_path / f"radii-{rank}").read_text() for rank in (0, 1)]
    assert radii[0] == radii[1]

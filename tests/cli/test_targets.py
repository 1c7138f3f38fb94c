"""Networks of a file or a package at the command line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from art_robust_plugins import EvaluationReport, evaluate
from art_robust_plugins.data import Dataset
from art_robust_plugins.files import save_tensors

FILE = """
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from neighbour import CLASSES


def build(width=64):
    return nn.Sequential(nn.Flatten(), nn.Linear(width, CLASSES))


def wrapped():
    return PyTorchClassifier(build(), nn.CrossEntropyLoss(), (1, 8, 8), CLASSES, clip_values=(0, 1))


class Colour(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Linear(3, 10)

    def forward(self, x):
        return self.last(x.mean(dim=(2, 3)))


instance = build()


def asks(width):
    return build(width)


def fails():
    raise RuntimeError("no such width")


def leaves():
    raise SystemExit("wrong options")


def nothing():
    return 3
"""


def find_path(text: str, suffix: str) -> Path:
    """The one path of that ending that a command printed on a line of its own."""
    (line,) = [line for line in text.splitlines() if line.endswith(suffix) and " " not in line]
    return Path(line)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "neighbour.py").write_text("CLASSES = 10\n")
    (tmp_path / "leaves.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "needs.py").write_text("import no_such_package\n")
    (tmp_path / "broken.py").write_text("import torch\n1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "neighbour", raising=False)
    return tmp_path


@pytest.fixture
def network(digits: Dataset) -> torch.nn.Module:
    """Each class's mean image: a linear network, better than chance."""
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    means = np.stack([digits.x_train[digits.y_train == label].mean(axis=0).ravel() for label in range(10)])
    with torch.no_grad():
        network[1].weight.copy_(torch.from_numpy(means))
        network[1].bias.copy_(torch.from_numpy(-(means**2).sum(axis=1) / 2))
    return network


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_a_file_with_weights_is_evaluated_as_in_python(  # type: ignore[no-untyped-def]
    run, folder: Path, network: torch.nn.Module, digits: Dataset, suffix: str
) -> None:
    path = folder / f"w{suffix}"
    save_tensors(path, network.state_dict()) if suffix != ".pt" else torch.save(network.state_dict(), path)
    arguments = ["--weights", path, "--data", "digits", "--points", 30]
    code, text = run("evaluate", "mine.py:build", *arguments, "--eps", "0.1", "--attacks", "apgd-ce")
    assert code == 0, text
    page = find_path(text, "report.html")
    assert page == Path("runs/build-w/evaluations/Linf-0.1-apgd-ce-30-digits/report.html")
    report = EvaluationReport.load(page.parent)
    own = evaluate(network, digits.x_test[:30], digits.y_test[:30], "Linf", 0.1, attacks="apgd-ce", verbose=False)
    np.testing.assert_array_equal(report.robust, own.robust)
    assert 0 < report.robust_accuracy < report.clean_accuracy

    code, text = run("certify", "mine.py:build", *arguments, "--eps", "0.05")
    assert code == 0, text
    told = json.loads(find_path(text, "certificate.json").read_text())
    assert told["clean_accuracy"] == report.clean_accuracy


def test_classifiers_instances_and_other_ranges(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    rest = ["--data", "digits", "--attacks", "apgd-ce", "--points", 5]
    for name in ("mine.py:wrapped", "mine.py:instance"):
        code, text = run("evaluate", name, *rest, "--eps", "1/255", "--out", folder / "out" / name[8:])
        assert code == 0, text
    scale = ["--bounds", "0,255", "--mean", "127.5", "--std", "64"]
    code, text = run("evaluate", "mine.py:build", *rest, *scale, "--eps", "8", "--out", folder / "scaled")
    assert code == 0, text
    report = EvaluationReport.load(folder / "scaled")
    assert report.settings["clip_values"] == [0, 255]
    (step,) = report.settings["preprocessing"]
    assert "mean=127.5, std=64.0" in step
    assert report.adversarial.max() > 16


def test_a_run_is_attacked_within_the_threat_of_its_training(run, trained_run: Path) -> None:  # type: ignore[no-untyped-def]
    code, text = run("evaluate", trained_run, "--attacks", "fgsm", "--points", 5)
    assert code == 0, text
    assert "Threat: Linf 0.1, that of the training." in text
    assert EvaluationReport.load(find_path(text, "report.html").parent).settings["threat"]["eps"] == 0.1


def test_robustbench(run, folder: Path) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 3, 8, 8), dtype=np.float32), np.arange(20) % 10
    np.savez(folder / "cifar10.npz", x_train=x, y_train=y, x_test=x[:4], y_test=y[:4])
    arguments = ["--data", "cifar10.npz", "--eps", "8/255", "--robustbench", "submission", "--title", "A paper"]
    code, text = run("evaluate", "mine.py:Colour", *arguments)
    assert code == 0, text
    told = json.loads((folder / "submission" / "Colour.json").read_text())
    assert (told["name"], told["dataset"], told["eps"]) == ("A paper", "cifar10", "8/255")
    assert torch.load(folder / "submission" / "Colour.pt", weights_only=True).shape == (4, 3, 8, 8)


BAD = [
    (["mine.py:build", "--eps", "0.1"], "--data: got none"),
    (["mine.py", "--eps", "0.1"], "RUN: got mine.py,"),
    (["other.py:build"], "RUN: there is no file other.py"),
    (["mine.py:biuld"], "no 'biuld' is in mine.py"),
    (["broken.py:build"], "ZeroDivisionError"),
    (["no.such.package:build"], "got no.such.package, which is no module"),
    (["mine.py:asks"], "needs width"),
    (["mine.py:fails"], "RuntimeError: no such width"),
    (["mine.py:leaves"], "SystemExit: wrong options"),
    (["leaves.py:build"], "SystemExit: 3"),
    (["./mine:build"], "got './mine',"),
    ([":build"], "RUN: got :build"),
    (["mine.py:build:"], "RUN: got mine.py:build:"),
    (["needs.py:build"], "which imports 'no_such_package'"),
    (["mine.py:nothing"], "got int,"),
    (["mine.py:build"], "--eps: got none, and no radius is known"),
    (["mine.py:build", "--weights", "pickled.pt"], "--weights: pickled.pt: got a pickle"),
    (["mine.py:build", "--weights", "absent.pt"], "--weights: absent.pt"),
    (["mine.py:build", "--weights", "mine.py"], "--weights: mine.py"),
    (["mine.py:build", "--weights", "nested.pt"], "it has one at 'state_dict'"),
    (["mine.py:build", "--weights", "parallel.pt"], "DataParallel"),
    (["mine.py:build", "--bounds", "0"], "--bounds: got 0,"),
    (["mine.py:build", "--mean", "a"], "--mean: got 'a',"),
    (["mine.py:build", "--mean", "0.5"], "std: got None"),
    (["mine.py:Colour"], "RUN: it fails on images"),
    (["mine.py:build", "--eps", "8"], "'8/255'?"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_gets_one_sentence(  # type: ignore[no-untyped-def]
    run, folder: Path, network: torch.nn.Module, arguments: list[str], sentence: str
) -> None:
    (folder / "pickled.pt").write_bytes(pickle.dumps(network.state_dict()))
    torch.save({"state_dict": network.state_dict()}, folder / "nested.pt")
    torch.save({f"module.{name}": value for name, value in network.state_dict().items()}, folder / "parallel.pt")
    data = [] if sentence.startswith("--data") else ["--data", "digits"]
    for command in ("evaluate", "certify"):
        code, text = run(command, *arguments, *data)
        if command == "certify" and "8/255" in sentence:  # in L2, eps 8 is that of every image
            sentence = "eps: got 8 "
        assert code == 2
        assert sentence in " ".join(text.split())
        assert "Traceback" not in text
    assert not (folder / "runs").exists()


def test_warnings_are_sentences(run, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # type: ignore[no-untyped-def]
    rest = ["--data", "digits", "--attacks", "fgsm", "--points", 40, "--out", folder / "out"]
    with pytest.warns(UserWarning, match="eps: got 0.03"):  # and of guessing, in the same terms as in Python
        assert run("evaluate", "mine.py:build", *rest, "--bounds", "0,255", "--eps", "8/255")[0] == 0
    labels = np.arange(1, 11)
    x = np.zeros((10, 1, 8, 8), dtype=np.float32)
    np.savez(folder / "from1.npz", x_train=x, y_train=labels, x_test=x, y_test=labels)
    command = ["train", "standard", "--data", "from1.npz", "--eps", "9", "--out", "t"]
    done = subprocess.run(
        [sys.executable, "-m", "art_robust_plugins", *command],
        check=False,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    first, last = done.stderr.splitlines()
    assert first.startswith("warning: from1.npz: y_train: got no image of class 0")
    assert last.startswith("error: --eps: got 9")

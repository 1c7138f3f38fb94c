"""The command line, as a user meets it: through its own process where processes matter."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from art_robust_plugins import (
    EvaluationReport,
    PyTorchLipschitzCertifier,
    PyTorchWeightMapClassifier,
    available_methods,
    cli,
    load_classifier,
    runs,
    weight_maps,
)
from art_robust_plugins.data import Dataset
from art_robust_plugins.files import load_tensors
from art_robust_plugins.lipschitz.rules import RULES
from art_robust_plugins.recipes import available_recipes
from art_robust_plugins.runs import TrainingPlan, train_run
from art_robust_plugins.training.processes import Processes, ProcessLostError

pytest.importorskip("pyautoattack")


def art_robust(
    *arguments: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str]:
    """The exit code and everything printed."""
    monkeypatch.setattr(sys, "argv", ["art-robust", *map(str, arguments)])
    code = 0
    try:
        cli.main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out + captured.err


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    def call(*arguments: object) -> tuple[int, str]:
        return art_robust(*arguments, monkeypatch=monkeypatch, capsys=capsys)

    return call


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "bang"
    command = [sys.executable, "-m", "art_robust_plugins", "train", "bang", "--epochs", "3", "--set", "ratio=0.5"]
    subprocess.run([*command, "--validation", "100", "--eps", "0.1", "--out", str(out)], check=True)
    return out


def test_methods_lists_sources_and_parameters(run) -> None:  # type: ignore[no-untyped-def]
    code, text = run("methods")
    assert code == 0
    assert "arXiv" in text
    assert "1612.00138" in text
    assert "epsilon=0.815" in text.replace("\n", "")


def test_help_teaches(run) -> None:  # type: ignore[no-untyped-def]
    code, text = run("--help")
    assert code == 0
    assert "art-robust demo --out runs/demo" in text
    for command in ("methods", "demo", "train", "evaluate", "certify", "export", "report", "benchmark"):
        assert command in text
        assert run(command, "--help")[0] == 0


def test_train_saves_a_working_estimator_with_its_record(trained: Path, digits: Dataset) -> None:
    classifier = load_classifier(trained)
    assert (classifier.predict(digits.x_test).argmax(axis=1) == digits.y_test).mean() > 0.8
    record = json.loads((trained / "classifier.json").read_text())["extra"]
    assert record["method"] == "bang"
    assert record["parameters"]["ratio"] == 0.5
    assert record["data"] == "digits"
    assert len(record["history"]) == 3
    assert record["history"][-1]["validation_robust_accuracy"] <= record["history"][-1]["validation_accuracy"]


def test_evaluate_and_report(run, trained: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for eps in ("0.05", "0.1"):
        arguments = ["--eps", eps, "--attacks", "fgsm", "--attacks", "apgd-ce", "--points", 30]
        code, text = run("evaluate", trained, *arguments)
        assert code == 0
        assert "apgd-ce" in text
    folders = sorted((trained / "evaluations").iterdir())
    assert [folder.name for folder in folders] == ["Linf-0.05-fgsm-apgd-ce-30", "Linf-0.1-fgsm-apgd-ce-30"]
    report = EvaluationReport.load(folders[1])
    assert len(report.robust) == 30
    assert (folders[1] / "report.html").exists()
    code, text = run("report", trained, "--out", tmp_path / "page")
    assert code == 0
    page = (tmp_path / "page" / "index.html").read_text()
    assert "bang, Linf-0.05-fgsm-apgd-ce-30" in page
    # Another number of points is another evaluation, and one that was stopped does not keep others from the page.
    assert run("evaluate", trained, "--eps", "0.1", "--attacks", "fgsm", "--points", 20)[0] == 0
    stopped = trained / "evaluations" / "Linf-0.2-standard-30"
    (stopped / "state").mkdir(parents=True)
    code, text = run("report", trained.parent, "--out", tmp_path / "page")
    assert code == 0
    assert f"{stopped}: left out, its evaluation is not finished." in text.replace("\n", "")
    assert "bang, Linf-0.1-fgsm-20" in (tmp_path / "page" / "index.html").read_text()
    code, text = run("report", tmp_path / "nothing")
    assert code == 2
    assert "RUNS: got no folder with a report" in text


def test_the_authors_autoattack_and_the_size_of_a_pass(run, trained: Path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("pyautoattack")
    arguments = ["--eps", "0.1", "--attacks", "apgd-ce", "--points", 12, "--batch-size", 5]
    assert run("evaluate", trained, *arguments, "--physical-batch-size", 3)[0] == 0
    assert run("evaluate", trained, *arguments, "--backend", "reference")[0] == 0
    evaluations = trained / "evaluations"
    ours, theirs = (
        EvaluationReport.load(evaluations / f"Linf-0.1-apgd-ce-12-batch5{end}") for end in ("", "-reference")
    )
    assert (ours.settings["backend"], ours.settings["physical_batch_size"]) == ("native", 3)
    assert theirs.settings["backend"] == "reference"
    assert (ours.robust == theirs.robust).all()


def test_the_comparison_marks_what_is_not_standard(run, trained: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["--attacks", "apgd-ce", "--points", 10, "--out", tmp_path]
    assert run("evaluate", trained, "--eps", "0.1", *arguments)[0] == 0
    report = EvaluationReport.load(tmp_path)
    quick = replace(report, settings={**report.settings, "fast": True})
    known = replace(report, settings={**report.settings, "reused": {"eps": 0.05, "points": 2}})
    for one, said in ((report, ""), (quick, "(fast, NOT standard)"), (known, "(in a sweep)")):
        cli._print_comparison({"run": one})
        text = capsys.readouterr().out
        assert ("(" in text) == bool(said)
        assert all(word in text for word in said.split())


def test_a_sweep_over_eps(run, trained: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    copied = tmp_path / "swept"
    shutil.copytree(trained, copied, ignore=shutil.ignore_patterns("evaluations"))
    code, text = run("evaluate", copied, "--eps", "0.1", "--eps", "0.05", "--attacks", "apgd-ce", "--points", 20)
    assert code == 0
    said = " ".join(text.split())
    assert said.index("Linf 0.05: 20 points") < said.index("Linf 0.1, in a sweep over eps: 20 points")
    (folder,) = (copied / "evaluations").iterdir()
    assert folder.name == "Linf-0.1-0.05-apgd-ce-20"
    small, large = (EvaluationReport.load(folder / eps) for eps in ("0.05", "0.1"))
    assert large.robust_accuracy <= small.robust_accuracy
    assert large.settings["reused"]["eps"] == 0.05
    assert "points broken within 0.05, not attacked again" in (folder / "index.md").read_text()
    (folder / "0.2").mkdir()
    (folder / "0.2" / "evaluation.pt").touch()
    code, text = run("report", copied, "--out", tmp_path / "page")
    assert code == 0
    assert f"{folder / '0.2'}: left out, its evaluation is not finished." in text.replace("\n", "")
    page = (tmp_path / "page" / "index.html").read_text()
    for eps in ("0.05", "0.1"):
        assert f"swept, Linf-0.1-0.05-apgd-ce-20/{eps}" in page


def test_the_gradients_of_another_run(run, trained: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    other = shutil.copytree(trained, tmp_path / "other", ignore=shutil.ignore_patterns("evaluations"))
    arguments = ["--eps", "0.1", "--attacks", "apgd-ce", "--points", 10, "--out", tmp_path / "out"]
    code, text = run("evaluate", trained, "--transfer", other, *arguments)
    assert code == 0
    assert "transfer-other" in text
    assert [attack.name for attack in EvaluationReport.load(tmp_path / "out").attacks] == ["apgd-ce", "transfer-other"]
    code, text = run("evaluate", trained, "--transfer", other, "--transfer", other, *arguments)
    assert code == 2
    assert "expected runs of different names" in " ".join(text.split())


def test_certify_and_a_report_with_certificates(run, trained: Path, digits: Dataset, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, text = run("certify", trained, "--eps", "0.05", "--eps", "8/255", "--points", 100)
    assert code == 0
    assert "layers.0" in text
    assert "cholesky" in text
    folder = trained / "certificates" / "L2-0.05-8_255-digits-100"
    told = json.loads((folder / "certificate.json").read_text())
    radii = load_tensors(folder / "radii.safetensors")
    certifier = PyTorchLipschitzCertifier.from_classifier(load_classifier(trained))
    prediction, radius = certifier.certify(digits.x_test[:100])
    np.testing.assert_allclose(radii["radius"].numpy(), radius, rtol=1e-9)
    assert np.array_equal(radii["prediction"].numpy(), prediction)
    correct = prediction == digits.y_test[:100]
    expected = [{"eps": eps, "accuracy": float((correct & (radius >= eps)).mean())} for eps in (0.05, 8 / 255)]
    assert told["certified_accuracy"] == expected
    assert told["clean_accuracy"] == correct.mean()
    assert told["largest_pair"] == certifier.lipschitz_constants().max()
    assert f"{expected[0]['accuracy']:.2%}" in text

    code, text = run("certify", trained, "--eps", "0.01", "--norm", "Linf", "--out", tmp_path / "linf")
    assert code == 0
    assert "which is loose" in " ".join(text.split())
    linf = load_tensors(tmp_path / "linf" / "radii.safetensors")["radius"]
    np.testing.assert_allclose(8 * linf[:100].numpy(), radius, rtol=1e-9)

    arguments = ["--norm", "L2", "--eps", "0.05", "--attacks", "apgd-ce", "--points", 30]
    assert run("evaluate", trained, *arguments)[0] == 0
    code, text = run("evaluate", trained, *arguments, "--certify")  # the attacks are taken from the first call's state
    assert code == 0
    assert "certified" in text
    report = EvaluationReport.load(trained / "evaluations" / "L2-0.05-apgd-ce-30")
    assert report.certified_accuracy == float((correct[:30] & (radius[:30] >= 0.05)).mean())
    assert run("evaluate", trained, *arguments)[0] == 0  # and kept, when the report is made again
    again = EvaluationReport.load(trained / "evaluations" / "L2-0.05-apgd-ce-30")
    assert again.certified_accuracy == report.certified_accuracy


def test_export(run, trained: Path, digits: Dataset, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, text = run("export", trained)
    assert code == 0
    assert f"Saved {trained / 'network.pt2'}: logits of 16 test images differ by" in " ".join(text.split())
    assert run("export", trained, "--format", "torchscript", "--out", tmp_path / "bang.pt")[0] == 0
    wanted = load_classifier(trained, device="cpu").predict(digits.x_test[:3])
    for network in (torch.export.load(trained / "network.pt2").module(), torch.jit.load(tmp_path / "bang.pt")):
        np.testing.assert_allclose(network(torch.from_numpy(digits.x_test[:3])).detach().numpy(), wanted, atol=1e-5)
    (trained / "network.pt2").unlink()


RECIPE = """
description = "one network"
data = "digits"
seeds = [0]
[network]
name = "small-cnn"
channels = 4
[training]
epochs = 40
[evaluation]
threats = ["Linf 0.1"]
attacks = ["apgd-ce"]
points = 4
[quick]
train = 64
[[rows]]
name = "plain"
method = "standard"
"""


def test_benchmark(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, text = run("benchmark", "--list")
    assert code == 0
    assert all(name in text for name in available_recipes())
    path = tmp_path / "own.toml"
    path.write_text(RECIPE.replace("epochs = 40", "epochs = 1"))
    kept = tmp_path / "kept.json"
    code, text = run("benchmark", path, "--out", tmp_path / "own", "--record", kept)
    assert code == 0
    assert "| training | seeds | clean | attacked, Linf 0.1 |" in text
    record = json.loads(kept.read_text())
    assert record == json.loads((tmp_path / "own" / "results.json").read_text())
    assert record["command"] == "art-robust benchmark own.toml"
    code, text = run("benchmark", path, "--quick", "--out", tmp_path / "quick")
    assert code == 0
    assert "these are no measurements" in text
    assert json.loads((tmp_path / "quick" / "results.json").read_text())["quick"]


def test_ctrl_c_in_a_benchmark_says_how_to_resume_and_it_works(tmp_path: Path) -> None:
    path, out = tmp_path / "own.toml", tmp_path / "out"
    path.write_text(RECIPE)
    command = [sys.executable, "-m", "art_robust_plugins", "benchmark", str(path), "--out", str(out)]
    stopped = interrupted(command, out / "plain" / "seed-0" / "training.pt")
    assert stopped.returncode == 130
    assert f"to continue: art-robust benchmark {path} --out {out}" in stopped.stderr
    assert not (out / "results.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    (result,) = json.loads((out / "results.json").read_text())["results"]
    assert len(json.loads((out / "plain" / "seed-0" / "classifier.json").read_text())["extra"]["history"]) == 40
    assert result["clean"] > 0.5


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


def test_the_engines_options_reach_the_training(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    reached = []

    class Recorded(cli.TrainingOptions):  # type: ignore[misc]
        def __post_init__(self) -> None:
            super().__post_init__()
            reached.append(self)

    monkeypatch.setattr(cli, "TrainingOptions", Recorded)
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


def test_a_network_without_a_bound_is_not_certified(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert run("train", "standard", "--model", "2c2f", "--epochs", 1, "--out", tmp_path / "run")[0] == 0
    assert run("certify", tmp_path / "run", "--eps", "0")[0] == 2
    code, text = run("certify", tmp_path / "run", "--eps", "0.1", "--points", 0)
    assert code == 2
    assert "--points: got 0, expected at least 1." in text
    rule = RULES.pop(torch.ops.aten.relu.default)
    try:
        code, text = run("certify", tmp_path / "run", "--eps", "0.1")
    finally:
        RULES[torch.ops.aten.relu.default] = rule
    assert code == 2
    assert "relu" in text
    assert "no Lipschitz rule" in " ".join(text.split())


def test_the_demo_compares_every_method(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, _ = run("demo", "--out", tmp_path, "--epochs", 2, "--points", 4)
    assert code == 0
    page = (tmp_path / "index.html").read_text()
    for name in available_methods():
        shown = name not in ("lipschitz-certifier", "weight-map-preprocessor")  # nothing to train
        assert (f">{name}<" in page) == shown, name
    assert "local-ball+layerwise" in page
    assert "<td>certified</td>" in page
    assert "AutoAttack" in page
    report = EvaluationReport.load(next((tmp_path / "bang" / "evaluations").iterdir()))
    names = [attack.name for attack in report.attacks]
    assert {"apgd-ce", "apgd-t", "fab-t", "square", "fgsm", "pgd-20"} <= set(names)
    assert report.autoattack_accuracy is not None
    code, text = run("demo", "--out", tmp_path, "--epochs", 3, "--points", 4)
    assert code == 2
    assert "holds a network of 2 epochs and seed 0, expected 3 and 0; take another folder." in text


BAD = [
    (["train", "bnag", "--out", "{new}"], "error: name: got 'bnag', expected one of"),
    (
        ["train", "lipschitz-certifier", "--out", "{new}"],
        "METHOD: 'lipschitz-certifier' is an ART estimator, expected a",
    ),
    (["train", "bang", "--data", "minst", "--out", "{new}"], "did you mean 'mnist'?"),
    (["train", "bang", "--model", "lenett", "--out", "{new}"], "did you mean 'lenet'?"),
    (["train", "bang", "--model", "lenet", "--out", "{new}"], "expected (C, H, W) of at least 16 x 16 pixels"),
    (["train", "bang", "--set", "beta", "--out", "{new}"], "error: --set: got 'beta', expected NAME=VALUE."),
    (["train", "bang", "--set", "bta=1", "--out", "{new}"], "bta: 'bang' has no such parameter; did you mean 'beta'?"),
    (["train", "bang", "--set", "beta=-1", "--out", "{new}"], "beta: got -1, expected a number that is not negative."),
    (["train", "bang", "--eps", "8/0", "--out", "{new}"], "error: eps: got '8/0', expected a positive number"),
    (["train", "bang", "--norm", "L2", "--out", "{new}"], "error: --norm: got L2 without --eps, expected both."),
    (["train", "bang", "--with", "bnag", "--out", "{new}"], "name: got 'bnag', expected one of 'bang', 'layerwise'"),
    (["train", "bang", "--with", "bang", "--with", "bang", "--out", "{new}"], "--with: got bang twice, expected it"),
    (
        ["train", "bang", "--set", "bang.beta=1", "--out", "{new}"],
        "--set: got bang.beta, expected a name of the method, or",
    ),
    (["train", "trades", "--out", "{new}"], "--eps: got none, which 'trades' trains against, expected a radius"),
    (["train", "bang", "--lr", "0", "--out", "{new}"], "error: --lr: got 0.0, expected a positive number."),
    (["train", "bang", "--optimizer", "adam", "--momentum", "0.5", "--out", "{new}"], "error: --momentum: got 0.5 for"),
    (["train", "bang", "--set", "threat=0.1", "--out", "{new}"], "error: --set: threat is no setting of 'bang'"),
    (
        ["train", "bang", "--set", 'layers={{"*": 3}}', "--out", "{new}"],
        "error: layers: got 3 for '*', expected a mapping",
    ),
    (["train", "bang", "--compile", "fast", "--out", "{new}"], "'fast' is not one of 'no', 'default'"),
    (["train", "bang", "--ema-decay", "1", "--out", "{new}"], "error: ema_decay: got 1.0, expected a number between 0"),
    (
        ["train", "bang", "--schedule", "linear", "--out", "{new}"],
        "'linear' is not one of 'constant'",
    ),
    (["train", "bang", "--schedule", "piecewise", "--out", "{new}"], "error: milestones: got () with schedule"),
    (["train", "bang", "--milestone", "3", "--out", "{new}"], "error: milestones: got [3.0] with schedule 'cosine', "),
    (
        ["train", "bang", "--schedule", "constant", "--warmup", "1", "--out", "{new}"],
        "error: warmup_epochs: got 1.0 with schedule 'constant', expected it with 'cosine'.",
    ),
    (
        ["train", "bang", "--clip", "0", "--out", "{new}"],
        "error: max_gradient_norm: got 0.0, expected a positive number",
    ),
    (["train", "bang", "--accumulate", "0", "--out", "{new}"], "error: accumulation_steps: got 0, expected a positive"),
    (["train", "bang", "--augment", "crop", "--out", "{new}"], "'crop' is not one of 'none', 'flip'"),
    (["train", "bang", "--keep-best", "--out", "{new}"], "error: --keep-best: got no --validation"),
    (["train", "bang", "--validation", "5000", "--out", "{new}"], "error: --validation: got 5000 of 1437"),
    (["train", "bang", "--out", "{trained}"], "holds a trained network already, expected another folder."),
    (["evaluate", "{new}", "--eps", "0.1"], "error: "),
    (["evaluate", "{trained}", "--eps", "0.1", "--attacks", "standrd"], "did you mean 'standard'?"),
    (["evaluate", "{trained}"], "Missing option"),
    (["certify", "{trained}"], "Missing option"),
    (["certify", "{trained}", "--eps", "big"], "error: eps: got 'big', expected a positive number"),
    (["certify", "{new}", "--eps", "0.1"], "error: "),
    (["train", "bang", "--model-set", "depth", "--out", "{new}"], "error: --model-set: got 'depth', expected NAME="),
    (["train", "bang", "--model-set", "depth=4", "--out", "{new}"], "depth: the network 'small-cnn' has no such"),
    (["train", "bang", "--model-set", "hiden=4", "--out", "{new}"], "did you mean 'hidden'?"),
    (["train", "bang", "--model-set", "input_shape=4", "--out", "{new}"], "error: --model-set: got input_shape, which"),
    (["evaluate", "{pickle}", "--eps", "0.1"], "weights.safetensors"),
    (["export", "{trained}", "--batch", "all"], "--batch: got 'all', expected a positive whole number or dynamic."),
    (["export", "{trained}", "--out", "{new}"], "expected a name that ends in .pt2 for torch-export."),
    (["export", "{trained}", "--format", "torchscript", "--batch", "4"], "batch: got 4 for torchscript"),
    (["export", "{pickle}"], "weights.safetensors"),
    (["benchmark"], "NAME: got none, expected one of cifar10, cifar10-lipschitz, digits, mnist, or a .toml file."),
    (["benchmark", "mnits"], "NAME: got 'mnits', expected one of mnist, digits, "),
    (["benchmark", "{new}/own.toml"], "own.toml: no such file, expected a recipe."),
    (["benchmark", "digits", "--quick", "--record", "{new}"], "--record: got it with --quick"),
    (["benchmark", "digits", "--out", "{trained}"], "holds other files, expected a new folder or one of this recipe."),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_gets_one_sentence(run, trained: Path, tmp_path: Path, arguments: list[str], sentence: str) -> None:  # type: ignore[no-untyped-def]
    broken = tmp_path / "pickle"
    broken.mkdir()
    (broken / "classifier.json").write_bytes((trained / "classifier.json").read_bytes())
    (broken / "weights.safetensors").write_bytes(pickle.dumps({"weights": [1, 2, 3]}))
    places = {"new": tmp_path / "new", "trained": trained, "pickle": broken}
    code, text = run(*[argument.format(**places) for argument in arguments])
    assert code == 2
    assert sentence in " ".join(text.split())
    assert "Traceback" not in text
    assert not (tmp_path / "new").exists()


def test_debug_shows_where_an_error_came_from(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="name: got 'bnag'"):
        run("--debug", "train", "bnag", "--out", tmp_path / "new")


def interrupted(
    command: list[str], until: Path, by: signal.Signals = signal.SIGINT
) -> subprocess.CompletedProcess[str]:
    """Start a command, send it Ctrl-C (or another signal) once a file is there, and collect what it says."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Processes started in the background inherit that Ctrl-C is ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 (no threads of ours yet)
    )
    deadline = time.monotonic() + 120
    while not until.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(by)
    output, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def test_what_a_launcher_ends_says_how_to_resume(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "art_robust_plugins",
        "train",
        "bang",
        "--epochs",
        "40",
        "--out",
        str(tmp_path / "run"),
    ]
    stopped = interrupted(command, tmp_path / "run" / "training.pt", signal.SIGTERM)
    assert stopped.returncode == 143
    advice = f"ended by SIGTERM; to continue: art-robust train bang --epochs 40 --out {tmp_path / 'run'} --resume"
    assert advice in stopped.stderr
    assert "Traceback" not in stopped.stderr


def test_one_process_where_several_were_asked_for_says_so(
    run,  # type: ignore[no-untyped-def]
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    code, text = run("methods")
    assert code == 0
    assert "note: accelerate launch started one process, as it does on CPUs" in text
    monkeypatch.setenv("RANK", "0")
    assert "note:" not in run("methods")[1]


BY_A_LAUNCHER = [
    ("MIXED_PRECISION", "fp16", "got 'fp16', expected 'no' or 'bf16'; --bf16 asks for the latter here as well."),
    ("GRADIENT_ACCUMULATION_STEPS", "4", "got '4', expected '1'; --accumulate cuts batches into parts here."),
    ("DYNAMO_BACKEND", "INDUCTOR", "got 'INDUCTOR', expected 'no'; --compile default goes through torch.compile here."),
    ("USE_FSDP", "true", "got 'true', expected 'false'; each process holds the whole network here."),
    ("USE_DEEPSPEED", "true", "got 'true', expected 'false'; each process holds the whole network here."),
]


@pytest.mark.parametrize(("name", "value", "sentence"), BY_A_LAUNCHER, ids=[name for name, *_ in BY_A_LAUNCHER])
def test_what_a_launcher_is_asked_for_and_training_lacks_is_refused(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    sentence: str,
) -> None:
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    code, text = run("train", "bang", "--out", tmp_path / "new")
    assert (code, text) == (2, f"error: ACCELERATE_{name}: {sentence}\n")
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_what_accelerate_launch_sets_by_itself_is_no_error(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    printed = tmp_path / "environment.py"
    printed.write_text("import json, os\nprint(json.dumps({k: v for k, v in os.environ.items() if 'ACCEL' in k}))")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", str(printed)]
    launched = subprocess.run(launch, check=True, capture_output=True, text=True)
    set_by_it = json.loads(launched.stdout.splitlines()[-1])
    assert {"ACCELERATE_MIXED_PRECISION", "ACCELERATE_DYNAMO_BACKEND"} <= set_by_it.keys()
    for name, value in set_by_it.items():
        monkeypatch.setenv(name, value)
    assert run("train", "standard", "--epochs", 1, "--out", tmp_path / "run")[0] == 0


@pytest.mark.parametrize("command", [["certify", "{run}", "--eps", "0.1"], ["export", "{run}"], ["report", "{run}"]])
def test_commands_that_share_nothing_refuse_several_processes(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: list[str],
) -> None:
    monkeypatch.setattr(cli, "processes_here", lambda: SimpleNamespace(num_processes=2, is_main_process=True))
    code, text = run(*(argument.format(run=tmp_path) for argument in command))
    assert code == 2
    assert text == f"error: {command[0]}: got several processes, expected one; start it without a launcher.\n"


@pytest.mark.parametrize("main", [True, False])
def test_one_process_shows_the_demo(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    main: bool,
) -> None:
    monkeypatch.setattr(cli, "processes_here", lambda: SimpleNamespace(num_processes=2, is_main_process=main))
    monkeypatch.setattr(cli, "available_methods", lambda: {"standard": available_methods()["standard"]})
    monkeypatch.setattr(cli, "DEMO_COMPOSITIONS", ())
    monkeypatch.setattr(cli, "train_run", lambda *_, **__: None)
    monkeypatch.setattr(cli, "evaluate_run", lambda *_, **__: [object()])
    monkeypatch.setattr(cli, "_print_comparison", lambda _: print("table"))
    monkeypatch.setattr(cli, "save_comparison", lambda _, out: out / "index.html")
    code, text = run("demo", "--out", tmp_path)
    assert code == 0
    assert ("table" in text, "in a browser" in text, text == "") == (main, main, not main)


def test_a_lost_process_at_the_end_of_a_run_is_told_of_as_such(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    digits: Dataset,
) -> None:
    class Two(Processes):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            super().__init__(*arguments, **settings)
            self.count = 2

    def lost(_: object) -> None:
        raise RuntimeError("Connection closed by peer\nand more")

    monkeypatch.setattr(runs, "Processes", Two)
    monkeypatch.setattr(torch.distributed, "all_reduce", lost)
    plan = TrainingPlan("standard", epochs=1, train=64)
    sentence = (
        "another process ended while the first one saved the trained network, or did not answer in time (Connection "
        f"closed by peer); start all of them again with resume (--resume), to save it from {tmp_path / 'training.pt'}."
    )
    with pytest.raises(ProcessLostError, match=f"^{re.escape(sentence)}$"):
        train_run(plan, digits, tmp_path, seed=0, verbose=False)


def test_ctrl_c_in_training_says_how_to_resume_and_it_works(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "art_robust_plugins", "train", "bang", "--epochs", "40"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stopped = interrupted([*command, "--out", str(parts)], parts / "training.pt")
    assert stopped.returncode == 130
    advice = stopped.stderr.split("to continue: art-robust ")[1].splitlines()[0]
    assert advice == f"train bang --epochs 40 --out {parts} --resume"
    assert not (parts / "classifier.json").exists()
    again = subprocess.run([*command, "--out", str(parts)], capture_output=True, text=True, check=False)
    assert again.returncode == 2
    assert "holds an earlier run" in again.stderr
    subprocess.run([*command, "--out", str(parts), "--resume"], check=True, capture_output=True)
    subprocess.run([*command, "--out", str(whole)], check=True, capture_output=True)
    one, two = load_classifier(whole).model.state_dict(), load_classifier(parts).model.state_dict()
    assert all(np.array_equal(one[name].numpy(), two[name].numpy()) for name in one)


def test_ctrl_c_in_the_demo_says_how_to_resume(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "art_robust_plugins", "demo", "--out", str(tmp_path / "demo")]
    stopped = interrupted(command, tmp_path / "demo" / "standard" / "training.pt")
    assert stopped.returncode == 130
    assert f"to continue: art-robust demo --out {tmp_path / 'demo'}" in stopped.stderr


def test_ctrl_c_in_an_evaluation_says_how_to_resume_and_it_works(trained: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "art_robust_plugins",
        "evaluate",
        str(trained),
        "--eps",
        "0.08",
        "--batch-size",
        "4",
    ]
    options = ["--points", "16", "--attacks", "apgd-ce", "--attacks", "fab-t"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    stopped = interrupted([*command, *options, "--out", str(parts)], parts / "state" / "evaluation.pt")
    assert stopped.returncode == 130
    assert f"to continue: art-robust evaluate {trained}" in stopped.stderr
    subprocess.run([*command, *options, "--out", str(parts)], check=True, capture_output=True)
    subprocess.run([*command, *options, "--out", str(whole)], check=True, capture_output=True)
    assert np.array_equal(EvaluationReport.load(whole).robust, EvaluationReport.load(parts).robust)


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
        (
            ("weight-map", "--weight-map", "unsharp"),
            "--weight-map: got unsharp for 'weight-map', expected --set kernel",
        ),
        (("weight-map", "--set", "kernel=blur"), "kernel: got 'blur', expected one of"),
        (("weight-map-preprocessor",), "METHOD: 'weight-map-preprocessor' is an ART Preprocessor, expected a Trainer."),
        (("lipschitz-certifier",), "METHOD: 'lipschitz-certifier' is an ART estimator, expected a Trainer."),
    ):
        code, text = run("train", *arguments, *epoch, "--out", tmp_path / "bad")
        assert code == 2
        assert sentence in text
        assert not (tmp_path / "bad").exists()


def test_radii_in_other_units_are_refused_by_every_command(run, trained: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for arguments in (
        ("train", "local-ball", "--eps", "8", "--out", tmp_path / "train"),
        ("train", "standard", "--eps", "8", "--validation", "50", "--out", tmp_path / "train"),
        ("evaluate", trained, "--eps", "0.1", "--eps", "8", "--out", tmp_path / "evaluate"),
        ("certify", trained, "--eps", "0.5", "--eps", "8", "--out", tmp_path / "certify"),
    ):
        code, text = run(*arguments)
        assert code == 2
        assert "eps: got 8 for inputs in [0, 1], expected less than" in text
    assert not any(tmp_path.iterdir())


def test_frozen_batch_normalisation_is_an_option(run, digits: Dataset, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    part = {"x_train": digits.x_train[:64], "y_train": digits.y_train[:64]}
    np.savez(tmp_path / "few.npz", **part, x_test=digits.x_test[:9], y_test=digits.y_test[:9])
    chosen = ["train", "standard", "--data", tmp_path / "few.npz", "--epochs", 1, "--freeze-batch-norm"]
    code, text = run(*chosen, "--out", tmp_path / "frozen")
    assert code == 2
    assert "freeze_batch_norm: got True for a network without batch normalisation" in text
    small = ["--model", "wide-resnet", "--model-set", "depth=10", "--model-set", "widen_factor=1"]
    code, text = run(*chosen, *small, "--out", tmp_path / "frozen")
    assert code == 0, text
    state = load_classifier(tmp_path / "frozen").model.state_dict()
    means = [tensor for name, tensor in state.items() if name.endswith("running_mean")]
    assert means
    assert not any(mean.any() for mean in means)

"""The command line, as a user meets it."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from art_robust_plugins import (
    EvaluationReport,
    PyTorchLipschitzCertifier,
    available_methods,
    load_classifier,
)
from art_robust_plugins.cli.app import COMMANDS
from art_robust_plugins.cli.showing import print_comparison
from art_robust_plugins.data import Dataset
from art_robust_plugins.evaluation.autoattack import standard
from art_robust_plugins.evaluation.autoattack.square import Square
from art_robust_plugins.evaluation.libraries import ALIASES, ATTACKS, SUITES, resolve
from art_robust_plugins.evaluation.rendering import conclude
from art_robust_plugins.experiments import demo
from art_robust_plugins.files import load_tensors
from art_robust_plugins.lipschitz.rules import RULES


def test_methods_are_listed_one_a_line_and_shown_in_full(run) -> None:  # type: ignore[no-untyped-def]
    code, text = run("methods")
    assert code == 0
    for name in available_methods():
        (line,) = [line for line in text.splitlines() if line.split(" ")[0] == name and "instrument" not in line][:1]
        assert line.startswith(f"{name} ")
        assert re.search(" (exact|reconstructed|baseline) ", line[:79])  # on a terminal of 80 columns too
    assert "1612.00138" in text
    code, text = run("methods", "bang")
    assert code == 0
    assert "epsilon = 0.815" in text
    assert "1612.00138" in text
    assert "--with bang" in text


def test_attacks_lists_every_suite_and_attack_with_its_norms(run) -> None:  # type: ignore[no-untyped-def]
    code, text = run("attacks")
    assert code == 0
    lines = {line.split("  ")[0]: line for line in text.splitlines()}
    assert {*SUITES, *ATTACKS, *ALIASES} <= lines.keys()
    assert "apgd-ce, apgd-t, fab-t, square" in text
    assert "L2" not in lines["fgsm"]
    assert "Linf L2 L1" in lines["square"]


@pytest.mark.parametrize("name", ["standard", "AA", "Square", "fab_t"])
def test_attacks_shows_one_by_any_of_its_names(run, name: str) -> None:  # type: ignore[no-untyped-def]
    code, text = run("attacks", name)
    assert code == 0
    assert [line.split("  ")[0] for line in text.splitlines()][1:] == [attack.name for attack in resolve(name)]
    code, text = run("attacks", "sqare")
    assert code == 2
    assert "NAME: got 'sqare'" in text
    assert "'square'" in text


def test_help_teaches(run) -> None:  # type: ignore[no-untyped-def]
    code, text = run("--help")
    assert code == 0
    assert "art-robust demo --out runs/demo" in text
    for command in COMMANDS:
        assert command in text
        assert run(command, "--help")[0] == 0


def test_an_evaluation_that_is_there_is_taken_up_and_said_so(run, trained_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for radii in (["--eps", "0.1"], ["--eps", "0.05", "--eps", "0.1"]):
        out = tmp_path / str(len(radii))
        command = ["evaluate", trained_run, *radii, "--attacks", "apgd-ce,apgd-t", "--points", 5, "--out", out]
        code, first = run(*command)
        assert code == 0
        assert "apgd-t" in first
        code, again = run(*command)
        assert code == 0
        assert f"{out}: an evaluation was begun here" in again.replace("\n", " ")
        code, quiet = run(*command, "--quiet")
        assert code == 0
        assert first.startswith(quiet)  # stdout: what came of it; progress is on stderr


def test_evaluate_and_report(run, trained_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for eps in ("0.05", "0.1"):
        arguments = ["--eps", eps, "--attacks", "fgsm", "--attacks", "apgd-ce", "--points", 30]
        code, text = run("evaluate", trained_run, *arguments)
        assert code == 0
        assert "apgd-ce" in text
    folders = sorted((trained_run / "evaluations").iterdir())
    assert [folder.name for folder in folders] == ["Linf-0.05-fgsm-apgd-ce-30", "Linf-0.1-fgsm-apgd-ce-30"]
    report = EvaluationReport.load(folders[1])
    assert len(report.robust) == 30
    assert (folders[1] / "report.html").exists()
    code, text = run("report", trained_run, "--out", tmp_path / "page")
    assert code == 0
    page = (tmp_path / "page" / "index.html").read_text()
    (folders[1] / "report.html").unlink()
    assert run("report", folders[1], "--pages", "--out", tmp_path / "page")[0] == 0
    assert "Linf, eps 0.1" in (folders[1] / "report.html").read_text()
    assert "bang, Linf-0.05-fgsm-apgd-ce-30" in page
    assert "different threat models" in text
    # Another number of points is another evaluation, and one that was stopped does not keep others from the page.
    assert run("evaluate", trained_run, "--eps", "0.1", "--attacks", "fgsm", "--points", 20)[0] == 0
    stopped = trained_run / "evaluations" / "Linf-0.2-standard-30"
    (stopped / "state").mkdir(parents=True)
    code, text = run("report", trained_run.parent, "--out", tmp_path / "page")
    assert code == 0
    assert f"{stopped}: left out, its evaluation is not finished." in text.replace("\n", "")
    assert "bang, Linf-0.1-fgsm-20" in (tmp_path / "page" / "index.html").read_text()
    (tmp_path / "empty").mkdir()
    code, text = run("report", tmp_path / "empty")
    assert code == 2
    assert "RUN: got no folder with a report" in text


@pytest.fixture
def reported(trained_run: Path, tmp_path: Path, run) -> Path:  # type: ignore[no-untyped-def]
    """A run with two reports."""
    place = tmp_path / "runs" / "bang"
    shutil.copytree(trained_run, place, ignore=shutil.ignore_patterns("evaluations"))
    for attack in ("fgsm", "noise"):
        assert run("evaluate", place, "--eps", "0.1", "--attacks", attack, "--points", 5)[0] == 0
    return place


@pytest.mark.parametrize("given", [".", "runs", "runs/bang", "runs/bang/evaluations"])
def test_reports_are_found_in_any_folder_above_and_linked_from_any_place(  # type: ignore[no-untyped-def]
    run, reported: Path, tmp_path: Path, monkeypatch, given: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if given == ".":
        monkeypatch.chdir(reported)
    out = tmp_path / "pages" / "of" / "all"
    code, text = run("report", given, given, "--out", out)
    assert code == 0
    assert "left out" not in text
    page = (out / "index.html").read_text()
    links = [link for link in re.findall(r'href="([^"]*)"', page) if not link.startswith("#")]
    assert len(links) == 2
    for link in links:
        assert (out / link).resolve().parent.parent == reported / "evaluations"
    assert ">bang, Linf-0.1-fgsm-5<" in page


def test_a_path_that_is_no_folder_is_not_taken_for_an_empty_one(run, trained_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "page"
    for given, said in ((tmp_path / "nothere", "not there"), (trained_run / "classifier.json", "a file")):
        code, text = run("report", trained_run, given, "--out", out)
        assert code == 2
        assert f"RUN: got {given}" in text
        assert said in text
    assert not out.exists()


def test_a_report_that_cannot_be_read_is_left_out_by_name(run, reported: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    broken, whole = sorted((reported / "evaluations").iterdir())
    (broken / "report.json").write_text("{}")
    (whole / "report.html").unlink()
    code, text = run("report", reported, "--out", tmp_path / "page")
    assert code == 0
    assert f"{broken}: left out, " in text
    assert "report.json: got" in text
    assert f"{whole} holds no report.html" in text  # so that its name has no link
    page = (tmp_path / "page" / "index.html").read_text()
    assert "noise" in page
    assert "fgsm" not in page
    code, text = run("report", broken, "--out", tmp_path / "none")
    assert code == 2
    assert f"error: {broken / 'report.json'}: got" in text


def test_attacked_images_as_files(run, trained_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    arguments = ["--eps", "0.1", "--eps", "0.2", "--attacks", "apgd-ce", "--points", 10, "--out", tmp_path, "--png"]
    code, text = run("evaluate", trained_run, *arguments)
    assert code == 0
    assert text.count("after rounding") == 2
    for eps in ("0.1", "0.2"):
        report = EvaluationReport.load(tmp_path / eps)
        assert report.broken.any()
        files = sorted(path.name for path in (tmp_path / eps / "images").iterdir())
        assert files == [f"{point:05}.png" for point in report.broken.nonzero()[0]]
        assert report.settings["eight_bit"]["broken"] == len(files)


def test_the_authors_autoattack_and_the_size_of_a_pass(run, trained_run: Path) -> None:  # type: ignore[no-untyped-def]
    pytest.importorskip("pyautoattack")
    arguments = ["--eps", "0.1", "--attacks", "apgd-ce", "--points", 12, "--batch-size", 5]
    assert run("evaluate", trained_run, *arguments, "--physical-batch-size", 3)[0] == 0
    assert run("evaluate", trained_run, *arguments, "--backend", "reference")[0] == 0
    evaluations = trained_run / "evaluations"
    ours, theirs = (
        EvaluationReport.load(evaluations / f"Linf-0.1-apgd-ce-12-batch5{end}") for end in ("", "-reference")
    )
    assert (ours.settings["backend"], ours.settings["physical_batch_size"]) == ("native", 3)
    assert theirs.settings["backend"] == "reference"
    assert (ours.robust == theirs.robust).all()


def test_the_comparison_marks_what_is_not_standard(run, trained_run: Path, tmp_path: Path, capsys) -> None:  # type: ignore[no-untyped-def]
    arguments = ["--attacks", "apgd-ce", "--points", 10, "--out", tmp_path]
    assert run("evaluate", trained_run, "--eps", "0.1", *arguments)[0] == 0
    report = EvaluationReport.load(tmp_path)
    quick = replace(report, settings={**report.settings, "fast": True})
    known = replace(report, settings={**report.settings, "reused": {"eps": 0.05, "points": 2}})
    for one, said in ((report, ""), (quick, "(fast, NOT standard)"), (known, "(in a sweep)")):
        print_comparison({"run": one})
        table = capsys.readouterr().out.partition("└")[0]
        assert ("(" in table) == bool(said)
        assert all(word in table for word in said.split())


def test_a_sweep_over_eps(run, trained_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    copied = tmp_path / "swept"
    shutil.copytree(trained_run, copied, ignore=shutil.ignore_patterns("evaluations"))
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


def test_the_gradients_of_another_run(run, trained_run: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    other = shutil.copytree(trained_run, tmp_path / "other", ignore=shutil.ignore_patterns("evaluations"))
    arguments = ["--eps", "0.1", "--attacks", "apgd-ce", "--points", 10, "--out", tmp_path / "out"]
    code, text = run("evaluate", trained_run, "--transfer", other, *arguments)
    assert code == 0
    assert "transfer-other" in text
    assert [attack.name for attack in EvaluationReport.load(tmp_path / "out").attacks] == ["apgd-ce", "transfer-other"]
    code, text = run("evaluate", trained_run, "--transfer", other, "--transfer", other, *arguments)
    assert code == 2
    assert "--transfer: got " in " ".join(text.split())


def test_certify_and_a_report_with_certificates(run, trained_run: Path, digits: Dataset, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, text = run("certify", trained_run, "--eps", "0.05", "--eps", "8/255", "--points", 100)
    assert code == 0
    assert "layers.0" in text
    assert "cholesky" in text
    folder = trained_run / "certificates" / "L2-0.05-8_255-digits-100"
    told = json.loads((folder / "certificate.json").read_text())
    radii = load_tensors(folder / "radii.safetensors")
    certifier = PyTorchLipschitzCertifier.from_classifier(load_classifier(trained_run))
    prediction, radius = certifier.certify(digits.x_test[:100])
    np.testing.assert_allclose(radii["radius"].numpy(), radius, rtol=1e-9)
    assert np.array_equal(radii["prediction"].numpy(), prediction)
    correct = prediction == digits.y_test[:100]
    expected = [{"eps": eps, "accuracy": float((correct & (radius >= eps)).mean())} for eps in (0.05, 8 / 255)]
    assert told["certified_accuracy"] == expected
    assert told["clean_accuracy"] == correct.mean()
    assert told["largest_pair"] == certifier.lipschitz_constants().max()
    assert f"{expected[0]['accuracy']:.2%}" in text

    code, text = run("certify", trained_run, "--eps", "0.01", "--norm", "Linf", "--out", tmp_path / "linf")
    assert code == 0
    assert "which is loose" in " ".join(text.split())
    linf = load_tensors(tmp_path / "linf" / "radii.safetensors")["radius"]
    np.testing.assert_allclose(8 * linf[:100].numpy(), radius, rtol=1e-9)

    arguments = ["--norm", "L2", "--eps", "0.05", "--attacks", "apgd-ce", "--points", 30]
    assert run("evaluate", trained_run, *arguments)[0] == 0
    code, text = run(
        "evaluate", trained_run, *arguments, "--certify"
    )  # the attacks are taken from the first call's state
    assert code == 0
    assert "certified" in text
    report = EvaluationReport.load(trained_run / "evaluations" / "L2-0.05-apgd-ce-30")
    assert report.certified_accuracy == float((correct[:30] & (radius[:30] >= 0.05)).mean())
    assert run("evaluate", trained_run, *arguments)[0] == 0  # and kept, when the report is made again
    again = EvaluationReport.load(trained_run / "evaluations" / "L2-0.05-apgd-ce-30")
    assert again.certified_accuracy == report.certified_accuracy


def test_export(run, trained_run: Path, digits: Dataset, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    code, text = run("export", trained_run)
    assert code == 0
    assert f"Saved {trained_run / 'network.pt2'}: logits of 16 test images differ by" in " ".join(text.split())
    assert run("export", trained_run, "--format", "torchscript", "--out", tmp_path / "bang.pt")[0] == 0
    wanted = load_classifier(trained_run, device="cpu").predict(digits.x_test[:3])
    for network in (torch.export.load(trained_run / "network.pt2").module(), torch.jit.load(tmp_path / "bang.pt")):
        np.testing.assert_allclose(network(torch.from_numpy(digits.x_test[:3])).detach().numpy(), wanted, atol=1e-5)
    (trained_run / "network.pt2").unlink()


def test_a_network_without_a_bound_is_not_certified(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    assert run("train", "standard", "--model", "2c2f", "--epochs", 1, "--out", tmp_path / "run")[0] == 0
    assert run("certify", tmp_path / "run", "--eps", "0")[0] == 2
    code, text = run("certify", tmp_path / "run", "--eps", "0.1", "--points", 0)
    assert code == 2
    assert "--points: got '0'," in text
    rule = RULES.pop(torch.ops.aten.relu.default)
    try:
        code, text = run("certify", tmp_path / "run", "--eps", "0.1")
    finally:
        RULES[torch.ops.aten.relu.default] = rule
    assert code == 2
    assert "relu" in text
    assert "no Lipschitz rule" in " ".join(text.split())


def test_the_demo_tells_what_is_missing_before_any_work(
    run,  # type: ignore[no-untyped-def]
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torchattacks" else object())
    code, text = run("demo", "--out", tmp_path / "demo")
    assert code == 2
    assert "torchattacks is not installed" in " ".join(text.split())
    assert not (tmp_path / "demo").exists()


def test_the_demo_compares_every_method(
    run,  # type: ignore[no-untyped-def]
    digits: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = replace(digits, x_train=digits.x_train[:256], y_train=digits.y_train[:256])
    monkeypatch.setattr(demo, "load_data", lambda _: few)
    monkeypatch.setattr(standard, "Square", partial(Square, queries=50))
    code, text = run("demo", "--out", tmp_path, "--epochs", 2, "--points", 3, "--workers", 1)
    assert code == 0
    page = (tmp_path / "index.html").read_text()
    for name in available_methods():
        shown = name not in ("lipschitz-certifier", "weight-map-preprocessor")  # nothing to train
        assert (f">{name}<" in page) == shown, name
    assert "local-ball+layerwise" in page
    assert ">certified</button>" in page
    assert "AutoAttack" in page
    assert 'href="bang/evaluations/' in page
    assert "bang, epoch 2: loss " in page
    reports = {path.parts[-4]: path for path in tmp_path.glob("*/evaluations/*/report.json")}
    said = conclude({name: EvaluationReport.load(path.parent) for name, path in reports.items()})
    assert said.split(" points", 1)[1].split(";")[0] in " ".join(text.split())
    report = EvaluationReport.load(next((tmp_path / "bang" / "evaluations").iterdir()))
    names = [attack.name for attack in report.attacks]
    assert {"apgd-ce", "apgd-t", "fab-t", "square", "fgsm", "pgd-20"} <= set(names)
    assert report.autoattack_accuracy is not None
    code, text = run("demo", "--out", tmp_path, "--epochs", 3, "--points", 3)
    assert code == 2
    assert "holds a network of 2 epochs and seed 0" in text

"""Reports: what they say, and that they survive being saved."""

from __future__ import annotations

import csv
import json
import pickle
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import Data
from numpy.testing import assert_array_equal
from torch import nn

from art_robust_plugins import PyTorchLipschitzCertifier, ThreatModel, WeightMapPreprocessor, save_classifier
from art_robust_plugins.evaluation import EvaluationReport, Evaluator, Flag, compare, save_comparison
from art_robust_plugins.evaluation.diagnostics.short_attacks import list_radii
from art_robust_plugins.evaluation.rendering.curves import draw_curves
from art_robust_plugins.evaluation.rendering.labels import certificate_text, interval, robust_label
from art_robust_plugins.evaluation.rendering.tables import class_note, class_rows, curve_rows
from art_robust_plugins.files import seal
from art_robust_plugins.threat import Norm, check_radius

from .builders import custom, step, strong, train_network, wrap


@pytest.fixture(scope="module")
def report(network: nn.Module, data: Data) -> EvaluationReport:
    attacks = [custom(step, name="one & only"), custom(lambda x, y, setting: 1 - x, name="far", constraint="none")]
    return Evaluator(wrap(network), ThreatModel("Linf", 0.1), attacks=attacks, verbose=False).evaluate(*data)


def test_a_saved_report_is_read_back(report: EvaluationReport, tmp_path: Path) -> None:
    page = report.save(tmp_path / "run")
    assert page == tmp_path / "run" / "report.html"
    assert {file.name for file in page.parent.iterdir()} == {
        "report.json",
        "report.md",
        "report.html",
        "arrays.safetensors",
        "verdicts.csv",
    }
    again = EvaluationReport.load(tmp_path / "run")
    assert str(again) == str(report)
    for name in ("clean_accuracy", "robust_accuracy", "flags", "settings", "curve"):
        assert getattr(again, name) == getattr(report, name)
    for name in ("robust", "correct", "labels"):
        assert_array_equal(getattr(again, name), getattr(report, name))
        assert getattr(again, name).dtype == getattr(report, name).dtype
    assert_array_equal(again.adversarial, report.adversarial)
    for one, other in zip(again.attacks, report.attacks, strict=True):
        assert_array_equal(one.robust, other.robust)
        assert {**vars(one), "robust": 0} == {**vars(other), "robust": 0}
    assert_array_equal(again.examples.clean, report.examples.clean)
    again.save(tmp_path / "run")
    assert EvaluationReport.load(tmp_path / "run").settings == report.settings
    for other in (page, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=rf"^folder: got {other}, "):
            EvaluationReport.load(other)


def test_a_file_in_the_place_of_a_folder_is_refused_by_every_save(
    report: EvaluationReport, network: nn.Module, tmp_path: Path
) -> None:
    (tmp_path / "api.py").write_text("here")
    for place in (tmp_path / "api.py", tmp_path / "api.py" / "below"):
        for save in (
            report.save,
            report.write_pages,
            lambda folder: save_comparison({"a": report}, folder),
            lambda folder: save_classifier(wrap(network), folder),
        ):
            with pytest.raises(ValueError, match=r"^folder: got .*api\.py"):
                save(place)
    assert (tmp_path / "api.py").read_text() == "here"


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("eps", [1e-300, 1e-30, 1e-12, 0.9])
def test_a_radius_is_refused_or_its_curve_is_read_back(
    report: EvaluationReport, tmp_path: Path, norm: Norm, eps: float
) -> None:
    size = report.adversarial[0].size
    if eps == 1e-300:
        with pytest.raises(ValueError, match=f"^eps: got {eps:g} "):
            check_radius(ThreatModel(norm, eps), 0.0, 1.0, size)
        return
    check_radius(ThreatModel(norm, eps), 0.0, 1.0, size)
    radii = list_radii(ThreatModel(norm, eps), size)
    whole = {"Linf": 1.0, "L2": size**0.5, "L1": float(size)}[norm]
    assert radii[0] == eps / 4
    assert radii[-1] == pytest.approx(whole) or whole / 2.5 <= radii[-1] <= whole
    assert all(after / before * (1 + 1e-9) >= 2 for before, after in pairwise(radii[:-1]))
    replace(report, curve=[(radius, 0.5) for radius in radii]).save(tmp_path)
    assert [radius for radius, _ in EvaluationReport.load(tmp_path).curve] == radii


def test_broken_and_foreign_files_are_refused(report: EvaluationReport, tmp_path: Path) -> None:
    def check_refusal(pattern: str) -> None:
        with pytest.raises(ValueError, match=pattern) as caught:
            EvaluationReport.load(tmp_path)
        assert "\n" not in str(caught.value)

    report.save(tmp_path)
    arrays, described = tmp_path / "arrays.safetensors", tmp_path / "report.json"
    good = arrays.read_bytes(), described.read_text()

    for earlier in ("report 1", "report 2"):
        described.write_text(good[1].replace("report 5", earlier))
        check_refusal(r"report\.json: got a report of an earlier version; evaluate again\.")
    described.write_text("{}")
    check_refusal(r"report\.json: got a file of another kind")
    described.write_text(good[1][:100])
    check_refusal(r"report\.json")
    data = json.loads(good[1])
    del data["settings"]
    described.write_text(json.dumps(seal(data)))
    check_refusal(r"report\.json: settings: got no such entry")
    described.write_text(good[1])
    arrays.write_bytes(good[0][:-10])
    check_refusal(r"arrays\.safetensors")
    arrays.write_bytes(pickle.dumps({"robust": 1}))
    check_refusal(r"arrays\.safetensors")
    arrays.write_bytes(good[0][:-1] + bytes([good[0][-1] ^ 1]))
    check_refusal(r"arrays\.safetensors: got arrays of another evaluation")


class Page(HTMLParser):
    """Checks that tags are closed, and collects what a browser would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_pages_need_nothing_else(report: EvaluationReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    pictures = 3 * len(report.examples.indices)
    single, comparison = (tmp_path / "report.html").read_text(), compare({"a": report, "<b>": report})
    for text, figures in ((single, pictures), (comparison, 0)):
        page = Page(text)
        assert page.open == []
        assert page.sources.pop(0) == "#content"
        assert len(page.sources) == figures
        assert all(source.startswith("data:image/png;base64,") for source in page.sources)
        rest = re.sub(r'src="data:[^"]*"', "", text)
        assert "://" not in rest
        assert "url(" not in rest
        assert "@import" not in rest
        assert "<b>" not in re.sub(r"<b>(?!,)[^<]*</b>", "", text)


def test_the_pages_state_settings_and_flags(report: EvaluationReport, tmp_path: Path) -> None:
    report.save(tmp_path)
    flagged = EvaluationReport(
        **{**vars(report), "settings": {**report.settings, "not_run": ["square <5: too small."]}}
    )
    flagged.save(tmp_path / "flagged")
    for name in ("report.md", "report.html"):
        # The data of images hold any short word.
        text = re.sub(r'src="data:[^"]*"', "", (tmp_path / name).read_text())
        for said in (
            "seed, logical batch size",
            "Linf, eps 0.1",
            "a test (own measure)",
            f"{report.clean_accuracy:.2%} (",
            "cpu, torch.float32",
            "torch 2.",
            "distances (in float64) of up to eps + 2.2e-07",
            "Own measure: the attack has no eps; its accuracy counts every image",
        ):
            assert said in text, said
        assert "Smallest change" not in text
    assert "square &lt;5: too small." in (tmp_path / "flagged" / "report.html").read_text()
    assert "- square <5: too small." in (tmp_path / "flagged" / "report.md").read_text()
    assert "one &amp; only" in (tmp_path / "report.html").read_text()
    assert "AutoAttack, " not in str(report)


def test_learned_preprocessing_keeps_its_gradients(network: nn.Module, data: Data) -> None:
    preprocessor = WeightMapPreprocessor((1, 8, 8), clip_values=(0, 1))
    kept = []
    for parameter in preprocessor.layer.parameters():
        parameter.requires_grad_(True).grad = torch.ones_like(parameter)
        kept.append(parameter.grad)
    classifier = wrap(network, preprocessing_defences=preprocessor)
    few = data[0][:6], data[1][:6]
    Evaluator(classifier, ThreatModel("Linf", 0.1), attacks=custom(step), verbose=False).evaluate(*few)
    for parameter, gradient in zip(preprocessor.layer.parameters(), kept, strict=True):
        assert parameter.requires_grad
        assert parameter.grad is gradient
        assert (gradient == 1).all()


def test_flags_stand_before_the_figures(network: nn.Module, data: Data, tmp_path: Path) -> None:
    far = custom(lambda x, y, setting: 1 - x)
    report = Evaluator(wrap(network), ThreatModel("Linf", 0.1), attacks=far, verbose=False).evaluate(*data)
    report.save(tmp_path)
    for name, later in (("report.html", "<figure"), ("report.md", "## Attacks")):
        text = (tmp_path / name).read_text()
        assert text.index("left-the-ball") < text.index(later)
    assert "severe: left-the-ball" in str(report)


def test_a_report_without_broken_points_or_images(data: Data, tmp_path: Path) -> None:
    flat = wrap(nn.Sequential(nn.Linear(64, 10)), input_shape=(64,))
    samples = data[0].reshape(-1, 64), data[1]
    for attack, reason in ((step, "the inputs are not images"), (lambda x, y, s: x, "no attack broke a point")):
        run = Evaluator(flat, ThreatModel("Linf", 0.5), attacks=custom(attack), verbose=False).evaluate(*samples)
        run.save(tmp_path)
        assert f"None to show: {reason}." in (tmp_path / "report.html").read_text()


def test_robust_cannot_exceed_clean(report: EvaluationReport) -> None:
    with pytest.raises(ValueError, match=r"robust_accuracy: got 0\.99 "):
        EvaluationReport(**{**vars(report), "robust_accuracy": 0.99})


def test_accuracies_of_classes_and_verdicts_of_points(report: EvaluationReport, data: Data, tmp_path: Path) -> None:
    labels = np.asarray(data[1])
    assert_array_equal(report.labels, labels)
    for each in report.by_class():
        of = labels == each.label
        assert (each.points, each.clean) == (of.sum(), report.correct[of].mean())
        assert each.robust == report.robust[of].mean()
    assert sum(each.points for each in report.by_class()) == len(labels)
    assert sum(each.points * each.robust for each in report.by_class()) == pytest.approx(report.robust.sum())

    report.save(tmp_path)
    with (tmp_path / "verdicts.csv").open(newline="") as file:
        head, *lines = csv.reader(file)
    assert head == ["point", "label", "clean", "one & only", "far", "worst case"]
    table = np.array(lines, dtype=int)
    columns = [np.arange(len(labels)), labels, report.correct, *(a.robust for a in report.attacks), report.robust]
    assert_array_equal(table, np.stack(columns, axis=1))
    text = re.sub(r'src="data:[^"]*"', "", (tmp_path / "report.html").read_text())
    worst = min(report.by_class(), key=lambda each: each.robust)
    cells = "".join(
        f'<td class="n">{value}</td>' for value in (worst.points, f"{worst.clean:.1%}", f"{worst.robust:.1%}")
    )
    assert f'<th scope="row">{worst.label}</th>{cells}' in text


def test_of_many_classes_the_weakest_are_shown(report: EvaluationReport) -> None:
    points = len(report.labels)
    many = EvaluationReport(**{**vars(report), "labels": np.arange(points)})
    rows = class_rows(many)
    assert len(rows) == 20
    assert [row[3] for row in rows] == ["0.0%"] * min(20, int((~report.robust).sum())) + ["100.0%"] * max(
        0, 20 - int((~report.robust).sum())
    )
    assert class_note(many).startswith(f"The 20 of {points} labels with the lowest robust accuracy.")


ROBUSTBENCH_FIELDS = {
    "link": str,
    "name": str,
    "authors": str,
    "additional_data": bool,
    "number_forward_passes": int,
    "dataset": str,
    "venue": str,
    "architecture": str,
    "eps": str,
    "clean_acc": str,
    "reported": str,
    "autoattack_acc": str,
    "unreliable": bool,
}
"""RobustBench's model_info files, as of 2026-11."""
SUBMISSION = {"name": "A Paper", "authors": "A. Author, B. Author", "dataset": "cifar10", "architecture": "CNN"}


class Turned(nn.Module):
    """Images [N, H, W, C] as [N, C, H, W]."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.movedim(-1, 1)


@pytest.fixture(scope="module")
def standard(network: nn.Module, data: Data) -> EvaluationReport:
    pytest.importorskip("pyautoattack")
    gray = Evaluator(wrap(network), ThreatModel("Linf", "8/255"), verbose=False).evaluate(data[0][:8], data[1][:8])
    # RobustBench's images have colours.
    settings = {**gray.settings, "input_shape": [3, 8, 8]}
    return replace(gray, settings=settings, adversarial=gray.adversarial.repeat(3, axis=1))


def test_a_submission_to_robustbench(standard: EvaluationReport, tmp_path: Path) -> None:
    path = standard.to_robustbench(tmp_path, **SUBMISSION, model_id="Author2026Paper", footnote="Ours.", reported=50)
    assert path == tmp_path / "Author2026Paper.json"
    written = json.loads(path.read_text())
    assert {key: type(value) for key, value in written.items()} == {**ROBUSTBENCH_FIELDS, "footnote": str}
    assert written["eps"] == "8/255"
    assert written["autoattack_acc"] == f"{100 * standard.robust_accuracy:.2f}"
    assert written["clean_acc"] == f"{100 * standard.clean_accuracy:.2f}"
    assert written["reported"] == "50.00"
    assert written["footnote"] == "Ours. Evaluated on 8 of 10000 points."
    assert written["unreliable"] == any(flag.severity == "severe" for flag in standard.flags)
    images = torch.load(tmp_path / "Author2026Paper.pt", weights_only=True)
    assert images.dtype == torch.float32
    assert_array_equal(images.numpy(), standard.adversarial)
    assert standard.to_robustbench(tmp_path, **SUBMISSION) == tmp_path / "Sequential.json"

    severe = EvaluationReport(**{**vars(standard), "flags": [Flag("sign", "severe", "Seen.", "Look.")]})
    assert json.loads(severe.to_robustbench(tmp_path, **SUBMISSION).read_text())["unreliable"] is True


def test_a_submission_is_in_units_of_0_to_1(standard: EvaluationReport, tmp_path: Path) -> None:
    settings = {**standard.settings, "clip_values": [-1.0, 3.0], "threat": {"norm": "L2", "eps": 2.0, "text": "L2 2"}}
    other = EvaluationReport(**{**vars(standard), "settings": settings, "adversarial": standard.adversarial * 4 - 1})
    assert json.loads(other.to_robustbench(tmp_path, **SUBMISSION).read_text())["eps"] == "0.5"
    images = torch.load(tmp_path / "Sequential.pt", weights_only=True)
    np.testing.assert_allclose(images.numpy(), standard.adversarial, atol=1e-6)


def test_a_submission_has_channels_first(standard: EvaluationReport, tmp_path: Path) -> None:
    settings = {**standard.settings, "input_shape": [8, 8, 3], "channels_first": False}
    last = replace(standard, settings=settings, adversarial=np.moveaxis(standard.adversarial, 1, -1))
    last.to_robustbench(tmp_path, **SUBMISSION)
    assert_array_equal(torch.load(tmp_path / "Sequential.pt", weights_only=True).numpy(), standard.adversarial)


def test_settings_tell_the_order_of_axes(network: nn.Module, data: Data, report: EvaluationReport) -> None:
    classifier = wrap(nn.Sequential(Turned(), network), input_shape=(8, 8, 1), channels_first=False)
    samples = np.moveaxis(data[0][:8], 1, -1), data[1][:8]
    last = Evaluator(classifier, ThreatModel("Linf", 0.1), attacks=custom(step), verbose=False).evaluate(*samples)
    assert (last.settings["channels_first"], report.settings["channels_first"]) == (False, True)


def test_what_is_no_submission(report: EvaluationReport, standard: EvaluationReport, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="report: "):
        report.to_robustbench(tmp_path, **SUBMISSION)
    with pytest.raises(ValueError, match="dataset: got 'mnist',"):
        standard.to_robustbench(tmp_path, **{**SUBMISSION, "dataset": "mnist"})
    with pytest.raises(ValueError, match=r"model_id: got '\.\./x',"):
        standard.to_robustbench(tmp_path, **SUBMISSION, model_id="../x")
    with pytest.raises(ValueError, match=r"dataset: got 'cifar100' for 10 classes"):
        standard.to_robustbench(tmp_path, **{**SUBMISSION, "dataset": "cifar100"})
    gray = replace(standard, settings={**standard.settings, "input_shape": [1, 8, 8]})
    with pytest.raises(ValueError, match=r"inputs of shape \(1, 8, 8\)"):
        gray.to_robustbench(tmp_path, **SUBMISSION)
    swept = replace(standard, settings={**standard.settings, "reused": {"eps": 0.01, "points": 2}})
    with pytest.raises(ValueError, match=r"report: .*sweep"):
        swept.to_robustbench(tmp_path, **SUBMISSION)
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_names_what_differs(report: EvaluationReport, data: Data, tmp_path: Path) -> None:
    other = wrap(train_network(steps=40))
    weaker = Evaluator(other, ThreatModel("Linf", 0.05), attacks=custom(step), verbose=False).evaluate(*data)
    page = save_comparison({"trained": report, "a | b": weaker}, tmp_path)
    assert page == tmp_path / "index.html"
    text = (tmp_path / "index.md").read_text()
    assert "The runs have different threat models, attacks: compare them with care." in text
    assert "| far (own measure) |" in text
    assert "not run" in text
    assert "a \\| b" in text
    assert "compare them with care" not in compare({"one": report, "two": report})


def test_a_sweeps_reuse_is_said(standard: EvaluationReport) -> None:
    swept = replace(standard, settings={**standard.settings, "reused": {"eps": 0.01, "points": 2}})
    said = "  known from a smaller eps: 2 points broken within 0.01, not attacked again"
    assert said in str(swept).splitlines()
    assert str(swept).startswith("AutoAttack, Linf 8/255, in a sweep over eps: 8 points")
    assert robust_label(swept).endswith("AutoAttack (standard), with points known from a smaller eps")
    for text in (str(standard), robust_label(standard), compare({"a": standard, "b": standard})):
        assert "in a sweep" not in text
    assert "(in a sweep)" in compare({"a": swept, "b": swept})
    assert "The runs have different points known from a smaller eps:" in compare({"fresh": standard, "swept": swept})


def test_a_comparison_marks_fast_runs(report: EvaluationReport) -> None:
    quick = replace(report, settings={**report.settings, "fast": True})
    assert "fast, NOT standard" in compare({"a": report, "b": quick})
    assert "fast, NOT standard" not in compare({"a": report, "b": report})


def test_runs_in_other_units_get_a_figure_of_their_own(report: EvaluationReport, data: Data) -> None:
    other = Evaluator(wrap(train_network(steps=40)), ThreatModel("L2", 0.5), attacks=custom(step), verbose=False)
    fewer = other.evaluate(data[0][:30], data[1][:30])
    text = compare({"a": report, "b": fewer, "c": report})
    assert text.count('aria-label="Lines: accuracy of ') == 2
    assert "<h3>Linf, inputs in [0.0, 1.0]</h3>" in text
    assert "on the first 30 to 40 points" in text


def test_the_confidence_interval(report: EvaluationReport) -> None:
    # Wilson's for 81 of 263, as in Newcombe (1998): 0.2553 to 0.3662.
    few = EvaluationReport(**{**vars(report), "settings": {**report.settings, "points": 263}})
    assert interval(few, 81 / 263) == "25.5% to 36.6%"
    assert interval(few, 0.0).startswith("0.0% to ")
    assert interval(few, 1.0).endswith(" to 100.0%")
    assert f"95 % confidence: {interval(report, report.robust_accuracy)}" in str(report)


def test_examples_are_broken_points(report: EvaluationReport, data: Data) -> None:
    examples = report.examples
    assert 0 < len(examples.indices) <= 8
    assert not report.robust[examples.indices].any()
    assert_array_equal(examples.labels, data[1][examples.indices])
    assert (examples.predictions != examples.labels).all()
    assert np.abs(examples.adversarial - examples.clean).max() <= 0.1 + 1e-6


@pytest.fixture(scope="module")
def certified_report(network: nn.Module, data: Data) -> EvaluationReport:
    certifier = PyTorchLipschitzCertifier.from_classifier(wrap(network))
    attacks = [custom(step, name="one step")]
    return Evaluator(certifier, ThreatModel("L2", 0.02), attacks=attacks, verbose=False).evaluate(*data)


def test_certified_radii_join_the_report(certified_report: EvaluationReport, network: nn.Module, data: Data) -> None:
    certifier = PyTorchLipschitzCertifier.from_classifier(wrap(network))
    prediction, radius = certifier.certify(data[0])
    correct = prediction == data[1]
    assert certified_report.radii is not None
    assert_array_equal(certified_report.radii[~correct], -1.0)
    np.testing.assert_allclose(certified_report.radii[correct], radius[correct], rtol=1e-9)
    assert certified_report.certified_at(0) == certified_report.clean_accuracy
    assert certified_report.certified_accuracy == (correct & (radius >= 0.02)).mean()
    assert (
        0 < certified_report.certified_accuracy <= certified_report.robust_accuracy <= certified_report.clean_accuracy
    )
    assert certified_report.settings["certificate"]["largest constant of a difference of logits (L2)"] == (
        certifier.lipschitz_constants().max()
    )
    assert not any(flag.name == "certificate-broken" for flag in certified_report.flags)


def test_radii_are_in_the_threats_norm(network: nn.Module, data: Data) -> None:
    certifier = PyTorchLipschitzCertifier.from_classifier(wrap(network))
    reports = {
        norm: Evaluator(
            certifier, ThreatModel(norm, 0.01), attacks=[custom(lambda x, y, setting: x)], verbose=False
        ).evaluate(*data)
        for norm in ("L2", "L1", "Linf")
    }
    radii = {norm: report.radii for norm, report in reports.items()}
    standing = radii["L2"] >= 0
    assert_array_equal(radii["L1"], radii["L2"])
    np.testing.assert_allclose(radii["Linf"][standing] * 8, radii["L2"][standing])
    assert "which is loose" in certificate_text(reports["Linf"])
    assert "loose" not in certificate_text(reports["L2"])


def test_a_report_with_certificates_is_read_back_and_shown(
    certified_report: EvaluationReport, report: EvaluationReport, tmp_path: Path
) -> None:
    certified_report.save(tmp_path)
    again = EvaluationReport.load(tmp_path)
    assert_array_equal(again.radii, certified_report.radii)
    assert again.certified_accuracy == certified_report.certified_accuracy
    shown = f"{certified_report.certified_accuracy:.2%}"
    assert re.search(rf"certified +{shown}", str(again))
    for name in ("report.md", "report.html"):
        text = re.sub(r'src="data:[^"]*"', "", (tmp_path / name).read_text())
        assert shown in text
        assert "Lipschitz bound, proven" in text
        assert "Dashed: the certified accuracy" in text
    head, rows = curve_rows(again)
    assert head[-1] == "certified"
    assert [row[-1] for row in rows] == [
        f"{certified_report.certified_at(eps):.1%}" for eps, _ in certified_report.curve
    ]
    drawing = draw_curves({"a": again}, {"a": 0}).drawing
    said = re.findall(r'aria-label="a, certified at eps ([^:]*): ([^%]*)%"', drawing)
    assert len(said) > 3
    shares = [float(share) for _, share in said]
    assert_array_equal(np.diff(shares) <= 0, True)
    expected = [100 * certified_report.certified_at(float(eps) * (1 - 1e-3)) for eps, _ in said]
    np.testing.assert_allclose(shares, expected, atol=0.06 + 100 / len(certified_report.labels))
    text = compare({"with": certified_report, "without": report})
    median = f"L2 {np.median(certified_report.radii.clip(0)):.2g}"
    assert f'data-text="{median}" data-value=' in text
    assert 'data-text="not certified">' in text
    assert "median certified radius" not in compare({"without": report})
    page = Page(text)
    assert page.open == []
    assert report.certified_accuracy is None
    with pytest.raises(ValueError, match="certified radii"):
        report.certified_at(0.1)


def test_a_broken_certificate_is_a_severe_flag(network: nn.Module, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that is wrong by far, as one from a user's own wrong rule may be, does not pass unnoticed."""
    certifier = PyTorchLipschitzCertifier.from_classifier(wrap(network))
    honest = certifier.certify_as_computed

    def flattering(*arguments: Any, **options: Any) -> Any:
        prediction, *radii = honest(*arguments, **options)
        return prediction, *(100 * radius for radius in radii)

    monkeypatch.setattr(certifier, "certify_as_computed", flattering)
    result = Evaluator(certifier, ThreatModel("L2", 1.0), attacks=[custom(strong)], verbose=False).evaluate(*data)
    assert result.robust_accuracy < 0.5
    (flag,) = [flag for flag in result.flags if flag.name == "certificate-broken"]
    assert flag.severity == "severe"
    broken = int(((result.radii >= 1.0) & ~result.robust).sum())
    assert f"{broken} points were misclassified within their certified radius" in flag.evidence

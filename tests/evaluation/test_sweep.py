"""Sweeps over eps: what is carried over, and that nothing is attacked again."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import Data
from numpy.testing import assert_array_equal
from torch import nn

from art_robust_plugins import PyTorchLipschitzCertifier, ThreatModel
from art_robust_plugins.evaluation import EvaluationReport, Evaluator, Flag, compare, sweep
from art_robust_plugins.evaluation.sweep import merge_reports

from .builders import train_network, wrap

pytest.importorskip("pyautoattack")
RADII = (0.02, 0.05, 0.1)
STAGES = ("apgd-ce", "apgd-t")


@pytest.fixture(scope="module")
def reports(network: nn.Module, data: Data) -> dict[float, EvaluationReport]:
    return sweep(wrap(network), "Linf", ["0.1", 0.02, 0.05], *data, attacks=STAGES, verbose=False)


def test_a_point_that_a_smaller_eps_broke_stays_broken(
    reports: dict[float, EvaluationReport], network: nn.Module, data: Data
) -> None:
    assert tuple(reports) == RADII
    x, y = (torch.from_numpy(values) for values in data)
    before = np.ones(len(y), dtype=bool)
    for eps, report in reports.items():
        assert report.settings["threat"]["eps"] == eps
        assert report.settings["points"] == len(y) == len(report.robust)
        assert not (report.robust & ~before).any()
        for result in report.attacks:
            assert result.robust_accuracy == result.robust.mean()
            assert not (result.robust & ~before).any()
        assert_array_equal(report.attacks[-1].robust, report.robust)
        # The adversarial images are proof: within this eps, and misclassified.
        adversarial = torch.from_numpy(report.adversarial)
        assert ThreatModel("Linf", eps).distance(adversarial, x).max() <= eps + 1e-6
        assert_array_equal((network(adversarial).argmax(dim=1) == y).numpy(), report.robust)
        for index, clean in zip(report.examples.indices, report.examples.clean, strict=True):
            assert_array_equal(clean, data[0][index])
        before = report.robust
    assert reports[0.02].robust_accuracy > reports[0.1].robust_accuracy


def test_only_points_that_are_left_are_attacked(
    reports: dict[float, EvaluationReport], network: nn.Module, data: Data
) -> None:
    first, second, third = reports.values()
    alone = Evaluator(wrap(network), ThreatModel("Linf", 0.02), attacks=STAGES, verbose=False).evaluate(*data)
    assert_array_equal(first.robust, alone.robust)
    assert "reused" not in first.settings
    assert second.settings["reused"] == {"eps": 0.02, "points": int((first.correct & ~first.robust).sum())}
    assert third.settings["reused"]["eps"] == 0.05
    left = wrap(network), data[0][first.robust], data[1][first.robust]
    again = Evaluator(left[0], ThreatModel("Linf", 0.05), attacks=STAGES, verbose=False).evaluate(*left[1:])
    assert_array_equal(second.robust[first.robust], again.robust)
    assert [a.forward_calls for a in second.attacks] == [a.forward_calls for a in again.attacks]
    broken = second.settings["reused"]["points"]
    assert f"{broken} points broken within 0.02, not attacked again" in compare({"a": first, "b": second})


def test_progress_says_of_how_many_points(network: nn.Module, data: Data, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = sweep(wrap(network), "Linf", [0.02, 0.05], *data, attacks="apgd-ce", verbose=True).values()
    shown = re.findall(r"apgd-ce: accuracy ([\d.]+)% of (\d+) points", capsys.readouterr().err)
    left = int(first.robust.sum())
    assert 0 < left < len(first.robust)
    assert [int(points) for _, points in shown] == [len(first.robust), left]
    assert [float(share) for share, _ in shown] == pytest.approx(
        [100 * first.robust_accuracy, 100 * second.robust.sum() / left], abs=0.006
    )


def test_nothing_runs_when_every_point_is_broken(network: nn.Module, data: Data) -> None:
    few = data[0][:6], data[1][:6]
    weak = wrap(train_network(steps=5))
    *_, whole, larger = sweep(weak, "Linf", [0.01, 0.4, 0.5], *few, attacks="apgd-ce", verbose=False).values()
    assert whole.robust_accuracy == larger.robust_accuracy == 0
    assert larger.settings["threat"] == {"norm": "Linf", "eps": 0.5, "text": "Linf 0.5"}
    assert [attack.forward_calls for attack in larger.attacks] == [0]
    assert larger.settings["reused"]["points"] == int(whole.correct.sum())


def test_certified_stays_below_robust(network: nn.Module, data: Data, tmp_path: Path) -> None:
    certifier = PyTorchLipschitzCertifier.from_classifier(wrap(network))
    few = data[0][:12], data[1][:12]
    found = sweep(certifier, "L2", [0.01, 0.3], *few, attacks="apgd-ce", verbose=False)
    for eps, report in found.items():
        assert report.certified_accuracy == (report.radii >= eps).mean() <= report.robust_accuracy
        report.save(tmp_path)
        assert_array_equal(EvaluationReport.load(tmp_path).robust, report.robust)


def test_a_sweep_goes_on_where_it_was(network: nn.Module, data: Data, tmp_path: Path) -> None:
    few, arguments = (data[0][:8], data[1][:8]), {"attacks": "apgd-ce", "state_dir": tmp_path, "verbose": False}
    first = sweep(wrap(network), "Linf", [0.02], *few, **arguments)
    both = sweep(wrap(network), "Linf", [0.02, 0.05], *few, **arguments)
    assert [a.seconds for a in both[0.02].attacks] == [a.seconds for a in first[0.02].attacks]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.02", "0.05", "sweep.json"]
    sweep(wrap(network), "Linf", [0.02], *few, **arguments)
    for radii in ([0.01, 0.02, 0.05], [0.02, 0.03], [0.05]):
        with pytest.raises(ValueError, match=r"^state_dir: .* Linf 0\.02, Linf 0\.05, "):
            sweep(wrap(network), "Linf", radii, *few, **arguments)


def test_tensors_with_gradients_are_swept(network: nn.Module, data: Data) -> None:
    x, y = (torch.from_numpy(values[:6]) for values in data)
    arguments = {"attacks": "apgd-ce", "verbose": False}
    ours = sweep(wrap(network), "Linf", [0.02, 0.05], x.requires_grad_(), y, **arguments)
    arrays = sweep(wrap(network), "Linf", [0.02, 0.05], data[0][:6], data[1][:6], **arguments)
    assert_array_equal(ours[0.05].robust, arrays[0.05].robust)


def test_flags_and_the_curve_of_earlier_radii_are_kept(reports: dict[float, EvaluationReport]) -> None:
    first, second, _ = reports.values()
    assert second.curve == first.curve
    assert second.settings["diagnostics"] == first.settings["diagnostics"]
    left = first.robust.nonzero()[0]
    seen, other = Flag("seen", "severe", "Once.", "Look."), Flag("other", "warning", "Twice.", "Look.")
    after = replace(
        first,
        attacks=[],
        details=None,
        flags=[other],
        robust=first.robust[left],
        adversarial=first.adversarial[left],
        examples=replace(first.examples, indices=first.examples.indices[:0]),
    )
    assert merge_reports(replace(first, flags=[seen]), after, left).flags == [seen, other]


def test_what_cannot_be_swept(network: nn.Module, data: Data) -> None:
    classifier = wrap(network)
    with pytest.raises(ValueError, match=r"attacks: got fgsm,"):
        sweep(classifier, "Linf", [0.1], *data, attacks=["apgd-ce", "fgsm"])
    for radii in ([], [0.1, "0.1"], ["8/255", 0.0313725]):
        with pytest.raises(ValueError, match=r"eps: got"):
            sweep(classifier, "Linf", radii, *data)
    with pytest.raises(ValueError, match="a ball that holds every image"):
        sweep(classifier, "Linf", [0.1, 8], *data)

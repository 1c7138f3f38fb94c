"""Attacked images as PNG files: they are the images after rounding, and what the report says is about these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import Data, make_linear
from PIL import Image
from torch import nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import EvaluationReport, Evaluator

from .builders import custom, step, wrap


@pytest.fixture(scope="module")
def evaluation(network: nn.Module, data: Data) -> tuple[EvaluationReport, PyTorchClassifier]:
    classifier = wrap(network)
    # No multiple of 1 / 255, so that rounding to the nearest level can leave the ball.
    evaluator = Evaluator(classifier, ThreatModel("Linf", 0.1005), attacks=custom(step), verbose=False)
    report = evaluator.evaluate(*data)
    assert 2 <= report.broken.sum() < report.correct.sum()
    return report, classifier


def test_files_hold_the_rounded_images_and_the_report_judges_these(
    evaluation: tuple[EvaluationReport, PyTorchClassifier], data: Data, tmp_path: Path
) -> None:
    report, classifier = evaluation
    judged = report.save_images(tmp_path / "images", classifier)
    broken = report.broken.nonzero()[0]
    assert [path.name for path in sorted((tmp_path / "images").iterdir())] == [f"{point:05}.png" for point in broken]
    images = np.stack([np.asarray(Image.open(tmp_path / "images" / f"{point:05}.png")) for point in broken])
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, np.rint(report.adversarial[broken][:, 0] * 255))

    x, y = data
    rounded = np.rint(report.adversarial * 255).astype(np.float32) / 255
    wrong = classifier.predict(rounded).argmax(axis=1) != y
    far = np.abs(rounded.astype(np.float64) - x).max(axis=(1, 2, 3))
    inside = far <= 0.1005 + 1e-6
    told = judged.settings["eight_bit"]
    assert told["accuracy"] == (report.correct & ~wrong).mean()
    assert told["accuracy_within_eps"] == (report.correct & ~(wrong & inside)).mean()
    assert told["broken"] == len(broken)
    assert told["misclassified"] == wrong[broken].sum()
    assert told["within_eps"] == (wrong & inside)[broken].sum()
    assert told["farthest"] == pytest.approx(far[broken].max(), abs=1e-7)
    assert told["farthest"] > 0.1005 + 1e-6, "rounding left no ball: the case is vacuous"
    assert told["accuracy_within_eps"] > told["accuracy"]

    assert "eight_bit" not in report.settings
    judged.save(tmp_path / "report")
    assert EvaluationReport.load(tmp_path / "report").settings["eight_bit"] == told
    for name in ("report.html", "report.md"):
        assert f"{told['accuracy']:.2%} after rounding" in (tmp_path / "report" / name).read_text()


def test_other_networks_and_reports_are_refused(
    evaluation: tuple[EvaluationReport, PyTorchClassifier], network: nn.Module, tmp_path: Path
) -> None:
    report, classifier = evaluation
    other = make_linear()
    for wrong, kind in ((wrap(other), ValueError), (network, TypeError)):
        with pytest.raises(kind, match="classifier: got"):
            report.save_images(tmp_path, wrong)
    for changed in (
        replace(report, details=None),
        replace(report, settings={**report.settings, "input_shape": [64]}),
        replace(report, settings={**report.settings, "input_shape": [2, 4, 8]}),
        replace(report, settings={**report.settings, "clip_values_by_feature": "of their own"}),
    ):
        with pytest.raises(ValueError, match="report: got"):
            changed.save_images(tmp_path, classifier)
    assert not list(tmp_path.iterdir())


def test_the_network_is_left_as_it_was(
    evaluation: tuple[EvaluationReport, PyTorchClassifier], network: nn.Module, tmp_path: Path
) -> None:
    report, classifier = evaluation
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    report.save_images(tmp_path, classifier)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)

"""Outputs that decide for no class: abstentions, ties, and attacks that were not confirmed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from builders import Data
from torch import Tensor, nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import Evaluator

from .builders import custom, step, wrap
from .wrapped import SETTINGS, Around, evaluate, read_flags


def test_smoothed_classifiers_are_refused(network: nn.Module) -> None:
    smoothed = PyTorchRandomizedSmoothing(network, nn.CrossEntropyLoss(), **SETTINGS)
    with pytest.raises(ValueError, match=r"^classifier: got PyTorchRandomizedSmoothing, .*certify"):
        Evaluator(smoothed, ThreatModel("Linf", 0.1))


@pytest.mark.parametrize("attack", ["apgd-ce", "square", custom(step)])
def test_an_abstention_is_no_class(attack: Any, network: nn.Module, data: Data) -> None:
    def abstain(self: Around, x: Tensor) -> Tensor:
        logits = self.network(x)
        return logits * (logits.softmax(dim=1).amax(dim=1, keepdim=True) > 0.9)

    x, zeros = data[0], np.zeros(40, dtype=np.int64)
    classifier = wrap(Around(network, abstain))
    abstained = (classifier.predict(x) == 0).all(axis=1)
    assert abstained.any()
    report = evaluate(classifier, (x, np.where(abstained, zeros, data[1])), attacks=attack)
    assert not report.correct[abstained].any()
    assert read_flags(report)["no-decision"] == "severe"
    nothing = evaluate(wrap(Around(network, lambda self, x: 0 * self.network(x))), (x, zeros))
    assert nothing.clean_accuracy == 0


def test_ties_are_flagged_and_no_rounding_blamed(network: nn.Module, few: Data) -> None:
    report = evaluate(wrap(Around(network, lambda self, x: (self.network(x) / 4).round())), few, attacks="square")
    assert read_flags(report)["ties"] == "warning"
    (confirmed,) = (flag for flag in report.flags if flag.name == "not-confirmed")
    assert "ties" in confirmed.advice
    assert "rounding" not in confirmed.advice


def test_randomness_that_clean_images_do_not_show(network: nn.Module, data: Data) -> None:
    """The outputs of images near the boundary alone are random."""

    def unsure(self: Around, x: Tensor) -> Tensor:
        logits: Tensor = self.network(x)
        two = logits.softmax(dim=1).topk(2, dim=1).values
        close = (two[:, 0] - two[:, 1]) < 0.3
        return torch.where(close[:, None], logits * torch.randn(len(x), 1), logits)

    around = Around(network, unsure)
    with torch.no_grad():
        two = network(torch.from_numpy(data[0])).softmax(dim=1).topk(2, dim=1).values
    sure = (two[:, 0] - two[:, 1] > 0.8).numpy()
    report = evaluate(wrap(around), (data[0][sure], data[1][sure]), attacks="apgd-ce")
    assert "not-confirmed" in read_flags(report)
    (confirmed,) = (flag for flag in report.flags if flag.name == "not-confirmed")
    assert "random" in confirmed.advice
    assert "smooth" not in confirmed.advice
    assert read_flags(report)["randomised"] == "severe"

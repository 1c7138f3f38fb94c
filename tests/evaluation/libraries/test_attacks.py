"""The attacks of the suites do what they say."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import numpy as np
import pytest
import torch
from builders import Data
from numpy.testing import assert_array_equal
from torch import nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import ATTACKS, SUITES, EvaluationReport, Evaluator
from art_robust_plugins.evaluation.libraries import package_versions, resolve

from ..builders import wrap


def run(network: nn.Module, data: Data, attacks: Any, norm: str = "Linf", eps: float = 0.1) -> EvaluationReport:
    return Evaluator(wrap(network), ThreatModel(norm, eps), attacks=attacks, batch_size=15, verbose=False).evaluate(
        *data
    )


def test_names_are_unique_and_each_attack_is_taken_once() -> None:
    assert len(ATTACKS) == sum(len(suite) for suite in SUITES.values()) + 2
    assert not ATTACKS["apgd-dlr"].cumulative
    assert not ATTACKS["fab"].cumulative
    assert [attack.name for attack in resolve(["apgd-t", "standard", "square"])] == [
        "apgd-t",
        "apgd-ce",
        "fab-t",
        "square",
    ]


def test_parameters_of_the_standard_suite(network: nn.Module, data: Data) -> None:
    few = data[0][:2], data[1][:2]
    found = {r.name: r.parameters for r in run(network, few, ["apgd-ce", "apgd-t", "fab-t"], "L1", 9.0).attacks}
    assert found["apgd-ce"]["restarts"] == 5
    assert found["apgd-ce"]["larger_radii"] is True
    assert found["apgd-t"]["targets"] == 5
    found = {r.name: r.parameters for r in run(network, few, ["standard", "rand"], eps=0.5).attacks}
    assert found["apgd-ce"]["restarts"] == 1
    assert found["apgd-t"]["targets"] == found["fab-t"]["targets"] == 9
    assert found["square"]["queries"] == 5000
    assert found["square"]["rescaled_schedule"] is False
    assert found["rand-apgd-ce"]["samples"] == 20


def test_torchattacks(network: nn.Module, data: Data) -> None:
    pytest.importorskip("torchattacks")
    quick = [attack.name for attack in SUITES["torchattacks"] if attack.name != "torchattacks-square"]
    few = data[0][:20], data[1][:20]
    report = run(network, few, quick)
    found = {result.name: result for result in report.attacks}
    assert list(found) == quick
    assert [name for name, result in found.items() if not result.bounded] == ["cw", "deepfool", "pixle", "onepixel"]
    assert found["pgd-20"].robust_accuracy <= found["fgsm"].robust_accuracy
    assert found["pgd-100"].robust_accuracy <= found["pgd-20"].robust_accuracy
    worst = np.logical_and.reduce([result.robust for result in report.attacks if result.bounded])
    assert_array_equal(report.robust & worst, report.robust)
    assert report.robust_accuracy >= worst.mean() - 2 / 20
    assert found["fgsm"].forward_calls == found["fgsm"].backward_calls == round(report.clean_accuracy * 20)
    assert not [flag for flag in report.flags if flag.name == "left-the-ball"]
    assert_array_equal(run(network, few, quick[:5]).attacks[4].robust, found[quick[4]].robust)


def test_torchattacks_in_other_norms(network: nn.Module, data: Data) -> None:
    pytest.importorskip("torchattacks")
    few = data[0][:6], data[1][:6]
    report = run(network, few, ["fgsm", "pgd-20", "deepfool"], "L2", 1.0)
    assert [result.name for result in report.attacks] == ["pgd-20", "deepfool"]
    assert report.settings["not_run"][0] == "fgsm: torchattacks has no L2 version."
    # Some of DeepFool's smallest changes lie within a generous L2 ball.
    assert report.attacks[1].robust_accuracy < report.clean_accuracy


def test_torchattacks_autoattack_with_100_steps_is_the_standard_suite(network: nn.Module, data: Data) -> None:
    pytest.importorskip("torchattacks")
    few = data[0][:12], data[1][:12]
    report = run(network, few, ["standard", "torchattacks-autoattack"], eps=0.13)
    assert_array_equal(report.attacks[-1].robust, report.attacks[3].robust)
    assert report.attacks[-1].parameters["steps"] == 100


def test_a_library_without_metadata_has_an_unknown_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    pytest.importorskip("pyautoattack")
    monkeypatch.setattr("importlib.metadata.distribution", missing)
    assert list(package_versions([ATTACKS["square"]], "reference").values()) == ["unknown version"]


def test_noise(network: nn.Module, data: Data) -> None:
    report = run(network, data, "noise")
    accuracy = {result.name: result.robust_accuracy for result in report.attacks}
    assert len(accuracy) == 15
    assert accuracy["gaussian-0.3"] < accuracy["gaussian-0.05"]
    assert accuracy["salt-and-pepper-0.2"] < accuracy["salt-and-pepper-0.01"]
    assert "not-adversarial" in [flag.name for flag in report.flags]
    assert report.settings["attack_library"] == {}


def test_the_amount_of_noise(data: Data) -> None:
    setting: Any = None
    x = torch.full((200, 1, 8, 8), 0.5)
    torch.manual_seed(0)
    for name, deviation in (("gaussian-0.1", 0.1), ("uniform-0.2", 0.2 / 3**0.5), ("salt-and-pepper-0.1", 0.158)):
        perturb, _ = ATTACKS[name].prepare(setting)
        noise = perturb(x, torch.zeros(200)) - x
        assert noise.std().item() == pytest.approx(deviation, rel=0.05)
        assert abs(noise.mean().item()) < 0.01

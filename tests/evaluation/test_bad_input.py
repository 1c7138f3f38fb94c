"""Bad input is refused before any work, in one sentence."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from art.estimators.classification import PyTorchClassifier
from builders import Data
from torch import nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import EvaluationReport, Evaluator, compare
from art_robust_plugins.evaluation.robustbench import LeaderboardEntry

from .builders import custom, step, wrap


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"attacks": "standart"}, "attacks: got 'standart', .*'standard'"),
        ({"attacks": ["noise", "apgdt"]}, "attacks: got 'apgdt', .*'apgd-t'"),
        ({"attacks": "pgd20"}, "attacks: got 'pgd20', .*'pgd-20'"),
        ({"attacks": []}, "attacks: got none,"),
        ({"attacks": [3]}, "attacks: got 3,"),
        (
            {"attacks": [custom(step, name="a"), custom(step, name="a")]},
            "attacks: got .*'a',",
        ),
        ({"backend": "fast"}, "backend: got 'fast',"),
        ({"batch_size": 0}, "batch_size: got 0,"),
        ({"physical_batch_size": 0}, "physical_batch_size: got 0,"),
        ({"batch_size": 2.5}, "batch_size: got 2.5,"),
        ({"seed": -1}, "seed: got -1,"),
    ],
)
def test_settings(arguments: dict[str, Any], sentence: str, classifier: PyTorchClassifier) -> None:
    with pytest.raises(ValueError, match=f"^{sentence}"):
        Evaluator(classifier, ThreatModel("Linf", 0.1), **arguments)


def test_the_wrong_kind_of_object(network: nn.Module, classifier: PyTorchClassifier) -> None:
    with pytest.raises(TypeError, match=r"^estimator: got int, "):
        Evaluator(3, ThreatModel("Linf", 0.1))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^threat: got float,"):
        Evaluator(classifier, 0.1)
    with pytest.raises(ValueError, match=r"^classifier: clip_values are None, "):
        Evaluator(wrap(network, clip_values=None), ThreatModel("Linf", 0.1))


@pytest.mark.parametrize(
    ("threat", "sentence"),
    [
        (ThreatModel("Linf", 8), r"got 8 .*'8/255'"),
        (ThreatModel("Linf", 1), r"got 1 .*'1/255'"),
        (ThreatModel("L2", 8), r"got 8 .*\[0, 1\]"),
        (ThreatModel("L1", 100), r"got 100 .*\[0, 1\],"),
    ],
)
def test_an_eps_that_holds_every_image(threat: ThreatModel, sentence: str, classifier: PyTorchClassifier) -> None:
    with pytest.raises(ValueError, match=f"^eps: {sentence}"):
        Evaluator(classifier, threat)
    Evaluator(wrap(classifier.model, clip_values=(0, 255)), threat)


X = np.full((4, 1, 8, 8), 0.5, dtype=np.float32)
Y = np.arange(4)


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (X * np.nan, Y, "x: got NaN or infinity,"),
        (X * 255, Y, "x: got values in [127.5, 127.5],"),
        (X[:, 0], Y, "x: got an array of shape (4, 8, 8),"),
        (X[:0], Y[:0], "x: got no samples,"),
        (X.astype(str), Y, "x: got values of type <U32,"),
        (X, Y[:3], "y: got 3 labels for 4 samples,"),
        (X, Y + 8, "y: got labels from 8 to 11,"),
        (X, Y + 0.5, "y: got labels "),
        (X, np.eye(12)[Y], "y: got labels of shape (4, 12),"),
        (X, np.full((4, 10), 0.1), "y: got rows "),
    ],
)
def test_data(x: Any, y: Any, sentence: str, classifier: PyTorchClassifier) -> None:
    called = []

    def perturb(*arguments: Any) -> Any:
        called.append(arguments)

    evaluator = Evaluator(classifier, ThreatModel("Linf", 0.1), attacks=custom(perturb), verbose=False)
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        evaluator.evaluate(x, y)
    assert not called


def test_an_attack_that_returns_another_shape(classifier: PyTorchClassifier, data: Data) -> None:
    evaluator = Evaluator(
        classifier, ThreatModel("Linf", 0.1), attacks=custom(lambda x, y, setting: x[:, :, 1:]), verbose=False
    )
    with pytest.raises(ValueError, match=r"^attacks: 'custom' "):
        evaluator.evaluate(*data)


def test_nothing_that_can_run(classifier: PyTorchClassifier, data: Data) -> None:
    pytest.importorskip("torchattacks")
    evaluator = Evaluator(classifier, ThreatModel("L1", 0.1), attacks="fgsm", verbose=False)
    sentence = "attacks: none can run here (fgsm: torchattacks "
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        evaluator.evaluate(*data)


def test_a_missing_library_is_named(classifier: PyTorchClassifier, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for attack, library in (
        ("square", "the reference AutoAttack (autoattack or pyautoattack)"),
        ("cw", "torchattacks"),
    ):
        sentence = f"{library} is not installed,"
        with pytest.raises(ImportError, match=f"^{re.escape(sentence)}"):
            Evaluator(
                classifier, ThreatModel("Linf", 0.1), attacks=attack, backend="reference", verbose=False
            ).evaluate(*data)


def test_no_reports() -> None:
    with pytest.raises(ValueError, match=r"^reports: got none,"):
        compare({})


def test_no_report_in_the_folder(tmp_path: Any) -> None:
    with pytest.raises(FileNotFoundError):
        EvaluationReport.load(tmp_path)


ENTRY: dict[str, Any] = {
    **dict.fromkeys(("name", "authors", "architecture", "link", "venue", "footnote"), "x"),
    **{"dataset": "cifar10", "model_id": "Some2020One", "additional_data": False},
    **{"number_forward_passes": 1, "reported": 50.0},
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in ("name", "authors", "architecture", "link", "venue") for value in (None, True, [])),
        *(("dataset", value) for value in (["cifar10"], "mnist", None)),
        *(("model_id", value) for value in (1.5, "", "a/b", "a\0")),
        *(("reported", value) for value in (True, "50", float("inf"), -1, 100.1, 10**400)),
        ("additional_data", 1),
        ("number_forward_passes", 0),
        ("footnote", 3),
    ],
)
def test_entries_of_leaderboards(name: str, value: object) -> None:
    LeaderboardEntry(**ENTRY)
    with pytest.raises(ValueError, match=f"^{name}: got "):
        LeaderboardEntry(**{**ENTRY, name: value})

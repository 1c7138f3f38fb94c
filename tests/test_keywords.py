"""Unknown keywords are refused with the name that was meant."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_robust_plugins import (
    BANGTrainer,
    Evaluator,
    LayerwiseAdversarialTrainer,
    LocalBallTrainer,
    PGDTrainer,
    PyTorchLipschitzCertifier,
    PyTorchWeightMapClassifier,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    TRADESTrainer,
    TrainingOptions,
    WeightMap2d,
    WeightMapPreprocessor,
    certify,
    evaluate,
    export_classifier,
    insert_weight_maps,
    load_classifier,
    save_classifier,
)
from art_robust_plugins.checks import find_nearest
from art_robust_plugins.evaluation import sweep, transfer
from art_robust_plugins.evaluation.libraries import SUITES, resolve
from art_robust_plugins.keywords import MEANT, check_keywords, explain_keywords
from art_robust_plugins.training import BANG

THREAT = ThreatModel("Linf", 0.1)
LOSS = nn.CrossEntropyLoss()
X, Y = np.zeros((2, 1, 4, 4), dtype=np.float32), np.array([0, 1])


def classifier() -> PyTorchClassifier:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    return PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 4, 4), 3, optimizer, clip_values=(0, 1))


def certifier(**keywords: Any) -> PyTorchLipschitzCertifier:
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    settings = {"clip_values": (0, 1), "device_type": "cpu"}
    return PyTorchLipschitzCertifier(network, LOSS, (1, 4, 4), 3, **settings, **keywords)


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


REFUSED: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: StandardTrainer(classifier()).fit(X, Y, epochs=1), "epochs", "nb_epochs"),
    (lambda: StandardTrainer(classifier()).fit(X, Y, n_epochs=1), "n_epochs", "nb_epochs"),
    (lambda: StandardTrainer(classifier()).fit(X, Y, lr=1), "lr", "optimizer"),
    (lambda: StandardTrainer(classifier()).fit(X, Y, threat=THREAT), "threat", "StandardTrainer(..., threat="),
    (lambda: StandardTrainer(classifier()).fit_loader([(X, Y)], epochs=1), "epochs", "nb_epochs"),
    (lambda: StandardTrainer(classifier(), nb_epochs=1), "nb_epochs", "fit(..., nb_epochs=...)"),
    (lambda: StandardTrainer(classifier(), seed=1), "seed", "options=TrainingOptions(seed=...)"),
    (lambda: StandardTrainer(model=classifier()), "model", "classifier"),
    (lambda: TRADESTrainer(classifier(), eps=8), "eps", "threat=ThreatModel("),
    (lambda: LocalBallTrainer(classifier(), norm="Linf", eps=0.1), "norm", "threat=ThreatModel("),
    (lambda: LayerwiseAdversarialTrainer(classifier(), epsilon=0.1), "epsilon", "eps"),
    (lambda: BANG(eps=0.1), "eps", "epsilon"),
    (lambda: ThreatModel("linf", epsilon=0.1), "epsilon", "eps"),
    (lambda: TrainingOptions(sed=1), "sed", "seed"),
    (lambda: Evaluator(classifier(), eps=0.1), "eps", "threat=ThreatModel("),
    (lambda: Evaluator(classifier(), THREAT, attack="aa"), "attack", "attacks"),
    (lambda: Evaluator(classifier(), THREAT).evaluate(X, Y, eps=1), "eps", "Evaluator(..., threat="),
    (lambda: Evaluator(classifier(), THREAT).evaluate(X, Y, wibble=1), "wibble", "one of x, y"),
    (lambda: certifier(eps=0.1), "eps", "certified_accuracy(..., eps=...)"),
    (lambda: certifier(bounds=(0, 1)), "bounds", "clip_values"),
    (lambda: certifier(mean=0.5), "mean", "preprocessing=(mean, std)"),
    (lambda: certifier(device="cpu"), "device", "device_type"),
    (lambda: certifier(n_classes=3), "n_classes", "nb_classes"),
    (lambda: certifier().certify(X, bs=1), "bs", "batch_size"),
    (lambda: certifier().certified_accuracy(X, Y, radius=0.1), "radius", "eps"),
    (lambda: PyTorchLipschitzCertifier.from_classifier(classifier(), eps=0.1), "eps", "one of classifier"),
    (lambda: PyTorchWeightMapClassifier(convolution(), LOSS, (1, 4, 4), 3, kernal="x"), "kernal", "kernel"),
    (lambda: WeightMapPreprocessor((1, 4, 4), kernal="x"), "kernal", "kernel"),
    (lambda: WeightMap2d(1, 4, 4, kernal="x"), "kernal", "kernel"),
    (lambda: insert_weight_maps(convolution(), (1, 4, 4), kernal="x"), "kernal", "kernel"),
    (lambda: export_classifier(classifier(), "a.pt2", X, fmt="onnx"), "fmt", "format"),
    (lambda: save_classifier(classifier(), "a", wibble=1), "wibble", "one of classifier"),
    (lambda: load_classifier("a", wibble=1), "wibble", "one of "),
    (lambda: sweep(classifier(), "Linf", [0.1], X, Y, attack="apgd-ce"), "attack", "attacks"),
    (lambda: transfer(classifier(), nme="a"), "nme", "name"),
    (lambda: Evaluator(classifier(), THREAT).evaluate(X, Y, device="cpu"), "device", "network.to("),
    (lambda: Evaluator(classifier(), THREAT, epochs=1), "epochs", "one of estimator"),
    (lambda: TRADESTrainer(classifier(), clip_values=(0, 1)), "clip_values", "PyTorchClassifier(..., clip_values"),
    (lambda: StandardTrainer(classifier()).fit(X, Y, mean=0.5), "mean", "PyTorchClassifier(..., preprocessing"),
    (lambda: BANGTrainer(classifier(), version=1), "version", "one of classifier"),
    (lambda: evaluate(classifier(), X, Y, radius=0.1), "radius", "eps"),
    (lambda: evaluate(classifier(), X, Y, version="standard"), "version", "attacks"),
    (lambda: evaluate(classifier(), X, Y, steps=3), "steps", "attacks="),
    (lambda: evaluate(classifier(), X, Y, alpha=0.1), "alpha", "attacks="),
    (lambda: evaluate(classifier(), X, Y, n=5), "n", "x[:"),
    (lambda: evaluate(classifier(), X, Y, points=5), "points", "x[:"),
    (lambda: Evaluator(classifier(), THREAT, n_ex=5), "n_ex", "x[:"),
    (lambda: evaluate(classifier(), X, Y, epsilons=[0.1]), "epsilons", "sweep("),
    (lambda: PGDTrainer(classifier(), threat=THREAT, eps_step=0.1), "eps_step", "step_size"),
    (lambda: PGDTrainer(classifier(), threat=THREAT, alpha=0.1), "alpha", "step_size"),
    (lambda: PGDTrainer(classifier(), threat=THREAT, nb_iter=3), "nb_iter", "steps"),
    (lambda: TRADESTrainer(classifier(), threat=THREAT, lambda_=6), "lambda_", "beta"),
    (lambda: evaluate(classifier(), images=X, labels=Y), "images", "x"),
    (lambda: certify(classifier(), X, eps=0.1), "eps", "none: a proven radius is returned"),
    (lambda: certify(classifier(), X, y=Y), "y", "none: the predictions are returned"),
    (lambda: save_classifier(classifier(), "folder", modle={}), "modle", "model"),
]


@pytest.mark.parametrize(("call", "keyword", "meant"), REFUSED, ids=[f"{k}-{m}" for _, k, m in REFUSED])
def test_an_unknown_keyword_is_refused_with_the_one_that_was_meant(
    call: Callable[[], Any], keyword: str, meant: str
) -> None:
    with pytest.raises(TypeError) as refusal:
        call()
    assert str(refusal.value).startswith(f"{keyword}: got an unknown keyword,")
    assert meant in str(refusal.value)


def test_a_missing_argument_is_named() -> None:
    for call in (lambda: TRADESTrainer(classifier()), lambda: Evaluator(classifier())):
        with pytest.raises(TypeError, match=r"^threat: got none,"):
            call()
    with pytest.raises(TypeError, match=r"^classifier: got none"):
        StandardTrainer(options=TrainingOptions())
    with pytest.raises(TypeError, match=r"^model: got none"):
        certify()  # type: ignore[call-arg]


@pytest.mark.parametrize("given", [{"x": X}, {"x": torch.utils.data.DataLoader([(X[0], Y[0])])}])
def test_labels_that_are_missing_are_named_with_what_takes_batches(given: dict[str, Any]) -> None:
    for call in (lambda fit: fit(*given.values()), lambda fit: fit(**given)):
        with pytest.raises(TypeError, match=r"^y: got none, .*fit_loader\(loader\)"):
            call(StandardTrainer(classifier()).fit)


@pytest.mark.parametrize("eps", [[0.05, 0.1], (0.05,), np.array([0.05, 0.1]), torch.tensor([0.1])])
def test_several_radii_are_sent_to_sweep(eps: Any) -> None:
    for call in (lambda: evaluate(classifier(), X, Y, "Linf", eps), lambda: ThreatModel("Linf", eps)):
        with pytest.raises(ValueError, match=r"(?s)^eps: got .*sweep"):
            call()


@pytest.mark.parametrize("eps", [np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
def test_one_number_of_any_library_is_a_radius(eps: Any) -> None:
    assert ThreatModel("Linf", eps).eps == 0.5


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: certify(classifier(), X, Y), r"^certify: got 3 .*expected model, x, and .*norm="),
        (lambda: TRADESTrainer(classifier(), THREAT), r"^TRADESTrainer: got 2 .*expected classifier, and .*threat="),
        (lambda: Evaluator(classifier(), "Linf", 0.1), r"^Evaluator: got 3 .*expected estimator, threat, and "),
        (lambda: Evaluator(classifier(), THREAT).evaluate(X, Y, 0.1), r"^evaluate: got 3 .*expected x, y\.$"),
    ],
)
def test_arguments_that_need_their_name_are_told_so(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        call()


def test_what_is_refused_is_refused_before_any_work() -> None:
    trainer = StandardTrainer(classifier())
    with pytest.raises(TypeError, match="epochs"):
        trainer.fit(None, None, epochs=1)
    assert trainer.history == []


def test_signatures_copies_and_pickles_are_as_without_the_check() -> None:
    assert list(inspect.signature(TRADESTrainer).parameters)[:2] == ["classifier", "threat"]
    assert inspect.signature(StandardTrainer) == inspect.signature(RobustTrainer), "inherited"
    assert list(inspect.signature(StandardTrainer).parameters)[:2] == ["classifier", "threat"]
    assert "nb_epochs" in inspect.signature(RobustTrainer.fit).parameters
    options = TrainingOptions(seed=3)
    assert copy.deepcopy(options) == pickle.loads(pickle.dumps(options)) == options
    trainer = pickle.loads(pickle.dumps(TRADESTrainer(classifier(), threat=THREAT)))
    assert trainer.threat == THREAT


def test_what_takes_any_keyword_is_given_it() -> None:
    @explain_keywords
    def call(**given: int) -> dict[str, int]:
        return given

    assert call(eps=1) == {"eps": 1}
    check_keywords(lambda eps: eps, ["eps"])
    with pytest.raises(TypeError, match="eps: got an unknown keyword,"):
        check_keywords(lambda: None, ["eps"])


def test_no_meant_word_is_sent_to_itself_alone() -> None:
    for word, meant in MEANT.items():
        assert any(argument != word for argument, _ in meant), word


def test_only_near_names_are_suggested() -> None:
    names = ["deepfool", "torchattacks", "pgd-20", "standard"]
    assert [find_nearest(word, names) for word in ("foo", "autopilot", 3)] == [None, None, None]
    assert [find_nearest(word, names) for word in ("PGD_20", "standart", "deepfol")] == [
        "pgd-20",
        "standard",
        "deepfool",
    ]
    assert find_nearest("pgd", []) is None


@pytest.mark.parametrize("name", ["autoattack", "aa", "AutoAttack", "auto_attack", "AA"])
def test_autoattack_is_the_standard_suite(name: str) -> None:
    assert resolve(name) == list(SUITES["standard"]) == resolve([name, "standard"])


def test_attacks_that_nobody_knows_get_no_far_hint() -> None:
    with pytest.raises(ValueError, match="attacks: got 'foo'") as refusal:
        resolve("foo")
    assert "did you mean" not in str(refusal.value)

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
from builders import make_linear, make_tiny
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


def certifier(**keywords: Any) -> PyTorchLipschitzCertifier:
    network = make_linear(16, 3)
    settings = {"clip_values": (0, 1), "device_type": "cpu"}
    return PyTorchLipschitzCertifier(network, LOSS, (1, 4, 4), 3, **settings, **keywords)


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))


REFUSED: list[tuple[Callable[[], Any], str, str]] = [
    (lambda: StandardTrainer(make_tiny()).fit(X, Y, epochs=1), "epochs", "nb_epochs"),
    (lambda: StandardTrainer(make_tiny()).fit(X, Y, n_epochs=1), "n_epochs", "nb_epochs"),
    (lambda: StandardTrainer(make_tiny()).fit(X, Y, lr=1), "lr", "optimizer"),
    (lambda: StandardTrainer(make_tiny()).fit(X, Y, threat=THREAT), "threat", "StandardTrainer(..., threat="),
    (lambda: StandardTrainer(make_tiny()).fit_loader([(X, Y)], epochs=1), "epochs", "nb_epochs"),
    (lambda: StandardTrainer(make_tiny(), nb_epochs=1), "nb_epochs", "fit(..., nb_epochs=...)"),
    (lambda: StandardTrainer(make_tiny(), seed=1), "seed", "options=TrainingOptions(seed=...)"),
    (lambda: StandardTrainer(model=make_tiny()), "model", "classifier"),
    (lambda: TRADESTrainer(make_tiny(), eps=8), "eps", "threat=ThreatModel("),
    (lambda: LocalBallTrainer(make_tiny(), norm="Linf", eps=0.1), "norm", "threat=ThreatModel("),
    (lambda: LayerwiseAdversarialTrainer(make_tiny(), epsilon=0.1), "epsilon", "eps"),
    (lambda: BANG(eps=0.1), "eps", "epsilon"),
    (lambda: ThreatModel("linf", epsilon=0.1), "epsilon", "eps"),
    (lambda: TrainingOptions(sed=1), "sed", "seed"),
    (lambda: Evaluator(make_tiny(), eps=0.1), "eps", "threat=ThreatModel("),
    (lambda: Evaluator(make_tiny(), THREAT, attack="aa"), "attack", "attacks"),
    (lambda: Evaluator(make_tiny(), THREAT).evaluate(X, Y, eps=1), "eps", "Evaluator(..., threat="),
    (lambda: Evaluator(make_tiny(), THREAT).evaluate(X, Y, wibble=1), "wibble", "one of x, y"),
    (lambda: certifier(eps=0.1), "eps", "certified_accuracy(..., eps=...)"),
    (lambda: certifier(bounds=(0, 1)), "bounds", "clip_values"),
    (lambda: certifier(mean=0.5), "mean", "preprocessing=(mean, std)"),
    (lambda: certifier(device="cpu"), "device", "device_type"),
    (lambda: certifier(n_classes=3), "n_classes", "nb_classes"),
    (lambda: certifier().certify(X, bs=1), "bs", "batch_size"),
    (lambda: certifier().certified_accuracy(X, Y, radius=0.1), "radius", "eps"),
    (lambda: PyTorchLipschitzCertifier.from_classifier(make_tiny(), eps=0.1), "eps", "one of classifier"),
    (lambda: PyTorchWeightMapClassifier(convolution(), LOSS, (1, 4, 4), 3, kernal="x"), "kernal", "kernel"),
    (lambda: WeightMapPreprocessor((1, 4, 4), kernal="x"), "kernal", "kernel"),
    (lambda: WeightMap2d(1, 4, 4, kernal="x"), "kernal", "kernel"),
    (lambda: insert_weight_maps(convolution(), (1, 4, 4), kernal="x"), "kernal", "kernel"),
    (lambda: export_classifier(make_tiny(), "a.pt2", X, fmt="onnx"), "fmt", "format"),
    (lambda: save_classifier(make_tiny(), "a", wibble=1), "wibble", "one of classifier"),
    (lambda: load_classifier("a", wibble=1), "wibble", "one of "),
    (lambda: sweep(make_tiny(), "Linf", [0.1], X, Y, attack="apgd-ce"), "attack", "attacks"),
    (lambda: transfer(make_tiny(), nme="a"), "nme", "name"),
    (lambda: Evaluator(make_tiny(), THREAT).evaluate(X, Y, device="cpu"), "device", "network.to("),
    (lambda: Evaluator(make_tiny(), THREAT, epochs=1), "epochs", "one of estimator"),
    (lambda: TRADESTrainer(make_tiny(), clip_values=(0, 1)), "clip_values", "PyTorchClassifier(..., clip_values"),
    (lambda: StandardTrainer(make_tiny()).fit(X, Y, mean=0.5), "mean", "PyTorchClassifier(..., preprocessing"),
    (lambda: BANGTrainer(make_tiny(), version=1), "version", "one of classifier"),
    (lambda: evaluate(make_tiny(), X, Y, radius=0.1), "radius", "eps"),
    (lambda: evaluate(make_tiny(), X, Y, version="standard"), "version", "attacks"),
    (lambda: evaluate(make_tiny(), X, Y, steps=3), "steps", "attacks="),
    (lambda: evaluate(make_tiny(), X, Y, alpha=0.1), "alpha", "attacks="),
    (lambda: evaluate(make_tiny(), X, Y, n=5), "n", "x[:"),
    (lambda: evaluate(make_tiny(), X, Y, points=5), "points", "x[:"),
    (lambda: Evaluator(make_tiny(), THREAT, n_ex=5), "n_ex", "x[:"),
    (lambda: evaluate(make_tiny(), X, Y, epsilons=[0.1]), "epsilons", "sweep("),
    (lambda: PGDTrainer(make_tiny(), threat=THREAT, eps_step=0.1), "eps_step", "step_size"),
    (lambda: PGDTrainer(make_tiny(), threat=THREAT, alpha=0.1), "alpha", "step_size"),
    (lambda: PGDTrainer(make_tiny(), threat=THREAT, nb_iter=3), "nb_iter", "steps"),
    (lambda: TRADESTrainer(make_tiny(), threat=THREAT, lambda_=6), "lambda_", "beta"),
    (lambda: evaluate(make_tiny(), images=X, labels=Y), "images", "x"),
    (lambda: certify(make_tiny(), X, eps=0.1), "eps", "none: a proven radius is returned"),
    (lambda: certify(make_tiny(), X, y=Y), "y", "none: the predictions are returned"),
    (lambda: save_classifier(make_tiny(), "folder", modle={}), "modle", "model"),
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
    for call in (lambda: TRADESTrainer(make_tiny()), lambda: Evaluator(make_tiny())):
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
            call(StandardTrainer(make_tiny()).fit)


@pytest.mark.parametrize("eps", [[0.05, 0.1], (0.05,), np.array([0.05, 0.1]), torch.tensor([0.1])])
def test_several_radii_are_sent_to_sweep(eps: Any) -> None:
    for call in (lambda: evaluate(make_tiny(), X, Y, "Linf", eps), lambda: ThreatModel("Linf", eps)):
        with pytest.raises(ValueError, match=r"(?s)^eps: got .*sweep"):
            call()


@pytest.mark.parametrize("eps", [np.float32(0.5), np.array(0.5), torch.tensor(0.5)])
def test_one_number_of_any_library_is_a_radius(eps: Any) -> None:
    assert ThreatModel("Linf", eps).eps == 0.5


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: certify(make_tiny(), X, Y), r"^certify: got 3 .*norm="),
        (lambda: TRADESTrainer(make_tiny(), THREAT), r"^TRADESTrainer: got 2 .*threat="),
        (lambda: Evaluator(make_tiny(), "Linf", 0.1), r"^Evaluator: got 3 "),
        (lambda: Evaluator(make_tiny(), THREAT).evaluate(X, Y, 0.1), r"^evaluate: got 3 "),
    ],
)
def test_arguments_that_need_their_name_are_told_so(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(TypeError, match=sentence):
        call()


def test_what_is_refused_is_refused_before_any_work() -> None:
    trainer = StandardTrainer(make_tiny())
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
    trainer = pickle.loads(pickle.dumps(TRADESTrainer(make_tiny(), threat=THREAT)))
    assert trainer.threat == THREAT


def test_what_takes_any_keyword_is_given_it() -> None:
    @explain_keywords
    def call(**given: int) -> dict[str, int]:
        return given

    assert call(eps=1) == {"eps": 1}
    check_keywords(lambda eps: eps, ["eps"])
    with pytest.raises(TypeError, match="eps: got "):
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

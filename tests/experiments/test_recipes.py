"""Recipes: what a file may say, and that running one gives what its parts give."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier

from art_robust_plugins import EvaluationReport, PyTorchLipschitzCertifier, load_classifier
from art_robust_plugins.data import Dataset
from art_robust_plugins.evaluation.autoattack import standard
from art_robust_plugins.evaluation.autoattack.square import Square
from art_robust_plugins.experiments.recipes import (
    Recipe,
    available_recipes,
    benchmark,
    load_recipe,
    networks,
    result_rows,
    run_recipe,
)
from art_robust_plugins.files import load_tensors
from art_robust_plugins.provenance import find_version

SMALL = """
description = "two rows"
data = "digits"
seeds = [0, 1]
threat = "Linf 0.1"
[network]
name = "small-cnn"
channels = 4
[training]
train = 200
epochs = 2
[options]
max_gradient_norm = 5.0
[evaluation]
threats = ["Linf 0.05", "Linf 0.1"]
attacks = ["apgd-ce"]
points = 12
noise = ["gaussian-0.1"]
certify = ["L2 0.01", "L2 0.2"]
[[rows]]
name = "plain"
method = "standard"
[[rows]]
name = "local ball, with BANG, maps"
method = "local-ball"
parameters = { steps = 2 }
with = { bang = { beta = 0.4 } }
weight_map = "unsharp"
training = { optimizer = "adam", lr = 1e-3 }
network = { channels = 2 }
options = { channels_last = true }
seeds = [3]
"""

MINI = """
description = "one row"
data = "digits"
seeds = [0, 1]
[network]
name = "small-cnn"
channels = 2
[training]
train = 100
epochs = 2
[evaluation]
threats = ["L2 0.2"]
attacks = ["apgd-dlr"]
points = 6
certify = ["L2 0.2"]
[[rows]]
name = "plain"
method = "standard"
"""


def recipe_of(text: str, folder: Path, *, quick: bool = False) -> Recipe:
    path = folder / "small.toml"
    path.write_text(text)
    return load_recipe(path, quick=quick)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A recipe that was run, and its record."""
    folder = tmp_path_factory.mktemp("recipes")
    out = folder / "out"
    return out, run_recipe(recipe_of(SMALL, folder), out, command="art-robust benchmark small")


@pytest.fixture(scope="module")
def mini(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A smaller one, and its results."""
    folder = tmp_path_factory.mktemp("mini")
    return folder / "out", run_recipe(recipe_of(MINI, folder), folder / "out", command="")["results"]


@pytest.mark.parametrize("name", available_recipes())
def test_every_row_of_every_recipe_can_be_trained(name: str, digits: Dataset) -> None:
    assert load_recipe(name).data == name.split("-", maxsplit=1)[0]
    for row in load_recipe(name, quick=True).rows:
        trainer, parameters = row.plan.trainer(digits, seed=0)
        assert isinstance(trainer.classifier, PyTorchClassifier)
        assert row.plan.parameters.items() <= parameters.items()


def test_the_quick_form_is_small() -> None:
    for name in available_recipes():
        recipe = load_recipe(name, quick=True)
        assert recipe.quick
        assert recipe.data == "digits"  # there without a download
        assert recipe.points <= 10
        for row in recipe.rows:
            assert len(row.seeds) == 1
            assert row.plan.epochs <= 3
            assert row.plan.train is not None
            steps = row.plan.epochs * -(-row.plan.train // row.plan.batch_size)
            assert steps >= 4 or row.plan.options.get("schedule") != "one-cycle"


def test_a_row_is_the_recipe_with_its_own_changes(tmp_path: Path) -> None:
    plain, ball = recipe_of(SMALL, tmp_path).rows
    assert (plain.plan.optimizer, plain.plan.lr, plain.plan.train, plain.seeds) == ("sgd", 0.01, 200, (0, 1))
    assert plain.plan.parameters == {}  # it takes no threat
    assert plain.plan.network_arguments == {"channels": 4}
    assert (ball.plan.optimizer, ball.plan.lr, ball.plan.epochs, ball.seeds) == ("adam", 1e-3, 2, (3,))
    assert ball.plan.network_arguments == {"channels": 2}
    assert ball.plan.options == {"max_gradient_norm": 5.0, "channels_last": True}
    assert str(ball.plan.parameters["threat"]) == "Linf 0.1"


def test_the_record_is_what_the_parts_give(done: tuple[Path, dict[str, Any]], digits: Dataset, tmp_path: Path) -> None:
    out, record = done
    assert record == json.loads((out / "results.json").read_text())
    assert record["command"] == "art-robust benchmark small"
    assert record["versions"]["torch"] == torch.__version__
    assert record["recipe"] == recipe_of(SMALL, tmp_path).table
    assert not record["quick"]
    assert [(result["row"], result["seed"]) for result in record["results"]] == [
        ("plain", 0),
        ("plain", 1),
        ("local ball, with BANG, maps", 3),
    ]
    folders = ["plain/seed-0", "plain/seed-1", "local-ball-with-BANG-maps/seed-3"]
    for result, folder in zip(record["results"], folders, strict=True):
        classifier = load_classifier(out / folder)
        assert result["clean"] == (classifier.predict(digits.x_test).argmax(axis=1) == digits.y_test).mean()
        for threat, found in result["threats"].items():
            norm, eps = threat.split()
            report = EvaluationReport.load(out / folder / "evaluations" / "Linf-0.05-Linf-0.1" / eps)
            assert (report.settings["threat"]["norm"], report.settings["threat"]["eps"]) == (norm, float(eps))
            assert (found["robust"], found["autoattack"]) == (report.robust_accuracy, None)
            assert found["attacks"] == {"apgd-ce": report.attacks[0].robust_accuracy}
            assert found["flags"] == [flag.name for flag in report.flags]
            assert len(report.robust) == 12
        assert result["threats"]["Linf 0.1"]["robust"] <= result["threats"]["Linf 0.05"]["robust"]
        prediction, radius = PyTorchLipschitzCertifier.from_classifier(classifier).certify(digits.x_test)
        right = prediction == digits.y_test
        assert result["certified"] == {f"L2 {eps}": (right & (radius >= eps)).mean() for eps in (0.01, 0.2)}
        noisy = EvaluationReport.load(out / folder / "evaluations" / "noise")
        assert result["noise"] == {"gaussian-0.1": noisy.attacks[0].robust_accuracy}
        assert len(noisy.robust) == len(digits.x_test)
        history = json.loads((out / folder / "classifier.json").read_text())["extra"]["history"]
        assert result["training_seconds"] == sum(epoch["seconds"] for epoch in history)
    page = (out / "Linf-0.1" / "index.html").read_text()
    assert "local ball, with BANG, maps" in page
    assert 'href="../' in page  # to the networks' own reports
    assert "plain" in page


def test_the_table_has_means_over_seeds(done: tuple[Path, dict[str, Any]]) -> None:
    plain, ball = result_rows(done[1])
    clean = [100 * result["clean"] for result in done[1]["results"][:2]]
    assert (plain["training"], plain["seeds"]) == ("plain", "2")
    assert plain["clean"] == f"{np.mean(clean):.1f} ({min(clean):.1f} to {max(clean):.1f})"
    assert ball["clean"] == f"{100 * done[1]['results'][2]['clean']:.1f}"
    assert "attacked, Linf 0.1" in plain  # not AutoAttack: only one of its stages ran
    assert plain.keys() == ball.keys()


def test_what_is_done_is_not_done_again(
    done: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, record = done

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(networks, "train_run", never)
    again = run_recipe(recipe_of(SMALL, tmp_path), out, command="art-robust benchmark small")
    assert again == record
    for change, names in (("lr = 1e-3", "rows"), ("points = 12", "evaluation")):
        changed = SMALL.replace(change, change + "0")
        with pytest.raises(ValueError, match=f"another {names}"):
            run_recipe(recipe_of(changed, tmp_path), out, command="")
    with pytest.raises(ValueError, match="another quick form"):
        run_recipe(recipe_of(SMALL, tmp_path, quick=True), out, command="")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"^out: .*full "):
        run_recipe(recipe_of(SMALL, tmp_path), tmp_path / "full", command="")


def test_certificates_join_the_reports_of_their_norm(mini: tuple[Path, list[dict[str, Any]]]) -> None:
    out, results = mini
    for result in results:
        report = EvaluationReport.load(out / "plain" / f"seed-{result['seed']}" / "evaluations" / "L2-0.2")
        assert report.radii is not None
        assert [attack.name for attack in report.attacks] == ["apgd-dlr"]
        assert result["threats"]["L2 0.2"]["robust"] == report.robust_accuracy


def drop_times(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{**result, "training_seconds": 0} for result in results]


def test_a_stopped_recipe_goes_on_and_gives_the_same(
    mini: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, out = recipe_of(MINI, tmp_path), tmp_path / "out"
    calls = []
    evaluate = networks.evaluate_run

    def stop(*arguments: Any, **settings: Any) -> Any:
        calls.append(arguments[0])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(*arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(networks, "evaluate_run", stop)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(recipe, out, command="")
    assert (out / "plain" / "seed-0" / "result.json").exists()
    assert not (out / "plain" / "seed-1" / "result.json").exists()
    assert (out / "plain" / "seed-1" / "classifier.json").exists()
    assert drop_times(run_recipe(recipe, out, command="")["results"]) == drop_times(mini[1])


@pytest.mark.slow
def test_workers_give_what_one_process_gives(mini: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    out, results = mini
    shared = run_recipe(recipe_of(MINI, tmp_path), tmp_path / "out", command="", workers=2)
    assert shared["threads"] == "1"
    assert drop_times(shared["results"]) == drop_times(results)
    weights = [load_tensors(each / "plain" / "seed-1" / "weights.safetensors") for each in (out, tmp_path / "out")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_network_without_a_bound_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from art_robust_plugins.lipschitz.rules import RULES

    monkeypatch.delitem(RULES, torch.ops.aten.relu.default)
    record = run_recipe(recipe_of(MINI.replace("[0, 1]", "[0]"), tmp_path), tmp_path / "out", command="")
    assert record["results"][0]["certified"] == {"L2 0.2": None}
    assert result_rows(record)[0]["certified, L2 0.2"] == "no bound"


def test_a_row_that_cannot_be_trained_is_refused_before_any_is(tmp_path: Path) -> None:
    for old, new, sentence in (
        ("channels = 2", "chanels = 2", "chanels: the network 'small-cnn'"),
        ("steps = 2", "steps = 0", "steps: got 0,"),
    ):
        recipe = recipe_of(SMALL.replace(old, new), tmp_path)
        with pytest.raises(ValueError, match=f"^small: .* maps: {sentence}"):
            run_recipe(recipe, tmp_path / "out", command="")
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ('"Linf 0.05", "Linf 0.1"]', '"Linf 0.05", "Linf 2"]', "small: plain: eps: got 2 for inputs in [0, 1],"),
        (
            'certify = ["L2 0.01", "L2 0.2"]',
            'certify = ["L2 0.01", "L2 36"]',
            "small: plain: eps: got 36 for inputs in [0, 1],",
        ),
        (
            "options = { channels",
            'options = { compile = "reduce-overhead", channels',
            "maps: compile: got 'reduce-overh",
        ),
        ("options = { channels", 'options = { augmentation = "crop-flip", crop_padding = 8, channels', "crop_padding:"),
        (
            "options = { channels",
            'options = { schedule = "cosine", warmup_epochs = 2, channels',
            "maps: warmup_epochs: got 2 ",
        ),
        (
            "options = { channels",
            'options = { schedule = "one-cycle", channels',
            "maps: schedule: got 'one-cycle' ",
        ),
        ("options = { channels", "options = { drop_last = true, channels", "batch_size: got 300 "),
        ("points = 12", "points = 361", "evaluation.points: got 361,"),
        ('name = "plain"', 'name = "Linf 0.1"', "rows: got names whose folders are Linf-0.1, local-ball"),
        ('name = "plain"', 'name = ".."', "rows: got names whose folders are , local-ball"),
    ],
)
def test_what_would_fail_after_hours_is_refused_before_any_work(
    tmp_path: Path, old: str, new: str, sentence: str
) -> None:
    text = SMALL.replace('training = { optimizer = "adam", lr', 'training = { batch_size = 300, optimizer = "adam", lr')
    assert old in text
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        run_recipe(recipe_of(text.replace(old, new, 1), tmp_path), tmp_path / "out", command="")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_attacks_that_are_not_installed_are_noticed_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "torchattacks" else object())
    recipe = recipe_of(MINI.replace('"apgd-dlr"', '"torchattacks"'), tmp_path)
    with pytest.raises(ImportError, match="torchattacks is not installed"):
        run_recipe(recipe, tmp_path / "out", command="")
    assert not (tmp_path / "out").exists()


def test_attacks_that_do_not_exist_within_a_threat_are_noticed_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("torchattacks")
    text = MINI.replace('"apgd-dlr"', '"fgsm"').replace('threats = ["L2 0.2"]', 'threats = ["L2 0.2", "L1 1"]')
    assert '"fgsm"' in text
    assert '"L1 1"' in text
    with pytest.raises(ValueError, match=r"evaluation\.attacks: got none .* within L2 0.2 \(fgsm: "):
        run_recipe(recipe_of(text, tmp_path), tmp_path / "out", command="")
    assert not (tmp_path / "out").exists()


def test_outputs_with_nan_are_no_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spoiled:
        def __init__(self, folder: Path) -> None:
            self.classifier = load_classifier(folder)

        def predict(self, *arguments: Any, **options: Any) -> Any:
            outputs = self.classifier.predict(*arguments, **options)
            outputs[::2] = np.nan
            return outputs

    recipe = recipe_of(MINI, tmp_path)
    expected = run_recipe(recipe, tmp_path / "plain", command="")["results"][0]["clean"]
    (tmp_path / "plain" / "plain" / "seed-0" / "result.json").unlink()
    monkeypatch.setattr(networks, "load_classifier", Spoiled)
    found = run_recipe(recipe, tmp_path / "plain", command="")["results"][0]["clean"]
    assert 0.35 * expected < found < 0.65 * expected


def test_a_network_that_diverges_is_a_result_and_the_others_are_trained(tmp_path: Path) -> None:
    row = '[[rows]]\nname = "diverges"\nmethod = "standard"\ntraining = { lr = 1e30 }\n[[rows]]\nname = "plain"'
    recipe = recipe_of(MINI.replace('[[rows]]\nname = "plain"', row), tmp_path)
    record = run_recipe(recipe, tmp_path / "out", command="")
    assert [result.get("diverged", "")[:15] for result in record["results"]] == ["the loss became"] * 2 + [""] * 2
    diverged, plain = result_rows(record)
    assert diverged.keys() == plain.keys()
    assert diverged["seeds"] == "2 (2 diverged)"
    assert {diverged[key] for key in ("clean", "attacked, L2 0.2", "certified, L2 0.2")} == {"none"}
    assert plain["seeds"] == "2"
    assert run_recipe(recipe, tmp_path / "out", command="") == record  # it is not trained again
    page = (tmp_path / "out" / "L2-0.2" / "index.html").read_text()
    assert "plain" in page
    assert "diverges" not in page


def test_autoattack_is_told_from_the_worst_case() -> None:
    def result(robust: float, autoattack: float | None) -> dict[str, Any]:
        found = {"robust": robust, "autoattack": autoattack, "attacks": {}, "flags": []}
        return {
            **{"row": "plain", "seed": 0, "clean": 0.9, "noise": {}, "certified": {}, "training_seconds": 1.0},
            "threats": {"Linf 0.1": found},
        }

    (row,) = result_rows({"results": [result(0.25, 0.5)]})
    assert (row["AutoAttack, Linf 0.1"], row["worst case, Linf 0.1"]) == ("50.0", "25.0")
    (row,) = result_rows({"results": [result(0.5, 0.5)]})
    assert (row["AutoAttack, Linf 0.1"], "worst case, Linf 0.1" in row) == ("50.0", False)
    (row,) = result_rows({"results": [result(0.25, None)]})
    assert row["attacked, Linf 0.1"] == "25.0"


def test_a_folder_of_other_versions_or_other_data_is_not_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"x_{part}": rng.random((40, 1, 8, 8), dtype=np.float32) for part in ("train", "test")}
    arrays |= {f"y_{part}": np.arange(40) % 10 for part in ("train", "test")}
    np.savez(tmp_path / "own.npz", **arrays)
    text = MINI.replace('"digits"', f'"{tmp_path / "own.npz"}"').replace("train = 100", "train = 20")
    text = text.replace("seeds = [0, 1]", "seeds = [0]")
    record = run_recipe(recipe_of(text, tmp_path), tmp_path / "out", command="")
    assert record["results"][0].keys() >= {"date", "machine", "threads"}
    arrays["x_test"][0, 0, 0, 0] += 0.001
    np.savez(tmp_path / "own.npz", **arrays)
    with pytest.raises(ValueError, match="another content of the data"):
        run_recipe(recipe_of(text, tmp_path), tmp_path / "out", command="")
    monkeypatch.setattr(
        benchmark, "find_version", lambda package: "0.0" if package == "torch" else find_version(package)
    )
    with pytest.raises(ValueError, match=r"another content of the data .*version of torch"):
        run_recipe(recipe_of(text, tmp_path), tmp_path / "out", command="")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("digits", 1),
        ("mnist", 2),
        ("cifar10-small", 3),
        ("cifar10-resnet18", 14),
        ("cifar10-ten-minutes", 1),
        ("mnist-certified", 2),
        ("cifar10-certified", 1),
        ("cifar10-certified-gpu", 1),
    ],
)
def test_the_quick_form_of_each_recipe_runs(
    name: str, every: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With fewer images and queries; of all but the first some rows, whose methods the first one has."""
    assert name in available_recipes()
    monkeypatch.setattr(standard, "Square", partial(Square, queries=50))
    recipe = load_recipe(name, quick=True)
    few = {"train": 64, "batch_size": 16, "epochs": 1}  # the four steps that a one-cycle schedule needs
    rows = tuple(replace(row, plan=replace(row.plan, **few)) for row in recipe.rows[::every])
    record = run_recipe(replace(recipe, rows=rows, points=2), tmp_path / "out", command="")
    rows = result_rows(record)
    assert record["quick"]
    assert [row["training"] for row in rows] == [row.name for row in recipe.rows[::every]]
    assert all(0 <= float(row["clean"]) <= 100 for row in rows)
    assert not any("diverged" in result for result in record["results"])


BAD = [
    ("description = ", "descripton = ", "small.toml: got 'descripton',"),
    ('data = "digits"\n', "", "small.toml.data: got none,"),
    ("seeds = [0, 1]", 'seeds = ["a"]', "small.toml: plain: seeds: got ['a'],"),
    ("seeds = [0, 1]", "seeds = 3", "small.toml.seeds: got 3,"),
    ('threat = "Linf 0.1"', 'threat = "Linf"', "got 'Linf',"),
    ('threat = "Linf 0.1"', "", "threat: got none, which 'local-ball' trains against,"),
    ("epochs = 2", "epoch = 2", "small.toml: plain: training: got 'epoch',"),
    ("epochs = 2", "epochs = 0", "small.toml: plain: epochs: got 0,"),
    ("epochs = 2", "epochs = true", "small.toml: plain: training.epochs: got True,"),
    ('optimizer = "adam"', 'optimizer = "adamw2"', "optimizer: got 'adamw2',"),
    ("max_gradient_norm = 5.0", "max_gradient = 5.0", "'max_gradient_norm'?"),
    ("max_gradient_norm = 5.0", "seed = 5", "small.toml: plain: options: got 'seed', which is not known"),
    ("max_gradient_norm = 5.0", "max_gradient_norm = -1", "max_gradient_norm: got -1,"),
    ('attacks = ["apgd-ce"]', 'attacks = ["apgd-c"]', "evaluation: attacks: got 'apgd-c'"),
    (
        'optimizer = "adam", lr = 1e-3',
        'optimizer = "adam", momentum = 0.5',
        "maps: training.momentum: got 0.5 ",
    ),
    (
        'optimizer = "adam", lr = 1e-3',
        'optimizer = "adam", lr = 1e-3, label_smoothing = 1.5',
        "maps: label_smoothing: got 1.5,",
    ),
    ('weight_map = "unsharp"', 'weight_map = "sharp"', "maps: weight_map: got 'sharp',"),
    (
        "options = { channels",
        "options = { keep_best = true, channels",
        "maps: training.validation: got none with keep_best,",
    ),
    ("points = 12", "points = 0", "small.toml: evaluation.points: got 0,"),
    ("points = 12", "", "small.toml: evaluation.points: got none,"),
    ('noise = ["gaussian-0.1"]', 'noise = ["gaussian-0.11"]', "evaluation.noise: got 'gaussian-0.11'"),
    ('["L2 0.01", "L2 0.2"]', '["L2 0.01", "Linf 0.2"]', "evaluation.certify: "),
    ('"Linf 0.05", "Linf 0.1"]', '"Linf 0.1", "Linf 0.10000001"]', "evaluation.threats: got ['Linf 0.1', 'Linf 0.1000"),
    ('["L2 0.01", "L2 0.2"]', '["L2 0.2", "L2 0.20"]', "evaluation.certify: got ['L2 0.2', 'L2 0.20'],"),
    ('"Linf 0.05"', '"L3 0.05"', "evaluation.threats: norm: got 'L3',"),
    ('method = "standard"', 'method = "standart"', "small.toml: plain: method: got 'standart',"),
    ('method = "standard"', 'method = "lipschitz-certifier"', "method: got 'lipschitz-certifier',"),
    ('method = "standard"', 'method = "weight-map"\nthreat = "L2 1"', "threat: 'weight-map' "),
    ("steps = 2", "step = 2", "small.toml: local ball, with BANG, maps: parameters: got 'step',"),
    ("bang = {", "bnag = {", "with: got 'bnag',"),
    ("beta = 0.4", "bta = 0.4", "with.bang: got 'bta',"),
    ('name = "local ball, with BANG, maps"', 'name = "plain"', "small.toml: rows: got 'plain' twice,"),
    ("[training]", "[[training]]", "small.toml.training: got [{'train': 200, 'epochs': 2}],"),
    ('name = "small-cnn"', "", "small.toml: plain: network.name: got None,"),
    ("points = 12", "points = ", "TOML"),
]


@pytest.mark.parametrize(("old", "new", "sentence"), BAD, ids=[sentence for _, _, sentence in BAD])
def test_what_no_recipe_has_is_refused(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in SMALL
    with pytest.raises(ValueError, match=re.escape(sentence)) as caught:
        recipe_of(SMALL.replace(old, new, 1), tmp_path)
    assert "\n" not in str(caught.value)

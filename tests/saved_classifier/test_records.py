"""Records that no saved classifier has."""

from __future__ import annotations

import json

import numpy as np
import pytest
from torch import nn

from art_robust_plugins.files import seal
from art_robust_plugins.saved_classifier import load_classifier, save_classifier

from .builders import X, change, classifier

SGD = {"class": "SGD", "groups": [{"parameters": ["layers.0.weight"], "settings": {"lr": 0.1, "momentum": 0.9}}]}

RECIPE = {"name": "small-cnn", "input_shape": [1, 8, 8], "nb_classes": 10, "channels": 4, "hidden": 8}


def sgd(**settings):
    return {"optimizer": {**SGD, "groups": [{**SGD["groups"][0], "settings": {"lr": 0.1, **settings}}]}}


def loss(name="CrossEntropyLoss", **arguments):
    return {"loss": {"class": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"format": "classifier 9"}, "got the format 'classifier 9',"),
        (loss("os.system"), "loss.class: got the class 'os.system',"),
        (loss("Linear", in_features=10**9, out_features=10**9), "loss.class: got the class 'Linear'"),
        (loss(weights=[1]), "loss.arguments.weights: got an unknown entry"),
        (loss(label_smoothing=5), "loss.arguments.label_smoothing: got 5,"),
        (loss(reduction="medium"), "loss.arguments.reduction: got 'medium'"),
        (loss(weight={"tensor": [1, 2, 3]}), "loss.arguments.weight.tensor: got [1, 2, 3]"),
        ({"loss": {}}, "loss.class: got no such entry"),
        ({"optimizer": {"class": "Optimizer9", "groups": []}}, "got the class 'Optimizer9',"),
        ({"optimizer": {"class": "Optimizer", "groups": []}}, "got the class 'Optimizer'"),
        (sgd(momentums=0.9), "groups[0].settings.momentums: got an unknown entry"),
        (sgd(momentum="0.9"), "groups[0].settings.momentum: got '0.9'"),
        (sgd(nesterov=1), "groups[0].settings.nesterov: got 1,"),
        (sgd(momentum=-3), "groups[0].settings: got {'lr': 0.1, 'momentum': -3}"),
        ({"optimizer": {**SGD, "groups": SGD["groups"] * 2}}, "optimizer.groups: got a parameter twice"),
        ({"model": 3}, "model: got 3,"),
        ({"model": {"class": "A", "recipe": {**RECIPE, "name": "lenett"}}}, "lenet"),
        ({"model": {"class": "A", "recipe": {**RECIPE, "channels": 10**6}}}, "(1000000, 1, 3, 3)"),
        ({"model": {"class": "A", "recipe": {**RECIPE, "channels": 10**9}}}, "model.recipe: got arguments that make"),
        ({"model": {"class": "A", "recipe": {**RECIPE, "channels": 1e300}}}, "recipe.channels: got 1e+300"),
        ({"model": {"class": "A", "recipe": {**RECIPE, "channels": -4}}}, "model.recipe: got arguments that make no"),
        (
            {"model": {"class": "A", "recipe": {**RECIPE, "name": "wide-resnet", "depth": 6 * 10**8 + 4}}},
            "model.recipe.depth: got 600000004, but there are 8 weights",
        ),
        ({"preprocessing": [0.1, 0.0]}, "preprocessing[1]: got 0.0,"),
        ({"preprocessing": [0.1, -0.25]}, "preprocessing[1]: got -0.25,"),
        ({"preprocessing": [0.1, 1e-40]}, "preprocessing[1]: got 1e-40"),
        ({"foo": 1}, "foo: got an unknown entry"),
        ({"preprocessing": [0.1, 1e-60]}, "preprocessing[1]: got 1e-60"),
        ({"preprocessing": [0.1, 1e60]}, "preprocessing[1]: got 1e+60"),
        ({"preprocessing": [[0.1, 0.2], 1.0]}, "preprocessing[0]: got [0.1, 0.2]"),
        ({"preprocessing": [[[0.1], [0.2, 0.3]], 1.0]}, "preprocessing[0]: got [[0.1], [0.2, 0.3]]"),
        ({"clip_values": [1.0, 0.0]}, "clip_values: got [1.0, 0.0]"),
        ({"clip_values": [1.0, 1.0]}, "clip_values: got [1.0, 1.0]"),
        ({"clip_values": [0.0]}, "clip_values: got 1 entries,"),
        ({"clip_values": ["0", "1"]}, "clip_values[0]: got '0'"),
        ({"nb_classes": 12}, "nb_classes: got 12, but the network's outputs for 2 inputs are (2, 10)"),
        ({"nb_classes": 10.0}, "nb_classes: got 10.0,"),
        ({"nb_classes": True}, "nb_classes: got True"),
        ({"input_shape": [1, 9, 16]}, "input_shape: got (1, 9, 16), which the network does not take"),
        ({"input_shape": [1, 2**20, 2**20]}, "input_shape: got [1, 1048576, 1048576]"),
        ({"input_shape": [1, 2**13, 2**13]}, "input_shape: got (1, 8192, 8192), which the network does not take"),
        ({"input_shape": []}, "input_shape: got []"),
        ({"channels_first": 1}, "channels_first: got 1,"),
        ({"estimator": "Pickle"}, "estimator: got 'Pickle'"),
        ({"use_amp": "yes"}, "use_amp: got 'yes'"),
        ({"extra": []}, "extra: got [],"),
        ({"versions": {"torch": "x" * 999, "numpy": 3}}, "versions.numpy: got 3,"),
    ],
)
def test_records_that_are_not_ours(tmp_path, entries, named):
    save_classifier(classifier(), tmp_path)
    change(tmp_path, **entries)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        load_classifier(tmp_path)
    assert named in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_changed_digit_in_a_record_is_noticed(tmp_path):
    saved = classifier(preprocessing=(0.3, 0.7))
    save_classifier(saved, tmp_path)
    path = tmp_path / "classifier.json"
    text = path.read_text()
    record = json.loads(text)
    path.write_text(text.replace("0.3", "0.8", 1))
    with pytest.raises(ValueError, match=r"classifier\.json: sha256: got "):
        load_classifier(tmp_path)
    path.write_text(json.dumps({key: value for key, value in record.items() if key != "sha256"}))
    with pytest.raises(ValueError, match=r"classifier\.json: sha256: got no such entry"):
        load_classifier(tmp_path)
    path.write_text(json.dumps(record, indent=None, sort_keys=True))  # the same content in another order
    assert np.array_equal(load_classifier(tmp_path).predict(X), saved.predict(X))


def test_records_of_earlier_versions_load_and_are_checked(tmp_path):
    saved = classifier(preprocessing=(0.3, 0.7))
    save_classifier(saved, tmp_path)
    path = tmp_path / "classifier.json"
    record = {**json.loads(path.read_text()), "format": "art-robust-plugins classifier 1"}
    del record["sha256"]
    path.write_text(json.dumps(record))
    assert np.array_equal(load_classifier(tmp_path).predict(X), saved.predict(X))
    path.write_text(json.dumps({**record, "preprocessing": [0.3, 0]}))
    with pytest.raises(ValueError, match=r"preprocessing\[1\]: got 0"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"preprocessing": (0.5, 0.0)}, r"preprocessing\[1\]: got 0\.0"),
        ({"loss": nn.CrossEntropyLoss(label_smoothing=2.0)}, r"label_smoothing: got 2\.0"),
    ],
)
def test_what_could_not_be_loaded_is_not_saved(tmp_path, arguments, named):
    with pytest.raises(ValueError, match=named):
        save_classifier(classifier(**arguments), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["clip_values", "preprocessing", "loss_scale", "nb_classes"])
def test_a_missing_entry_is_named(key, tmp_path):
    save_classifier(classifier(), tmp_path)
    path = tmp_path / "classifier.json"
    record = json.loads(path.read_text())
    del record[key]
    path.write_text(json.dumps(seal(record)))
    with pytest.raises(ValueError, match=f"{key}: got no such entry") as caught:
        load_classifier(tmp_path)
    assert str(path) in str(caught.value)

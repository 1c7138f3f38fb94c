import json
import pickle

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod
from art.defences.postprocessor import Rounded
from art.defences.preprocessor import CutoutPyTorch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_robust_plugins.checkpoint import describe_classifier, load_classifier, save_classifier
from art_robust_plugins.files import (
    load_state,
    load_tensors,
    read_json,
    save_state,
    save_tensors,
    seal,
    write_atomically,
    write_json,
)
from art_robust_plugins.models import create_model

SHAPE = (1, 8, 8)
X = np.random.default_rng(0).random((5, *SHAPE), dtype=np.float32)


def network():
    return create_model("small-cnn", SHAPE, 10, channels=4, hidden=8)


def classifier(model=None, loss=None, **arguments):
    model = network() if model is None else model
    return PyTorchClassifier(model, loss or nn.CrossEntropyLoss(), SHAPE, 10, clip_values=(0, 1), **arguments)


# Writing


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, lambda temporary: temporary.write_text("old"))

    def fail(temporary):
        temporary.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]


def test_the_temporary_file_has_the_suffix_that_writers_look_at(tmp_path):
    write_atomically(tmp_path / "a.npz", lambda temporary: np.savez(temporary, x=X))
    assert np.array_equal(np.load(tmp_path / "a.npz")["x"], X)


def test_json_round_trip(tmp_path):
    data = {"accuracy": 0.5, "seeds": [1, 2], "name": "Günther", "none": None}
    write_json(tmp_path / "a.json", {**data, "accuracy": np.float32(0.5), "seeds": (np.int64(1), 2)})
    assert read_json(tmp_path / "a.json") == data


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), {"loss": np.float32("nan")}])
def test_json_has_no_nan(tmp_path, bad):
    with pytest.raises(ValueError, match=r"a\.json: got data with NaN, infinity or a cycle, expected JSON data\."):
        write_json(tmp_path / "a.json", bad)
    assert not list(tmp_path.iterdir())


def test_json_takes_no_tensors(tmp_path):
    with pytest.raises(TypeError, match="data: got a Tensor, expected JSON data"):
        write_json(tmp_path / "a.json", {"x": torch.zeros(1)})


def test_tensors_that_share_memory_or_are_not_contiguous(tmp_path):
    base = torch.randn(4, 6)
    parameter = nn.Parameter(torch.randn(3))
    tensors = {"a": base, "b": base, "row": base[1], "turned": base.T, "parameter": parameter, "empty": torch.zeros(0)}
    save_tensors(tmp_path / "t.safetensors", {**tensors, "none": torch.zeros(0), "bf16": base.bfloat16()}, {"by": "me"})
    loaded = load_tensors(tmp_path / "t.safetensors")
    assert loaded["bf16"].dtype == torch.bfloat16
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
    assert "memory" not in str(loaded["a"])
    loaded["a"][0, 0] = 7
    assert loaded["b"][0, 0] == base[0, 0]


def test_only_dense_tensors_are_saved(tmp_path):
    with pytest.raises(TypeError, match="tensors: got a ndarray at 'x', expected a dense tensor"):
        save_tensors(tmp_path / "t.safetensors", {"x": X})
    with pytest.raises(TypeError, match="tensors: got a Tensor at 'x', expected a dense tensor"):
        save_tensors(tmp_path / "t.safetensors", {"x": torch.eye(2).to_sparse()})


def test_state_round_trip(tmp_path):
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.from_numpy(X)).sum().backward()
    optimizer.step()
    state = {
        "optimizer": optimizer.state_dict(),
        "network": model.state_dict(),
        "random": torch.get_rng_state(),
        "history": [{"loss": 0.5, "epoch": 1, "robust": None, "done": False}],
        "view": torch.zeros(100_000)[:2],
        (1, "key"): ("a", b"b"),
    }
    save_state(tmp_path / "state.pt", state)
    loaded = load_state(tmp_path / "state.pt")
    assert loaded["history"] == state["history"]
    assert loaded[(1, "key")] == ("a", b"b")
    assert torch.equal(loaded["random"], state["random"])
    assert (tmp_path / "state.pt").stat().st_size < 100_000
    torch.testing.assert_close(loaded["network"], dict(state["network"]), rtol=0, atol=0)
    fresh = torch.optim.Adam(model.parameters())
    fresh.load_state_dict(loaded["optimizer"])
    assert fresh.param_groups[0]["betas"] == (0.9, 0.999)
    assert torch.equal(fresh.state_dict()["state"][0]["exp_avg"], optimizer.state_dict()["state"][0]["exp_avg"])


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ({"rng": {"keys": X}}, "state['rng']['keys']: got a ndarray, expected tensors, numbers"),
        ([1, nn.ReLU()], "state[1]: got a ReLU, expected tensors, numbers"),
        ({"a": np.datetime64("2026")}, "state['a']: got a datetime64, expected tensors, numbers"),
    ],
)
def test_state_of_other_objects_is_refused(tmp_path, state, sentence):
    with pytest.raises(TypeError) as refusal:
        save_state(tmp_path / "s.pt", state)
    assert str(refusal.value).startswith(sentence)
    assert not list(tmp_path.iterdir())


# Reading what is not as expected


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code of a file was run",))


JSON, TENSORS, STATE = (
    "a JSON file",
    "a safetensors file",
    "a training state as save_state writes it",
)
READERS = [(read_json, JSON), (load_tensors, TENSORS), (load_state, STATE)]


@pytest.mark.parametrize(("read", "expected"), READERS)
@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "an empty file"),
        (pickle.dumps(Bomb()), "a pickle, which is never opened"),
        (pickle.dumps({"weights": 1}, protocol=2), "a pickle, which is never opened"),
        (b"PK\x03\x04cut short", "a zip archive cut short or damaged"),
        (b"\x00\xff" * 20, "a file of another kind"),
    ],
)
def test_files_that_are_something_else(tmp_path, read, expected, content, found):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        read(path)
    assert str(refusal.value) == f"{path}: got {found}, expected {expected}."


@pytest.mark.parametrize(("read", "expected"), READERS)
def test_files_that_are_not_there(tmp_path, read, expected):
    with pytest.raises(FileNotFoundError) as refusal:
        read(tmp_path / "file")
    assert str(refusal.value) == f"{tmp_path / 'file'}: no such file, expected {expected}."
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        read(tmp_path)
    assert str(refusal.value) == f"{tmp_path}: got a folder, expected {expected}."


@pytest.mark.parametrize("share", [0.02, 0.3, 0.9, 0.999])
@pytest.mark.parametrize(("read", "expected"), READERS)
def test_files_cut_short(tmp_path, read, expected, share):
    path = tmp_path / "file"
    writers = {
        read_json: lambda: write_json(path, {"a": list(range(100))}),
        load_tensors: lambda: save_tensors(path, {"a": torch.randn(300)}),
        load_state: lambda: save_state(path, {"a": torch.randn(300)}),
    }
    writers[read]()
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    if read is read_json and share == 0.999:
        path.write_bytes(whole[:-2])
    with pytest.raises(ValueError, match=rf"file: got .*, expected {expected}\.$"):
        read(path)


def test_the_three_kinds_are_told_apart(tmp_path):
    write_json(tmp_path / "j", [1])
    save_tensors(tmp_path / "t", {"a": torch.zeros(1)})
    save_state(tmp_path / "s", {"a": 1})
    found = {"j": "text", "t": "a safetensors file", "s": "a zip archive"}
    for read, expected in READERS:
        for name, kind in found.items():
            if name != {read_json: "j", load_tensors: "t", load_state: "s"}[read]:
                with pytest.raises(ValueError, match=f"/{name}: got {kind}, expected {expected}"):
                    read(tmp_path / name)


def test_an_archive_with_code_is_not_run(tmp_path):
    torch.save({"a": Bomb()}, tmp_path / "s.pt")
    with pytest.raises(ValueError, match=r"s\.pt: got a pickle of objects other than tensors.*, which is not opened"):
        load_state(tmp_path / "s.pt")


# Classifiers


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(label_smoothing=0.1), nn.MultiMarginLoss(p=2, margin=0.5)])
def test_a_classifier_comes_back_whole(tmp_path, loss):
    model = network()
    biases = [parameter for name, parameter in model.named_parameters() if name.endswith("bias")]
    others = [parameter for name, parameter in model.named_parameters() if not name.endswith("bias")]
    optimizer = torch.optim.SGD(
        [{"params": others}, {"params": biases, "lr": 0.02, "weight_decay": 0}],
        lr=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        nesterov=True,
    )
    torch.optim.lr_scheduler.StepLR(optimizer, 3)
    saved = classifier(model, loss, optimizer=optimizer, preprocessing=(0.3, 0.7), device_type="cpu")
    saved.fit(X, np.arange(5), nb_epochs=1, batch_size=5, verbose=False)
    extra = {"method": "bang", "parameters": {"beta": 0.4}}
    save_classifier(saved, tmp_path / "run", extra=extra)
    assert describe_classifier(tmp_path / "run")["extra"] == extra

    before = torch.get_rng_state()
    loaded = load_classifier(tmp_path / "run", device="cpu")
    assert torch.equal(torch.get_rng_state(), before)
    assert not loaded.model.training
    assert np.array_equal(loaded.predict(X), saved.predict(X))
    assert np.array_equal(loaded.clip_values, saved.clip_values)
    assert (loaded.input_shape, loaded.nb_classes, loaded.channels_first) == (SHAPE, 10, True)
    assert type(loaded.loss) is type(loss)
    y = np.eye(10, dtype=np.float32)[:5]
    assert np.array_equal(loaded.compute_loss(X, y), saved.compute_loss(X, y))
    ours, theirs = loaded.optimizer.state_dict()["param_groups"], optimizer.state_dict()["param_groups"]
    assert ours == theirs
    parameters = dict(loaded.model.named_parameters())
    assert loaded.optimizer.param_groups[1]["params"][0] is parameters["layers.0.bias"]

    weights = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    loaded.fit(X, np.arange(5), nb_epochs=1, batch_size=5, verbose=False)
    assert any(not torch.equal(weights[name], value) for name, value in loaded.model.state_dict().items())
    assert FastGradientMethod(loaded, eps=0.1).generate(X).shape == X.shape


@pytest.mark.parametrize("cls", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.LBFGS])
def test_other_optimizers_come_back(tmp_path, cls):
    model = network()
    optimizer = cls(model.parameters(), lr=0.125)
    save_classifier(classifier(model, optimizer=optimizer), tmp_path)
    loaded = load_classifier(tmp_path).optimizer
    assert type(loaded) is cls
    assert loaded.state_dict()["param_groups"] == optimizer.state_dict()["param_groups"]


def test_arrays_in_the_set_up_come_back(tmp_path):
    low, high = np.zeros((3, 8, 8), np.float32), np.full((3, 8, 8), 0.9, np.float32)
    mean, std = np.array([0.1, 0.2, 0.3], np.float32), np.array([0.4, 0.5, 0.6], np.float32)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([0.5, 1.5]))
    model = create_model("small-cnn", (3, 8, 8), 2)
    save_classifier(
        PyTorchClassifier(model, loss, (3, 8, 8), 2, clip_values=(low, high), preprocessing=(mean, std)), tmp_path
    )
    loaded = load_classifier(tmp_path)
    assert np.array_equal(loaded.clip_values, np.stack([low, high]))
    assert np.array_equal(loaded.preprocessing.mean, mean)
    assert np.array_equal(loaded.preprocessing.std, std)
    assert torch.equal(loaded.loss.weight, loss.weight)
    assert loaded.optimizer is None


def test_tied_weights_stay_tied(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    model[2].weight = model[1].weight
    saved = classifier(model)
    save_classifier(saved, tmp_path)
    twin = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
    twin[2].weight = twin[1].weight
    loaded = load_classifier(tmp_path, model=twin)
    assert loaded.model is twin
    assert np.array_equal(loaded.predict(X), saved.predict(X))


class OwnLoss(nn.CrossEntropyLoss):
    pass


def own_network():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def test_what_the_file_cannot_hold_is_asked_for(tmp_path):
    cutout = CutoutPyTorch(2)
    saved = classifier(own_network(), OwnLoss(), preprocessing_defences=cutout)
    save_classifier(saved, tmp_path)
    record = tmp_path / "classifier.json"
    given = {}
    for name, value, sentence in [
        ("model", own_network(), f"model: got none, expected a network of the class Sequential as saved in {record}."),
        (
            "preprocessing_defences",
            cutout,
            f"preprocessing_defences: got none, expected CutoutPyTorch as saved in {record}.",
        ),
        ("loss", OwnLoss(), f"loss: got none, expected the OwnLoss of the classifier saved in {record}."),
    ]:
        with pytest.raises(ValueError) as refusal:  # noqa: PT011
            load_classifier(tmp_path, **given)
        assert str(refusal.value) == sentence
        given[name] = value
    loaded = load_classifier(tmp_path, **given)
    assert np.array_equal(loaded.predict(X), saved.predict(X))
    with pytest.raises(ValueError, match="loss: got MSELoss, expected OwnLoss as saved in"):
        load_classifier(tmp_path, **{**given, "loss": nn.MSELoss()})


def test_defences_that_were_not_saved_are_refused(tmp_path):
    save_classifier(classifier(), tmp_path)
    with pytest.raises(ValueError, match="preprocessing_defences: got CutoutPyTorch, expected none as saved in"):
        load_classifier(tmp_path, preprocessing_defences=[CutoutPyTorch(2)])


def test_a_changed_network_is_the_callers_own(tmp_path):
    model = network()
    model.layers.append(nn.Linear(10, 10))
    save_classifier(classifier(model), tmp_path)
    with pytest.raises(ValueError, match="model: got none, expected a network of the class SmallCNN"):
        load_classifier(tmp_path)


def test_a_recipe_of_another_kind_is_not_ours(tmp_path):
    model = own_network()
    model.recipe = "flour"
    save_classifier(classifier(model), tmp_path)
    assert describe_classifier(tmp_path)["model"] == {"class": "Sequential", "recipe": None}


def test_a_recipe_can_be_given_and_must_fit(tmp_path):
    model = network()
    recipe, model.recipe = model.recipe, None
    save_classifier(classifier(model), tmp_path, model=recipe)
    assert load_classifier(tmp_path).model.recipe == recipe
    with pytest.raises(
        ValueError, match=r"model: got 'layers\.0\.weight' of shape \(4, 1, 3, 3\), expected \(5, 1, 3, 3\)"
    ):
        save_classifier(classifier(model), tmp_path, model={**recipe, "channels": 5})
    with pytest.raises(ValueError, match="model: "):
        save_classifier(classifier(own_network()), tmp_path, model=recipe)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)),
            "got the weights '1.bias', which the network does not have",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 10)),
            "got no weights '2.weight', which the network has",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 9)),
            "got '1.weight' of shape (10, 64), expected (9, 64) as in the network",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10).double()),
            "got '1.weight' of type torch.float32, expected torch.float64 as in the network",
        ),
    ],
)
def test_weights_that_do_not_fit(tmp_path, other, difference):
    save_classifier(classifier(own_network()), tmp_path)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        load_classifier(tmp_path, model=other)
    assert str(refusal.value) == f"{tmp_path / 'weights.safetensors'}: {difference}."


def test_weights_of_another_saving_are_refused(tmp_path):
    """As when a second saving is killed between the two files."""
    save_classifier(classifier(), tmp_path / "a")
    save_classifier(classifier(), tmp_path / "b")
    changed = load_tensors(tmp_path / "a" / "weights.safetensors")
    save_tensors(tmp_path / "b" / "weights.safetensors", {name: tensor + 1 for name, tensor in changed.items()})
    with pytest.raises(ValueError, match=r"got other weights than classifier\.json was written with"):
        load_classifier(tmp_path / "b")


def test_a_changed_byte_in_a_state_is_noticed(tmp_path):
    save_state(tmp_path / "state.pt", {"weights": torch.arange(1000.0)})
    content = bytearray((tmp_path / "state.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(ValueError, match="expected a training state as save_state writes it"):
        load_state(tmp_path / "state.pt")


def test_new_files_have_the_mode_of_the_users_other_files(tmp_path):
    (tmp_path / "plain").write_text("")
    save_classifier(classifier(), tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


def test_estimators_that_cannot_come_back_are_refused(tmp_path):
    model = network()
    with pytest.raises(TypeError, match="classifier: got NoneType, expected an ART PyTorchClassifier"):
        save_classifier(None, tmp_path)
    smoothed = PyTorchRandomizedSmoothing(model, nn.CrossEntropyLoss(), SHAPE, 10)
    with pytest.raises(TypeError, match="got a PyTorchRandomizedSmoothing, expected ART's PyTorchClassifier itself"):
        save_classifier(smoothed, tmp_path)
    with pytest.raises(ValueError, match="postprocessing_defences"):
        save_classifier(classifier(postprocessing_defences=Rounded(2)), tmp_path)
    with pytest.raises(ValueError, match="the preprocessing CutoutPyTorch, expected a"):
        save_classifier(classifier(preprocessing=CutoutPyTorch(2)), tmp_path)
    foreign = torch.optim.SGD(network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match="an optimizer with parameters of another network"):
        save_classifier(classifier(optimizer=foreign), tmp_path)
    own = type("OwnSGD", (torch.optim.SGD,), {})(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"the optimizer OwnSGD, expected one of torch\.optim or None"):
        save_classifier(classifier(model, optimizer=own), tmp_path)
    with pytest.raises(TypeError, match="got a Tensor, expected JSON data"):
        save_classifier(classifier(), tmp_path, extra={"x": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def change(folder, **entries):
    """Change a record as someone who knows how its digest is made."""
    path = folder / "classifier.json"
    path.write_text(json.dumps(seal({**json.loads(path.read_text()), **entries})))


SGD = {"class": "SGD", "groups": [{"parameters": ["layers.0.weight"], "settings": {"lr": 0.1, "momentum": 0.9}}]}
RECIPE = {"name": "small-cnn", "input_shape": [1, 8, 8], "nb_classes": 10, "channels": 4, "hidden": 8}


def sgd(**settings):
    return {"optimizer": {**SGD, "groups": [{**SGD["groups"][0], "settings": {"lr": 0.1, **settings}}]}}


def loss(name="CrossEntropyLoss", **arguments):
    return {"loss": {"class": name, "arguments": arguments}}


@pytest.mark.parametrize(
    ("entries", "named"),
    [
        ({"format": "classifier 9"}, "got the format 'classifier 9', expected 'art-robust-plugins classifier 2'."),
        (loss("os.system"), "loss.class: got the class 'os.system', expected one of torch.nn in torch"),
        (loss("Linear", in_features=10**9, out_features=10**9), "loss.class: got the class 'Linear'"),
        (loss(weights=[1]), "loss.arguments.weights: got an unknown entry"),
        (loss(label_smoothing=5), "loss.arguments.label_smoothing: got 5,"),
        (loss(reduction="medium"), "loss.arguments.reduction: got 'medium'"),
        (loss(weight={"tensor": [1, 2, 3]}), "loss.arguments.weight.tensor: got [1, 2, 3]"),
        ({"loss": {}}, "loss.class: got no such entry"),
        ({"optimizer": {"class": "Optimizer9", "groups": []}}, "got the class 'Optimizer9', expected one of torch.opt"),
        ({"optimizer": {"class": "Optimizer", "groups": []}}, "got the class 'Optimizer'"),
        (sgd(momentums=0.9), "groups[0].settings.momentums: got an unknown entry"),
        (sgd(momentum="0.9"), "groups[0].settings.momentum: got '0.9'"),
        (sgd(nesterov=1), "groups[0].settings.nesterov: got 1, expected true or false"),
        (sgd(momentum=-3), "groups[0].settings: got {'lr': 0.1, 'momentum': -3}"),
        ({"optimizer": {**SGD, "groups": SGD["groups"] * 2}}, "optimizer.groups: got a parameter twice"),
        ({"model": 3}, "model: got 3, expected a table"),
        ({"model": {"class": "A", "recipe": {**RECIPE, "name": "lenett"}}}, "lenet"),
        ({"model": {"class": "A", "recipe": {**RECIPE, "channels": 10**6}}}, "expected (1000000, 1, 3, 3)"),
        ({"model": {"class": "A", "recipe": {**RECIPE, "channels": 10**9}}}, "model.recipe: got arguments that make"),
        ({"model": {"class": "A", "recipe": {**RECIPE, "channels": 1e300}}}, "recipe.channels: got 1e+300"),
        ({"model": {"class": "A", "recipe": {**RECIPE, "channels": -4}}}, "model.recipe: got arguments that make no"),
        (
            {"model": {"class": "A", "recipe": {**RECIPE, "name": "wide-resnet", "depth": 6 * 10**8 + 4}}},
            "model.recipe.depth: got 600000004, but there are 8 weights",
        ),
        ({"preprocessing": [0.1, 0.0]}, "preprocessing[1]: got 0.0, expected a standard deviation other than 0"),
        ({"preprocessing": [0.1, 1e-60]}, "preprocessing[1]: got 1e-60"),
        ({"preprocessing": [0.1, 1e60]}, "preprocessing[1]: got 1e+60"),
        ({"preprocessing": [[0.1, 0.2], 1.0]}, "preprocessing[0]: got [0.1, 0.2]"),
        ({"preprocessing": [[[0.1], [0.2, 0.3]], 1.0]}, "preprocessing[0]: got [[0.1], [0.2, 0.3]]"),
        ({"clip_values": [1.0, 0.0]}, "clip_values: got [1.0, 0.0]"),
        ({"clip_values": [1.0, 1.0]}, "clip_values: got [1.0, 1.0]"),
        ({"clip_values": [0.0]}, "clip_values: got 1 entries, expected 2"),
        ({"clip_values": ["0", "1"]}, "clip_values[0]: got '0'"),
        ({"nb_classes": 12}, "nb_classes: got 12, but the network's outputs for 2 inputs are (2, 10)"),
        ({"nb_classes": 10.0}, "nb_classes: got 10.0, expected a whole number"),
        ({"nb_classes": True}, "nb_classes: got True"),
        ({"input_shape": [1, 9, 16]}, "input_shape: got (1, 9, 16), which the network does not take"),
        ({"input_shape": [1, 2**20, 2**20]}, "input_shape: got [1, 1048576, 1048576]"),
        ({"input_shape": [1, 2**13, 2**13]}, "input_shape: got (1, 8192, 8192), which the network does not take"),
        ({"input_shape": []}, "input_shape: got []"),
        ({"channels_first": 1}, "channels_first: got 1, expected true or false"),
        ({"estimator": "Pickle"}, "estimator: got 'Pickle'"),
        ({"use_amp": "yes"}, "use_amp: got 'yes'"),
        ({"extra": []}, "extra: got [], expected a table"),
        ({"versions": {"torch": "x" * 999, "numpy": 3}}, "versions.numpy: got 3, expected a text"),
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
    with pytest.raises(ValueError, match=r"classifier\.json: sha256: got entries that were changed"):
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


def test_a_named_group_of_an_optimizer_comes_back(tmp_path):
    model = network()
    groups = [{"params": list(model.parameters()), "name": "all"}]
    save_classifier(classifier(model, optimizer=torch.optim.SGD(groups, lr=0.1)), tmp_path)
    assert load_classifier(tmp_path).optimizer.param_groups[0]["name"] == "all"


def test_missing_and_foreign_files_of_a_classifier(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"classifier\.json: no such file, expected a JSON file"):
        load_classifier(tmp_path)
    save_classifier(classifier(), tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(
        ValueError, match=r"weights\.safetensors: got a pickle, which is never opened, expected a safetensors file"
    ):
        load_classifier(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors: no such file"):
        load_classifier(tmp_path)


def test_a_device_that_art_cannot_use(tmp_path):
    save_classifier(classifier(), tmp_path)
    with pytest.raises(ValueError, match="device: got 'meta', expected 'cpu'"):
        load_classifier(tmp_path, device="meta")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_classifier_comes_back_on_the_gpu(tmp_path):
    saved = classifier()
    save_classifier(saved, tmp_path)
    loaded = load_classifier(tmp_path, device="cuda")
    assert next(loaded.model.parameters()).is_cuda
    np.testing.assert_allclose(loaded.predict(X), saved.predict(X), rtol=1e-5)

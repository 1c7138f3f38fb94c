"""A classifier comes back as it was saved."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod
from art.defences.postprocessor import Rounded
from art.defences.preprocessor import CutoutPyTorch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing
from art.estimators.classification import PyTorchClassifier
from builders import make_linear
from torch import nn

from art_robust_plugins.bridge import saved_formats
from art_robust_plugins.files import (
    load_tensors,
    save_tensors,
)
from art_robust_plugins.models import create_model
from art_robust_plugins.saved_classifier import (
    DefenceFormat,
    describe_classifier,
    load_classifier,
    save_classifier,
)

from .builders import SHAPE, OwnLoss, X, change, classifier, network


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


def test_what_the_file_cannot_hold_is_asked_for(tmp_path):
    cutout = CutoutPyTorch(2)
    saved = classifier(make_linear(), OwnLoss(), preprocessing_defences=cutout)
    save_classifier(saved, tmp_path)
    given = {}
    for name, value, sentence in [
        ("model", make_linear(), "model: got none,"),
        ("preprocessing_defences", cutout, "preprocessing_defences: got none,"),
        ("loss", OwnLoss(), "loss: got none,"),
    ]:
        with pytest.raises(ValueError) as refusal:  # noqa: PT011
            load_classifier(tmp_path, **given)
        assert str(refusal.value).startswith(sentence)
        given[name] = value
    loaded = load_classifier(tmp_path, **given)
    assert np.array_equal(loaded.predict(X), saved.predict(X))
    with pytest.raises(ValueError, match="loss: got MSELoss,"):
        load_classifier(tmp_path, **{**given, "loss": nn.MSELoss()})


def test_defences_that_were_not_saved_are_refused(tmp_path):
    save_classifier(classifier(), tmp_path)
    with pytest.raises(ValueError, match="preprocessing_defences: got CutoutPyTorch,"):
        load_classifier(tmp_path, preprocessing_defences=[CutoutPyTorch(2)])


def test_a_changed_network_is_the_callers_own(tmp_path):
    model = network()
    model.layers.append(nn.Linear(10, 10))
    save_classifier(classifier(model), tmp_path)
    with pytest.raises(ValueError, match="model: got none,"):
        load_classifier(tmp_path)


def test_a_recipe_of_another_kind_is_not_ours(tmp_path):
    model = make_linear()
    model.recipe = "flour"
    save_classifier(classifier(model), tmp_path)
    assert describe_classifier(tmp_path)["model"] == {"class": "Sequential", "recipe": None}


def test_a_recipe_can_be_given_and_must_fit(tmp_path):
    model = network()
    recipe, model.recipe = model.recipe, None
    save_classifier(classifier(model), tmp_path, model=recipe)
    assert load_classifier(tmp_path).model.recipe == recipe
    with pytest.raises(ValueError, match=r"model: got 'layers\.0\.weight' of shape \(4, 1, 3, 3\),"):
        save_classifier(classifier(model), tmp_path, model={**recipe, "channels": 5})
    with pytest.raises(ValueError, match="model: "):
        save_classifier(classifier(make_linear()), tmp_path, model=recipe)


@pytest.mark.parametrize(
    ("other", "difference"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)), "got the weights '1.bias',"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Linear(10, 10)), "got no weights '2.weight',"),
        (make_linear(classes=9), "got '1.weight' of shape (10, 64),"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10).double()), "got '1.weight' of type torch.float32,"),
    ],
)
def test_weights_that_do_not_fit(tmp_path, other, difference):
    save_classifier(classifier(make_linear()), tmp_path)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        load_classifier(tmp_path, model=other)
    assert str(refusal.value).startswith(f"{tmp_path / 'weights.safetensors'}: {difference}")


def test_weights_of_another_saving_are_refused(tmp_path):
    """As when a second saving is killed between the two files."""
    save_classifier(classifier(), tmp_path / "a")
    save_classifier(classifier(), tmp_path / "b")
    changed = load_tensors(tmp_path / "a" / "weights.safetensors")
    save_tensors(tmp_path / "b" / "weights.safetensors", {name: tensor + 1 for name, tensor in changed.items()})
    with pytest.raises(ValueError, match=r"weights\.safetensors: got .*classifier\.json"):
        load_classifier(tmp_path / "b")


def test_estimators_that_cannot_come_back_are_refused(tmp_path):
    model = network()
    with pytest.raises(TypeError, match="classifier: got NoneType,"):
        save_classifier(None, tmp_path)
    smoothed = PyTorchRandomizedSmoothing(model, nn.CrossEntropyLoss(), SHAPE, 10)
    with pytest.raises(TypeError, match="got a PyTorchRandomizedSmoothing,"):
        save_classifier(smoothed, tmp_path)
    with pytest.raises(ValueError, match="postprocessing_defences"):
        save_classifier(classifier(postprocessing_defences=Rounded(2)), tmp_path)
    with pytest.raises(ValueError, match=r"classifier: .*CutoutPyTorch"):
        save_classifier(classifier(preprocessing=CutoutPyTorch(2)), tmp_path)
    foreign = torch.optim.SGD(network().parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"optimizer .*another network"):
        save_classifier(classifier(optimizer=foreign), tmp_path)
    own = type("OwnSGD", (torch.optim.SGD,), {})(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"classifier: .*OwnSGD"):
        save_classifier(classifier(model, optimizer=own), tmp_path)
    with pytest.raises(TypeError, match="got a Tensor,"):
        save_classifier(classifier(), tmp_path, extra={"x": torch.zeros(1)})
    assert not list(tmp_path.iterdir())


def test_a_named_group_of_an_optimizer_comes_back(tmp_path):
    model = network()
    groups = [{"params": list(model.parameters()), "name": "all"}]
    save_classifier(classifier(model, optimizer=torch.optim.SGD(groups, lr=0.1)), tmp_path)
    assert load_classifier(tmp_path).optimizer.param_groups[0]["name"] == "all"


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("code of a file was run",))


def test_missing_and_foreign_files_of_a_classifier(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder: got .*classifier\.json"):
        load_classifier(tmp_path)
    save_classifier(classifier(), tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ValueError, match=r"weights\.safetensors: got a pickle,"):
        load_classifier(tmp_path)
    (tmp_path / "weights.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"weights\.safetensors: no such file"):
        load_classifier(tmp_path)


def test_a_device_that_art_cannot_use(tmp_path):
    save_classifier(classifier(), tmp_path)
    with pytest.raises(ValueError, match="device: got 'meta',"):
        load_classifier(tmp_path, device="meta")


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_classifier_comes_back_on_the_gpu(tmp_path):
    saved = classifier()
    save_classifier(saved, tmp_path)
    loaded = load_classifier(tmp_path, device="cuda")
    assert next(loaded.model.parameters()).is_cuda
    np.testing.assert_allclose(loaded.predict(X), saved.predict(X), rtol=1e-5)


def test_arguments_of_another_kind_are_named(tmp_path):
    save_classifier(classifier(), tmp_path)
    for name, given in (("extra", "x"), ("extra", True), ("extra", X), ("model", "x"), ("model", [None])):
        with pytest.raises(TypeError, match=f"^{name}: got a"):
            save_classifier(classifier(), tmp_path / "new", **{name: given})
    with pytest.raises(ValueError, match=r"^model: got no 'name'"):
        save_classifier(classifier(), tmp_path / "new", model={"x": 1})
    for folder in (None, 3, b"x", "\0"):
        with pytest.raises(ValueError, match=r"^folder: got "):
            save_classifier(classifier(), folder)
        with pytest.raises(ValueError, match=r"^folder: got "):
            load_classifier(folder)
    for device in ("x", 0, True, 1.5):
        with pytest.raises(ValueError, match=r"^device: got "):
            load_classifier(tmp_path, device=device)
    for name in ("model", "loss"):
        with pytest.raises(TypeError, match=f"^{name}: got a"):
            load_classifier(tmp_path, **{name: object()})
    assert not (tmp_path / "new").exists()


class Shift(PreprocessorPyTorch):
    """A defence of a user's own, with weights."""

    def __init__(self, size):
        super().__init__(device_type="cpu", is_fitted=True, apply_fit=True, apply_predict=True)
        self.size, self.layer = size, nn.Linear(size, size)

    def forward(self, x, y=None):
        return self.layer(x), y


class ShiftFormat(DefenceFormat):
    kind = Shift

    def settings(self, defence):
        return {"size": defence.size}

    def module(self, defence):
        return defence.layer

    def check_settings(self, settings):
        settings["size"].whole(1, 100)

    def check_size(self, settings, weights, place):
        if len(weights.get("bias", ())) != settings["size"]:
            raise ValueError(f"{place}: got the size {settings['size']}, expected that of its weights.")

    def make(self, settings):
        return Shift(**settings)


def test_a_defence_of_ones_own_describes_itself(tmp_path, monkeypatch):
    saved = classifier(preprocessing_defences=[CutoutPyTorch(2, apply_predict=False), Shift(8)])
    save_classifier(saved, tmp_path / "unknown")
    with pytest.raises(ValueError, match="preprocessing_defences: got none,"):
        load_classifier(tmp_path / "unknown")
    monkeypatch.setitem(saved_formats.DEFENCES, "Shift", ShiftFormat())
    save_classifier(saved, tmp_path / "known")
    loaded = load_classifier(tmp_path / "known", preprocessing_defences=CutoutPyTorch(2, apply_predict=False))
    assert np.array_equal(loaded.predict(X), saved.predict(X))
    entries = describe_classifier(tmp_path / "known")["preprocessing_defences"]
    change(tmp_path / "known", preprocessing_defences=[entries[0], {"class": "Shift", "settings": {"size": 9}}])
    with pytest.raises(ValueError, match="got the size 9,"):
        load_classifier(tmp_path / "known", preprocessing_defences=CutoutPyTorch(2, apply_predict=False))

"""Augmented classifiers: made, cloned, trained by every trainer, attacked, certified, saved and loaded."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.defences.trainer import Trainer
from art.estimators.classification import PyTorchClassifier
from torch import nn

from art_robust_plugins import (
    PyTorchLipschitzCertifier,
    PyTorchWeightMapClassifier,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
    WeightMapPreprocessor,
    available_methods,
    create,
    insert_weight_maps,
    load_classifier,
    save_classifier,
    weight_maps,
)
from art_robust_plugins.data import Dataset
from art_robust_plugins.models import create_model
from art_robust_plugins.registry import parameters_of
from art_robust_plugins.saved_classifier import describe_classifier

from .builders import SHAPE, classifier
from .networks import NETWORKS, Functional

X = np.random.default_rng(0).random((6, *SHAPE), dtype=np.float32)


def augment(network: nn.Module | None = None, **options) -> PyTorchWeightMapClassifier:
    made = PyTorchWeightMapClassifier.from_classifier(classifier(network), **options)
    for layer in made.weight_maps.values():
        nn.init.uniform_(layer.map, 0.5, 1.5)
    return made


def held(optimizer: torch.optim.Optimizer) -> list[int]:
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def test_a_copy_is_augmented_and_the_classifier_stays_as_it_is() -> None:
    plain = classifier(preprocessing=(0.2, 0.5))
    before = plain.predict(X)
    made = PyTorchWeightMapClassifier.from_classifier(plain, kernel="identity")
    assert isinstance(made, PyTorchClassifier)
    assert list(made.weight_maps) == ["layers.1", "layers.4"]
    assert np.array_equal(made.predict(X), before)
    assert weight_maps(plain.model) == {}
    assert held(plain.optimizer) == [id(p) for p in plain.model.parameters()]
    assert sorted(held(made.optimizer)) == sorted(id(p) for p in made.model.parameters())
    assert np.array_equal(made.clip_values, plain.clip_values)
    assert made.preprocessing is plain.preprocessing
    assert not set(held(plain.optimizer)) & set(held(made.optimizer))


def test_the_optimizer_and_its_scheduler_go_on_with_the_maps() -> None:
    network = create_model("small-cnn", SHAPE, 10, channels=4, hidden=16)
    optimizer = torch.optim.SGD(network.named_parameters(), 0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    made = PyTorchWeightMapClassifier(network, nn.CrossEntropyLoss(), SHAPE, 10, optimizer, clip_values=(0, 1))
    assert made.optimizer is optimizer
    assert optimizer.param_groups[0]["param_names"][-1] == "layers.4.map"
    before = {name: layer.map.detach().clone() for name, layer in made.weight_maps.items()}
    StandardTrainer(made).fit(X, np.arange(6), nb_epochs=2, scheduler=scheduler, verbose=False)
    assert optimizer.param_groups[0]["lr"] == 0.025
    assert all(not torch.equal(layer.map, before[name]) for name, layer in made.weight_maps.items())


def test_clones_are_fresh_and_alike() -> None:
    made = augment(kernel="unsharp", alpha=0.5, bias=True)
    clone = made.clone_for_refitting()
    assert type(clone) is PyTorchWeightMapClassifier
    assert clone.get_params().keys() == made.get_params().keys()
    assert (clone.kernel, clone.alpha, clone.bias) == ("unsharp", 0.5, True)
    assert [layer.settings for layer in clone.weight_maps.values()] == [m.settings for m in made.weight_maps.values()]
    assert all(layer.map.eq(1).all() for layer in clone.weight_maps.values())
    assert all(not layer.map.eq(1).all() for layer in made.weight_maps.values())
    assert sorted(held(clone.optimizer)) == sorted(id(p) for p in clone.model.parameters())
    clone.fit(X, np.arange(6), nb_epochs=1, batch_size=3)
    assert any(not layer.map.eq(1).all() for layer in clone.weight_maps.values())
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert np.array_equal(other.predict(X), made.predict(X))


def test_a_copy_has_a_map_of_the_input_of_its_own(tmp_path) -> None:
    preprocessor = WeightMapPreprocessor(SHAPE)
    plain = classifier(preprocessing_defences=preprocessor)
    preprocessor.join(plain)
    made = PyTorchWeightMapClassifier.from_classifier(plain)
    (own,) = made.preprocessing_defences
    assert own is not preprocessor
    assert id(own.layer.map) in held(made.optimizer)
    assert not set(held(plain.optimizer)) & set(held(made.optimizer))
    StandardTrainer(made).fit(X, np.arange(6), nb_epochs=1, verbose=False)
    assert not own.layer.map.eq(1).all()
    assert preprocessor.layer.map.eq(1).all()
    save_classifier(made, tmp_path)
    assert np.array_equal(load_classifier(tmp_path).predict(X), made.predict(X))


def test_a_network_with_maps_keeps_them_and_joins_the_optimizer() -> None:
    network = create_model("small-cnn", SHAPE, 10, channels=4, hidden=16)
    optimizer = torch.optim.SGD(network.parameters(), 0.1)  # before the insertion
    insert_weight_maps(network, SHAPE, kernel="unsharp", alpha=0.5, inplace=True)
    arguments = (network, nn.CrossEntropyLoss(), SHAPE, 10, optimizer)
    for _ in range(2):
        made = PyTorchWeightMapClassifier(*arguments, kernel="unsharp", alpha=0.5, where=["layers.1", "layers.4"])
        assert sorted(held(optimizer)) == sorted(id(p) for p in network.parameters())
    assert (made.kernel, made.bias) == ("unsharp", False)
    for settings, sentence in [
        ({"kernel": "smoothing"}, "kernel: got 'smoothing' "),
        ({"alpha": 1}, "alpha: got 1 "),
        ({"where": "layers.1"}, r"where: got 'layers\.1' "),
        ({"where": nn.ReLU}, "where: got <class"),
        ({"kernel_size": 3.0}, r"kernel_size: got 3\.0,"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            PyTorchWeightMapClassifier(*arguments, **settings)
        with pytest.raises(ValueError, match=sentence):
            create("weight-map", made, **settings)
        with pytest.raises(ValueError, match=sentence):
            made.set_params(**settings)
    made.set_params(kernel="unsharp", clip_values=(0.0, 1.0))
    assert np.array_equal(made.clip_values, (0, 1))
    with pytest.raises(ValueError, match="Unexpected parameter `kernels`"):
        made.set_params(kernels="unsharp")


def test_maps_that_differ_have_no_common_setting() -> None:
    network = insert_weight_maps(create_model("small-cnn", SHAPE, 10, channels=4, hidden=16), SHAPE)
    insert_weight_maps(network, SHAPE, where="layers.3", kernel="unsharp", inplace=True)
    made = PyTorchWeightMapClassifier.from_classifier(classifier(network))
    assert (made.where, made.kernel, made.kernel_size) == (["layers.1", "layers.3", "layers.4"], None, 3)
    assert list(made.clone_for_refitting().weight_maps) == made.where


@pytest.mark.parametrize("name", sorted(n for n, kind in available_methods().items() if issubclass(kind, Trainer)))
@pytest.mark.parametrize("kind", ["sequential", "functional", "resnet"])
def test_every_trainer_trains_the_maps(name: str, kind: str, digits: Dataset) -> None:
    made = augment(NETWORKS[kind][0]())
    parameters = dict(getattr(available_methods()[name], "demo", {}))
    known = parameters_of(available_methods()[name])
    if "threat" in known:
        parameters["threat"] = ThreatModel("Linf", 0.1)
    before = {place: layer.map.detach().clone() for place, layer in made.weight_maps.items()}
    trainer = create(name, made, options=TrainingOptions(seed=0), **parameters)
    trainer.fit(digits.x_train[:128], digits.y_train[:128], nb_epochs=1, batch_size=64, verbose=False)
    assert np.isfinite(trainer.history[-1]["loss"])
    assert all(not torch.equal(layer.map, before[place]) for place, layer in made.weight_maps.items())


def test_a_resumed_run_equals_one_that_was_not_stopped(digits: Dataset, tmp_path) -> None:
    def run(epochs: int, folder: str, resume: bool = False) -> PyTorchWeightMapClassifier:
        made = PyTorchWeightMapClassifier.from_classifier(classifier())
        options = TrainingOptions(seed=0, checkpoint_dir=tmp_path / folder, resume=resume)
        StandardTrainer(made, options=options).fit(
            digits.x_train[:64], digits.y_train[:64], nb_epochs=epochs, batch_size=32, verbose=False
        )
        return made

    whole = run(3, "whole")
    run(1, "parts")
    resumed = run(3, "parts", resume=True)
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def test_attacks_of_art_see_the_maps() -> None:
    made = augment(kernel="unsharp")
    y = np.eye(10, dtype=np.float32)[:6]
    gradient = made.loss_gradient(X, y)
    x = torch.from_numpy(X).requires_grad_()
    (expected,) = torch.autograd.grad(nn.functional.cross_entropy(made.model(x), torch.arange(6)), x)
    np.testing.assert_allclose(gradient, expected.numpy(), rtol=1e-5, atol=1e-8)
    for attack in (
        FastGradientMethod(made, eps=0.1),
        ProjectedGradientDescent(made, eps=0.1, max_iter=2, verbose=False),
    ):
        adversarial = attack.generate(X, y)
        assert made.compute_loss(adversarial, y).mean() > made.compute_loss(X, y).mean()


@pytest.mark.parametrize("kernel", ["smoothing", "unsharp"])
def test_certified_radii_hold(kernel: str, digits: Dataset) -> None:
    made = PyTorchWeightMapClassifier.from_classifier(classifier(), kernel=kernel, padding_mode="replicate")
    StandardTrainer(made, options=TrainingOptions(seed=0)).fit(
        digits.x_train[:512], digits.y_train[:512], nb_epochs=3, batch_size=64, verbose=False
    )
    certifier = PyTorchLipschitzCertifier.from_classifier(made)
    x = digits.x_test[:50]
    prediction, radius = certifier.certify(x)
    again, same = certifier.certify(x)
    assert np.array_equal(radius, same)
    assert np.array_equal(prediction, again)
    certified = radius > 0
    assert certified.mean() > 0.9
    start = torch.from_numpy(x[certified])
    labels = torch.from_numpy(prediction[certified])
    limits = torch.from_numpy(radius[certified]).float().view(-1, 1, 1, 1)
    moved = start.clone()
    for _ in range(20):
        moved.requires_grad_()
        (gradient,) = torch.autograd.grad(
            nn.functional.cross_entropy(made.model(moved), labels, reduction="sum"), moved
        )
        step = gradient / gradient.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        change = moved.detach() + 0.25 * limits * step - start
        length = change.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        moved = start + change * (limits / length.clamp_min(1e-12)).clamp_max(1)
    assert (made.model(moved).argmax(dim=1) == labels).all()


def test_saved_and_loaded(tmp_path) -> None:
    made = augment(kernel="unsharp", alpha=0.5, kernel_size=3)
    save_classifier(made, tmp_path / "own")
    loaded = load_classifier(tmp_path / "own")
    assert type(loaded) is PyTorchWeightMapClassifier
    assert (loaded.kernel, loaded.alpha, loaded.where) == ("unsharp", 0.5, ["layers.1", "layers.4"])
    assert np.array_equal(loaded.predict(X), made.predict(X))
    names = dict(loaded.model.named_parameters())
    assert {id(p) for p in names.values()} == set(held(loaded.optimizer))
    assert loaded.optimizer.state_dict()["param_groups"] == made.optimizer.state_dict()["param_groups"]
    clone = loaded.clone_for_refitting()
    assert clone.kernel == "unsharp"

    # A plain estimator of an augmented network is one again.
    network = insert_weight_maps(create_model("small-cnn", SHAPE, 10), SHAPE)
    save_classifier(classifier(network), tmp_path / "plain")
    assert describe_classifier(tmp_path / "plain")["model"]["recipe"]["name"] == "small-cnn"
    assert type(load_classifier(tmp_path / "plain")) is PyTorchClassifier
    assert list(weight_maps(load_classifier(tmp_path / "plain").model)) == ["layers.1", "layers.4"]


def test_networks_of_the_caller_come_back_with_maps(tmp_path) -> None:
    made = augment(Functional())
    save_classifier(made, tmp_path)
    with pytest.raises(ValueError, match="model: got none,"):
        load_classifier(tmp_path)
    for network in (Functional(), insert_weight_maps(Functional(), SHAPE)):
        loaded = load_classifier(tmp_path, model=network)
        assert np.array_equal(loaded.predict(X), made.predict(X))
    with pytest.raises(ValueError, match=r"model: got the weight maps .*unsharp.*"):
        load_classifier(tmp_path, model=insert_weight_maps(Functional(), SHAPE, kernel="unsharp"))


def test_bad_input() -> None:
    with pytest.raises(TypeError, match="classifier: got int"):
        PyTorchWeightMapClassifier.from_classifier(3)
    with pytest.raises(ValueError, match="kernel: got 'blur'"):
        PyTorchWeightMapClassifier.from_classifier(classifier(), kernel="blur")
    with pytest.raises(ValueError, match="where: got 'nowhere', "):
        create("weight-map", classifier(), where="nowhere")
    pooled = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    with pytest.raises(ValueError, match=r"x: got shape \[1, 4, 9, 9\],"):
        augment(pooled).model(torch.rand(1, 1, 9, 9))
    wrong, y = np.zeros((2, 1, 9, 9), dtype=np.float32), np.eye(10, dtype=np.float32)[:2]
    sentence = r"x: got shape \(2, 1, 9, 9\),"
    for call in (
        augment(pooled).predict,
        lambda x: augment(pooled).fit(x, y, nb_epochs=1),
        lambda x: augment(pooled).loss_gradient(x, y),
        lambda x: augment(pooled).class_gradient(x),
    ):
        with pytest.raises(ValueError, match=sentence):
            call(wrong)
    generated = classifier()
    generated.model.stream = (number for number in range(3))
    with pytest.raises(ValueError, match=r"classifier: .*\(TypeError: .*PyTorchWeightMapClass"):
        PyTorchWeightMapClassifier.from_classifier(generated)

"""Trainings that end at chance, and classes without images."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import make_linear
from torch import nn
from torch.optim import SGD

from art_robust_plugins import (
    StandardTrainer,
)
from art_robust_plugins.data import load_data
from art_robust_plugins.experiments import TrainingPlan, train_run

from .small import X, Y, classifier, fit, network


def test_a_training_that_ends_at_chance_is_told_of() -> None:
    still = lambda weights: SGD(weights, 1e-9)  # noqa: E731
    with pytest.warns(UserWarning, match="training ended at chance: after 10 epochs"):
        fit(StandardTrainer(classifier(optimizer=still)), nb_epochs=10)
    batches = [(torch.from_numpy(X[i : i + 30]), torch.from_numpy(Y[i : i + 30])) for i in range(0, 300, 30)]
    with pytest.warns(UserWarning, match="training ended at chance"):
        StandardTrainer(classifier(optimizer=still)).fit_loader(batches, nb_epochs=6, verbose=False)


@pytest.mark.parametrize("case", ["learned", "short", "imbalanced", "imbalanced, squared error", "class weights"])
def test_a_network_that_has_learned_something_is_not_told_of(case: str) -> None:
    rare = (Y == 3).astype(int)  # one class holds 90 %
    loss = {"imbalanced, squared error": nn.MSELoss(), "class weights": nn.CrossEntropyLoss(torch.tensor([1.0, 9.0]))}
    several = case in ("learned", "short")
    model = network() if several else make_linear(classes=2)
    estimator = classifier(model, loss.get(case), nb_classes=10 if several else 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(StandardTrainer(estimator), y=Y if several else rare, nb_epochs=1 if case == "short" else 12)


def test_a_class_without_images_is_told_of_once(tmp_path: Path) -> None:
    without = np.where(Y == 4, 5, Y)
    with pytest.warns(UserWarning, match="y: got no image of class 4 of 10 classes") as told:
        fit(StandardTrainer(classifier()), y=without)
    assert len(told) == 1
    batches = [(torch.from_numpy(X[i::5]), torch.from_numpy(without[i::5])) for i in range(5)]
    with pytest.warns(UserWarning, match="y: got no image of class 4 of 10 classes") as told:
        StandardTrainer(classifier()).fit_loader(batches, nb_epochs=2, verbose=False)
    assert len(told) == 1

    arrays = {"x_train": X[:150], "y_train": Y[:150] + 1, "x_test": X[:10], "y_test": Y[:10] + 1}
    np.savez(tmp_path / "from-one.npz", **arrays)
    with pytest.warns(UserWarning, match="y_train: got no image of class 0 of 11 classes"):
        data = load_data(tmp_path / "from-one.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_run(
            TrainingPlan("standard", network="small-cnn", epochs=1), data, tmp_path / "run", seed=0, verbose=False
        )


def test_few_images_may_leave_classes_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(StandardTrainer(classifier()), x=X[:9], y=Y[:9])

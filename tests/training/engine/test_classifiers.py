"""Every set-up of a ``PyTorchClassifier`` trains: losses, optimizers, preprocessing, axes, ranges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_robust_plugins import BANGTrainer, StandardTrainer, ThreatModel, TrainingOptions

from ..builders import weights
from .digits import OPTIMIZERS, X, Y, accuracy, classifier, network


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MultiMarginLoss(), nn.MSELoss()])
def test_losses_and_optimizers(loss: nn.Module, optimizer: str) -> None:
    trained = classifier(loss=loss, optimizer=OPTIMIZERS[optimizer])
    StandardTrainer(trained, options=TrainingOptions(seed=0)).fit(X, Y, nb_epochs=8, batch_size=32, verbose=False)
    assert accuracy(trained) > 0.7


def test_nll_loss_with_a_log_softmax_network() -> None:
    model = nn.Sequential(network(), nn.LogSoftmax(dim=1))
    trained = PyTorchClassifier(model, nn.NLLLoss(), (1, 8, 8), 10, optimizer=torch.optim.Adam(model.parameters()))
    StandardTrainer(trained).fit(X, Y, nb_epochs=5, verbose=False)
    assert accuracy(trained) > 0.5


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.BCELoss()])
def test_a_binary_network_with_one_output(loss: nn.Module) -> None:
    rows = Y < 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Identity())
    if isinstance(loss, nn.BCELoss):
        model[2] = nn.Sigmoid()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    trained = PyTorchClassifier(model, loss, (1, 8, 8), 2, optimizer=optimizer, clip_values=(0, 1))
    trainer = StandardTrainer(trained, threat=ThreatModel("Linf", 0.1))
    trainer.fit(X[rows], Y[rows], validation_data=(X[rows], Y[rows]), nb_epochs=10, verbose=False)
    assert trainer.history[-1]["validation_accuracy"] > 0.95
    assert 0 < trainer.history[-1]["validation_robust_accuracy"] <= trainer.history[-1]["validation_accuracy"]


class Brighten(PreprocessorPyTorch):
    """Adds a constant, and counts its calls."""

    def __init__(self, amount: float, **settings: Any) -> None:
        super().__init__(device_type="cpu", is_fitted=True, **settings)
        self.amount, self.calls = amount, 0

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        self.calls += 1
        return x + self.amount, y


class SoftLabels(PreprocessorPyTorch):
    """Mixes each label with the uniform distribution, in training only, as mixup-like defences do."""

    def __init__(self) -> None:
        super().__init__(device_type="cpu", is_fitted=True, apply_fit=True, apply_predict=False)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return x, 0.5 * y + 0.05


def test_preprocessing_is_that_of_the_classifier() -> None:
    """Mean and deviation, and a defence of fit and predict: training sees what predict sees."""
    defended = classifier(preprocessing=(0.3, 0.5), preprocessing_defences=Brighten(0.25))
    StandardTrainer(defended, options=TrainingOptions(shuffle=False)).fit(X[:64], Y[:64], nb_epochs=1, verbose=False)
    plain = classifier(clip_values=None)
    prepared = (X[:64] + 0.25 - 0.3) / 0.5
    StandardTrainer(plain, options=TrainingOptions(shuffle=False)).fit(prepared, Y[:64], nb_epochs=1, verbose=False)
    for one, other in zip(weights(defended), weights(plain), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_defences_that_act_in_fit_alone_act_in_every_batch_and_not_in_validation() -> None:
    defence = Brighten(0.1, apply_fit=True, apply_predict=False)
    trainer = StandardTrainer(classifier(preprocessing_defences=defence))
    trainer.fit(X[:128], Y[:128], validation_data=(X[128:160], Y[128:160]), batch_size=32, nb_epochs=2, verbose=False)
    assert defence.calls == 8


def test_defences_in_an_order_that_cannot_be_kept_are_refused() -> None:
    both, fit_only = Brighten(0.1), Brighten(0.2, apply_fit=True, apply_predict=False)
    StandardTrainer(classifier(preprocessing_defences=[fit_only, both]))
    with pytest.raises(ValueError, match=r"Brighten .*Brighten"):
        StandardTrainer(classifier(preprocessing_defences=[both, fit_only]))


def test_parameters_outside_the_optimizer_keep_no_gradients() -> None:
    trained = classifier()
    trained._optimizer = torch.optim.SGD(trained.model[7].parameters(), 0.1)
    StandardTrainer(trained).fit(X[:128], Y[:128], batch_size=64, nb_epochs=1, verbose=False)
    after_two_steps = trained.model[0].weight.grad.clone()
    alone = classifier()
    alone._optimizer = torch.optim.SGD(alone.model[7].parameters(), 0.1)
    options = TrainingOptions(seed=0)
    StandardTrainer(alone, options=options).fit(X[:64], Y[:64], batch_size=64, nb_epochs=1, verbose=False)
    assert after_two_steps.norm() < 2 * alone.model[0].weight.grad.norm()


def test_defences_that_change_labels() -> None:
    seen: list[Tensor] = []

    class Watching(BANGTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(y)
            return super().training_loss(x, y)

    Watching(classifier(preprocessing_defences=SoftLabels()), ratio=0.5).fit(X[:64], Y[:64], nb_epochs=1, verbose=False)
    assert seen[0].shape == (64, 10)
    assert seen[0].max() == pytest.approx(0.55)


def test_channels_last_classifiers() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.movedim(-1, 1))

    model = Last()
    optimizer = torch.optim.Adam(model.parameters())
    trained = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        (8, 8, 1),
        10,
        optimizer=optimizer,
        channels_first=False,
        clip_values=(0, 1),
        preprocessing=(np.array([0.3]), np.array([0.5])),
    )
    trainer = StandardTrainer(trained, threat=ThreatModel("L2", 0.5))
    last = X.transpose(0, 2, 3, 1)
    trainer.fit(last, Y, validation_data=(last[:50], Y[:50]), nb_epochs=4, batch_size=32, verbose=False)
    assert (trained.predict(last).argmax(axis=1) == Y).mean() > 0.7


def test_tensors_and_clip_values_of_each_feature() -> None:
    low, high = np.zeros((1, 8, 8), np.float32), np.linspace(0.5, 1.5, 64, dtype=np.float32).reshape(1, 8, 8)
    trainer = StandardTrainer(classifier(clip_values=(low, high)), threat=ThreatModel("Linf", 0.1))
    x = torch.from_numpy(X * high)
    trainer.fit(x, torch.from_numpy(Y), validation_data=(x[:50], Y[:50]), nb_epochs=1, verbose=False)
    assert set(trainer.history[0]) >= {"validation_accuracy", "validation_robust_accuracy"}

"""Losses that are not the mean over samples."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from builders import make_linear
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins import (
    StandardTrainer,
    TrainingOptions,
)

from ..builders import weights
from .small import X, Y, check_refusal, classifier, fit


class Coupled(nn.Module):
    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y).square().mean() + (outputs - outputs.mean(dim=0)).square().mean()


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(ignore_index=3),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0] * 9 + [1.01])),
        nn.CrossEntropyLoss(weight=torch.arange(1.0, 11), label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.NLLLoss(ignore_index=0),
        nn.MSELoss(reduction="sum"),
        Coupled(),
    ],
)
def test_losses_that_are_no_means_over_samples_are_not_cut(loss: nn.Module) -> None:
    trainer = StandardTrainer(classifier(loss=loss), options=TrainingOptions(accumulation_steps=4))
    check_refusal(trainer, "accumulation_steps average over samples", type(loss).__name__)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.MultiMarginLoss(weight=torch.arange(1.0, 11)),
        nn.BCEWithLogitsLoss(pos_weight=torch.full((10,), 3.0)),
        nn.HuberLoss(),
    ],
)
def test_the_gradients_of_parts_are_those_of_the_batch(loss: nn.Module) -> None:
    states = []
    for parts in (1, 5):
        torch.manual_seed(0)
        estimator = classifier(make_linear(), copy.deepcopy(loss))
        fit(StandardTrainer(estimator, options=TrainingOptions(seed=0, accumulation_steps=parts)))
        states.append(weights(estimator))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*states, strict=True))


def test_a_batch_that_counts_for_nothing_is_refused_by_its_reason() -> None:
    weight = torch.ones(10)
    weight[2] = 0
    ignoring = StandardTrainer(classifier(loss=nn.CrossEntropyLoss(ignore_index=2)))
    for trainer in (ignoring, StandardTrainer(classifier(loss=nn.CrossEntropyLoss(weight)))):
        check_refusal(trainer, "y: got a batch of 20 labels all of class 2", x=X[:20], y=np.full(20, 2))
        fit(trainer, batch_size=300)  # a batch with others trains


def test_losses_that_give_no_number_are_refused() -> None:
    class OfEach(nn.Module):
        def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
            return (outputs - y).square().mean(dim=1)

    check_refusal(StandardTrainer(classifier(loss=nn.CrossEntropyLoss(reduction="none"))), "reduction 'none'")
    check_refusal(StandardTrainer(classifier(loss=OfEach())), "a tensor of shape (64,)")


def test_binary_losses_of_several_outputs_are_one_class_against_the_rest() -> None:
    estimator = classifier(make_linear(), nn.BCEWithLogitsLoss())
    trainer = StandardTrainer(estimator)
    x, y = torch.from_numpy(X[:8]), torch.from_numpy(Y[:8])
    expected = functional.binary_cross_entropy_with_logits(trainer.logits(x), functional.one_hot(y, 10).float())
    assert torch.equal(trainer.training_loss(x, y), expected)
    assert fit(trainer, nb_epochs=10).history[-1]["loss"] < 0.35


class Own(nn.Module):
    """A loss that is a function of outputs and one-hot rows."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, outputs: Tensor, y: Tensor) -> Any:
        return self.function(outputs, y)


FAILING: dict[str, tuple[Any, tuple[str, ...]]] = {
    "class": (nn.CrossEntropyLoss, ("the class CrossEntropyLoss",)),
    "detached": (Own(lambda o, y: o.detach().sum()), ("no gradient",)),
    "integer": (Own(lambda o, y: (o.argmax(1) == y.argmax(1)).sum()), ("torch.int64",)),
    "complex": (Own(lambda o, y: (o * (1 + 1j)).mean()), ("torch.complex64",)),
    "number": (Own(lambda o, y: 1.0), ("a float",)),
    "nothing": (Own(lambda o, y: None), ("a NoneType",)),
    "raises": (Own(lambda o, y: o[:, 12].mean()), ("its loss Own fails", "IndexError")),
    "probabilities": (nn.BCELoss(), ("its loss BCELoss fails", "between 0 and 1")),
    "arguments": (nn.CTCLoss(), ("its loss CTCLoss fails", "TypeError")),
    "labels": (nn.MultiLabelMarginLoss(), ("its loss MultiLabelMarginLoss fails",)),
    "rows": (Own(nn.CrossEntropyLoss(ignore_index=1)), ("its loss Own fails", "ignore_index")),
    "log-probabilities": (nn.NLLLoss(), ("its NLLLoss takes log-probabilities",)),
    "log-distributions": (nn.KLDivLoss(reduction="batchmean"), ("its KLDivLoss takes log-probabilities",)),
}


@pytest.mark.parametrize("case", FAILING)
def test_losses_that_fail_on_the_first_batch_are_refused(case: str) -> None:
    loss, words = FAILING[case]
    check_refusal(StandardTrainer(classifier(loss=loss)), "classifier: ", *words)


class Normalising(StandardTrainer):
    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self.logits(x).log_softmax(dim=1), y)


def test_losses_of_log_probabilities_train_where_they_get_them() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.LogSoftmax(dim=1))
    for loss in (nn.NLLLoss(), nn.KLDivLoss(reduction="batchmean")):
        fit(StandardTrainer(classifier(copy.deepcopy(model), loss)))
    with pytest.warns(UserWarning, match="NLLLoss takes log-probabilities"):
        fit(Normalising(classifier(loss=nn.NLLLoss())))


class Broken(StandardTrainer):
    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        raise KeyError("a mistake in the method")


def test_an_error_of_the_method_stays_what_it_is() -> None:
    with pytest.raises(KeyError, match="a mistake in the method"):
        fit(Broken(classifier()))

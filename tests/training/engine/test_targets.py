"""Labels that are class probabilities."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim import SGD

from art_robust_plugins import (
    BANGTrainer,
    LayerwiseAdversarialTrainer,
    LipschitzMarginTrainer,
    PGDTrainer,
    StandardTrainer,
    TRADESTrainer,
    TrainingOptions,
)

from ..builders import same, weights
from .small import LINF, X, Y, check_refusal, classifier, fit, network

SOFT = np.eye(10)[Y] * 0.9 + 0.01


# ----------------------------------------------------------------------------------------------------- soft labels
def test_soft_labels_train_as_torch_takes_them() -> None:
    estimator, by_hand = classifier(), network()
    fit(StandardTrainer(estimator, options=TrainingOptions(shuffle=False)), y=SOFT)
    optimizer = SGD(by_hand.parameters(), 0.05, momentum=0.9)
    for start in [*range(0, 300, 64)] * 2:
        optimizer.zero_grad()
        rows = slice(start, start + 64)
        functional.cross_entropy(by_hand(torch.from_numpy(X[rows])), torch.from_numpy(SOFT[rows]).float()).backward()
        optimizer.step()
    assert same(weights(estimator), [*by_hand.state_dict().values()])


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (BANGTrainer, nn.CrossEntropyLoss()),
        (LayerwiseAdversarialTrainer, nn.CrossEntropyLoss()),
        (lambda c: TRADESTrainer(c, threat=LINF, steps=1), nn.CrossEntropyLoss()),
        (lambda c: PGDTrainer(c, threat=LINF, steps=1), nn.MSELoss()),
        (StandardTrainer, nn.BCEWithLogitsLoss()),
    ],
)
def test_methods_and_losses_that_take_soft_labels(make: Any, loss: nn.Module) -> None:
    assert np.isfinite(fit(make(classifier(loss=loss)), x=X[:100], y=SOFT[:100], nb_epochs=1).history[0]["loss"])


@pytest.mark.parametrize(
    ("y", "loss", "word"),
    [
        (SOFT, nn.MultiMarginLoss(), "MultiMarginLoss does not take"),
        (SOFT, nn.CrossEntropyLoss(ignore_index=2), "ignore_index does not take"),
        (SOFT * 2, nn.CrossEntropyLoss(), "in row 0"),
        (SOFT - 0.02, nn.CrossEntropyLoss(), "-0.01"),
        (np.where(SOFT > 0.5, np.nan, SOFT), nn.CrossEntropyLoss(), "nan"),
        (SOFT[:-1], nn.CrossEntropyLoss(), "299 labels for 300 samples"),
    ],
)
def test_soft_labels_that_do_not_fit_are_refused(y: Any, loss: nn.Module, word: str) -> None:
    check_refusal(StandardTrainer(classifier(loss=loss)), "y: got", word, y=y)


def test_lipschitz_margins_need_one_class() -> None:
    check_refusal(LipschitzMarginTrainer(classifier(), c=0.1), "y: got class probabilities", y=SOFT)

"""The loss as ART computes it, and a network that is left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_robust_plugins.bridge import (
    EstimatorModule,
    label_tensor,
    loss_of,
    preserved,
)

from .builders import IMAGES, LABELS, SHAPE, N, classifier, network


@pytest.mark.parametrize(
    ("loss", "last"),
    [
        (nn.CrossEntropyLoss(), None),
        (nn.CrossEntropyLoss(label_smoothing=0.2), None),
        (nn.NLLLoss(), nn.LogSoftmax(dim=1)),
        (nn.MultiMarginLoss(), None),
        (nn.MSELoss(), None),
        (nn.BCEWithLogitsLoss(), None),
    ],
)
def test_the_loss_is_arts(loss, last):
    binary = isinstance(loss, nn.BCEWithLogitsLoss)
    model = network(nb_classes=1 if binary else 4)
    if last is not None:
        model.append(last)
    estimator = classifier(model, loss, nb_classes=2 if binary else 4)
    labels = LABELS % 2 if binary else LABELS
    expected = estimator.compute_loss(IMAGES, labels, reduction="mean")
    module = EstimatorModule(estimator, unit_range=False).eval()
    ours = loss_of(estimator, module(torch.from_numpy(IMAGES)), label_tensor(labels, estimator.nb_classes))
    assert ours.shape == ()
    assert ours.item() == pytest.approx(float(expected), rel=1e-5)


def test_the_loss_takes_mixed_labels():
    estimator, logits = classifier(), torch.randn(N, 4)
    mixed = torch.rand(N, 4).softmax(dim=1)
    expected = -(mixed * logits.log_softmax(dim=1)).sum(dim=1).mean()
    torch.testing.assert_close(loss_of(estimator, logits, mixed), expected)


def spoil(model):
    model.train()
    model[2].eval()
    for parameter in model.parameters():
        parameter.requires_grad_()
    model.zero_grad(set_to_none=False)
    model(torch.rand(N, *SHAPE)).sum().backward()
    model[1].weight.grad = None


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_modes_and_gradients_are_restored(error):
    model = network().eval()
    model[4].train()
    model[1].bias.requires_grad_(False)
    gradient = torch.randn_like(model[1].weight)
    model[1].weight.grad = gradient
    expected = gradient.clone()
    try:
        with preserved(model):
            spoil(model)
            if error is not None:
                raise error
    except (RuntimeError, KeyboardInterrupt):
        assert error is not None
    assert [layer.training for layer in model] == [False] * 4 + [True] + [False] * 2
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False] + [True] * 4
    assert model[1].weight.grad is gradient
    assert torch.equal(gradient, expected)
    assert all(parameter.grad is None for parameter in list(model.parameters())[1:])


def test_a_gradient_that_was_added_to_is_restored():
    model = nn.Linear(2, 1)
    model(torch.ones(1, 2)).sum().backward()
    gradient = model.weight.grad
    with preserved(model):
        model(torch.ones(1, 2)).sum().backward()
        assert torch.equal(gradient, torch.full((1, 2), 2.0))
    assert model.weight.grad is gradient
    assert torch.equal(gradient, torch.ones(1, 2))

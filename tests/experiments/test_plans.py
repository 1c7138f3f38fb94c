"""Training plans: every network of the package by its name."""

import numpy as np
import pytest
import torch

from art_robust_plugins.data import Dataset
from art_robust_plugins.experiments.plans import TrainingPlan
from art_robust_plugins.models import MODELS


@pytest.mark.parametrize("name", MODELS)
def test_every_network_can_be_planned_by_its_name(name):
    shape = (1, 28, 28) if name == "lenet" else (3, 32, 32)
    images, labels = np.zeros((2, *shape), np.float32), np.zeros(2, np.int64)
    data = Dataset("zeros", images, labels, images, labels, nb_classes=10)
    trainer, _ = TrainingPlan("standard", network=name).trainer(data, seed=0)
    assert trainer.classifier.model.recipe["name"] == name


def test_labels_are_smoothed_as_the_plan_says():
    images, labels = np.zeros((2, 1, 8, 8), np.float32), np.zeros(2, np.int64)
    data = Dataset("zeros", images, labels, images, labels, nb_classes=10)
    for smoothing in (0.0, 0.3):
        trainer, _ = TrainingPlan("standard", label_smoothing=smoothing).trainer(data, seed=0)
        logits, y = torch.randn(5, 10), torch.arange(5)
        wanted = torch.full((5, 10), smoothing / 10)
        wanted[torch.arange(5), y] += 1 - smoothing
        expected = -(wanted * logits.log_softmax(dim=1)).sum(dim=1).mean()
        torch.testing.assert_close(trainer.loss(logits, y), expected)


@pytest.mark.parametrize("smoothing", [1.0, -0.1, "0.1", True])
def test_label_smoothing_outside_its_range_is_refused(smoothing):
    with pytest.raises(ValueError, match=f"label_smoothing: got {smoothing!r},"):
        TrainingPlan("standard", label_smoothing=smoothing)

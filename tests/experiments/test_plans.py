"""Training plans: every network of the package by its name."""

import numpy as np
import pytest

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

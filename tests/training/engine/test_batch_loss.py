"""What pixels beside an image hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from art_robust_plugins import (
    StandardTrainer,
    TrainingOptions,
)

from .small import X, Y, classifier, fit


@pytest.mark.parametrize("limits", [(-np.inf, np.inf), (np.full((1, 8, 8), -np.inf), np.full((1, 8, 8), np.inf))])
def test_crops_without_a_lower_limit_are_padded_with_zeros(limits: Any) -> None:
    losses = []
    for clip_values in (None, limits):
        options = TrainingOptions(seed=0, augmentation="crop-flip", crop_padding=2)
        trainer = StandardTrainer(classifier(clip_values=clip_values), options=options)
        losses.append(fit(trainer, x=X[:64], y=Y[:64]).history[-1]["loss"])
    assert losses[0] == losses[1]

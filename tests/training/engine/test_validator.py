"""Validation: what it measures, the epoch that is kept, and the size of its passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from art.attacks.evasion import ProjectedGradientDescent
from torch import Tensor

from art_robust_plugins import BANGTrainer, StandardTrainer, ThreatModel, TrainingOptions
from art_robust_plugins.training.engine.validator import Validator

from ..builders import same, weights
from .digits import X, Y, accuracy, classifier


def test_validation_does_not_change_the_training() -> None:
    results = []
    for validation in (None, (X[300:400], Y[300:400])):
        trained = classifier()
        trainer = BANGTrainer(trained, threat=ThreatModel("L1", 2.0), options=TrainingOptions(seed=0))
        trainer.fit(X[:200], Y[:200], validation_data=validation, nb_epochs=2, verbose=False)
        results.append(weights(trained))
    assert same(*results)


def test_robust_validation_is_that_of_a_pgd_attack() -> None:
    trained = classifier()
    trainer = StandardTrainer(trained, threat=ThreatModel("Linf", 0.1))
    trainer.fit(X, Y, validation_data=(X[:200], Y[:200]), nb_epochs=4, verbose=False)
    attack = ProjectedGradientDescent(trained, eps=0.1, eps_step=0.025, max_iter=10, num_random_init=1, verbose=False)
    against = (trained.predict(attack.generate(X[:200], Y[:200])).argmax(axis=1) == Y[:200]).mean()
    assert trainer.history[-1]["validation_robust_accuracy"] == pytest.approx(against, abs=0.03)
    assert trainer.history[-1]["validation_accuracy"] == pytest.approx(
        (trained.predict(X[:200]).argmax(axis=1) == Y[:200]).mean()
    )


def test_the_best_epoch_is_kept() -> None:
    states = []

    class Falling(StandardTrainer):
        """Learns for two epochs, then destroys what it learnt."""

        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            sign = 1 if len(self.history) < 2 else -1
            return sign * super().training_loss(x, y)

        def end_epoch(self, record: dict[str, float]) -> None:
            states.append(weights(self.classifier))

    trained = classifier()
    trainer = Falling(trained, options=TrainingOptions(keep_best=True))
    trainer.fit(X, Y, validation_data=(X, Y), nb_epochs=4, verbose=False)
    found = [record["validation_accuracy"] for record in trainer.history]
    best = int(np.argmax(found))
    assert best < 3
    assert same(weights(trained), states[best])
    assert accuracy(trained) == pytest.approx(found[best])


def test_outputs_with_nan_are_no_class() -> None:
    trained = classifier()
    validator = Validator(trained, (X[:100], np.zeros(100, dtype=int)))

    def predict(images: Tensor) -> Tensor:
        outputs = torch.zeros(len(images), 10)
        outputs[:, 0] = 1
        outputs[::4, 3] = torch.nan
        return outputs

    validator._predict = predict  # type: ignore[assignment]
    assert validator.validate() == {"validation_accuracy": 0.75}

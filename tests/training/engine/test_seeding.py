"""Seeds, and the random states that a run leaves behind."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from art_robust_plugins import BANGTrainer, StandardTrainer, TrainingOptions

from ..builders import same, weights
from .digits import X, Y, classifier, run


def test_one_seed_makes_a_run_repeatable_and_leaves_the_global_state_alone() -> None:
    first = run(3)
    trainer = BANGTrainer(classifier(), options=TrainingOptions(seed=3))
    torch.manual_seed(11)
    np.random.seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    trainer.fit(X[:200], Y[:200], nb_epochs=2, verbose=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert same(first, weights(trainer.classifier))
    assert not same(first, run(4))


def test_training_on_a_cpu_leaves_the_random_numbers_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = StandardTrainer(classifier(), options=TrainingOptions(seed=3))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail(f"all GPUs were seeded with {seed}"))
    trainer.fit(X[:64], Y[:64], nb_epochs=1, verbose=False)


def test_without_a_seed_the_global_one_decides() -> None:
    results = []
    for seed in (5, 5, 6):
        trained = classifier()
        torch.manual_seed(seed)
        BANGTrainer(trained).fit(X[:200], Y[:200], nb_epochs=1, verbose=False)
        results.append(weights(trained))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])

"""Where the points of a step lie, and what the network sees of them."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from art_robust_plugins import (
    LocalBallTrainer,
    ThreatModel,
)

from ..builders import same
from .adversaries import LINF, OBJECTIVES, X, Y, classifier, seen_in

PER_FEATURE = (np.linspace(-1, 0, 12, dtype=np.float32), np.linspace(0.5, 3, 12, dtype=np.float32))


ranges = st.sampled_from([(0, 1), (0, 255), (-1, 1), PER_FEATURE, None])


@settings(max_examples=150)
@pytest.mark.filterwarnings("ignore:.* of 255 levels")  # radii here may be small
@given(
    norm=st.sampled_from(["Linf", "L2", "L1"]),
    limits=ranges,
    share=st.floats(0.001, 0.99),
    stride=st.none() | st.floats(0.01, 5),
    radius=st.floats(0.05, 2),
    steps=st.integers(1, 4),
    start=st.sampled_from(["uniform", "gaussian", "none"]),
    global_loss=st.sampled_from(["ce", "kl"]),
    warm=st.none() | st.floats(0, 1),
    within=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_points_stay_in_their_balls_and_in_the_range(
    norm: str,
    limits: Any,
    share: float,
    stride: float | None,
    radius: float,
    steps: int,
    start: Any,
    global_loss: Any,
    warm: float | None,
    within: bool,
    seed: int,
) -> None:
    start = "uniform" if start == "none" and global_loss == "kl" else start
    low, high = (-1.0, 1.0) if limits is None else (torch.as_tensor(v, dtype=torch.float64) for v in limits)
    width = float(np.max(np.asarray(high - low)))
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].weight /= width
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), (12,), 3, optimizer=optimizer, clip_values=limits)
    threat = ThreatModel(norm, share * width)
    trainer = LocalBallTrainer(
        estimator,
        threat=threat,
        steps=steps,
        step_size=None if stride is None else min(stride * threat.eps, 0.99 * width),
        radius=radius,
        start=start,
        global_loss=global_loss,
        within_threat=within,
        eps_warmup_epochs=0 if warm is None else 2,
    )
    trainer.epochs_done = 0.0 if warm is None else 2 * warm
    eps = threat.eps * (1.0 if warm is None else max(warm, 0.01))
    model.double()
    x = torch.rand(5, 12, dtype=torch.float64).round(decimals=1) * (high - low) + low  # some at the range's ends
    y = torch.randint(0, 3, (5,))

    def distance(a: Tensor, b: Tensor) -> float:
        order = {"Linf": math.inf, "L2": 2, "L1": 1}[norm]
        return max(float(torch.linalg.vector_norm(row, order)) for row in a - b)

    def in_range(points: Tensor) -> bool:
        return limits is None or bool(((points >= low) & (points <= high)).all())

    passed = seen_in(model, lambda: trainer.adversary(x, y))
    assert len(passed) == steps + (global_loss == "kl")
    adversary = trainer.adversary(x, y)
    assert not adversary.requires_grad
    for z in [*(z for _, z, _ in passed), adversary]:
        assert distance(z, x) <= eps * (1 + 1e-9)
        assert in_range(z)
    point = trainer.local_point(x, adversary)
    passed = seen_in(model, lambda: trainer.local_point(x, adversary))
    longer = 2 if norm == "L1" and within else 1  # the projection on an L1 ball moves along other coordinates
    for z in [*(z for _, z, _ in passed), point]:
        assert distance(z, adversary) <= longer * radius * eps * (1 + 1e-9)
        assert in_range(z)
    assert distance(point, x) <= (1 if within else 1 + radius) * eps * (1 + 1e-9)
    assert distance(passed[-1][1], adversary) <= 0.5 * radius * eps * (1 + 1e-9)


@pytest.mark.parametrize("changes", OBJECTIVES, ids=str)
def test_batch_statistics_are_those_of_the_training_passes(changes: dict[str, Any]) -> None:
    """x where it counts, xa, then the local point; the ascent changes no statistic."""
    made: list[Any] = []

    class Watching(LocalBallTrainer):
        def objective(self, x: Tensor, y: Tensor, xa: Tensor, xl: Tensor | None = None) -> Tensor:
            made.extend((xa, xl))
            return super().objective(x, y, xa, xl)

    estimator = classifier()
    trainer = Watching(estimator, threat=LINF, **changes)
    before = copy.deepcopy(estimator.model)
    x, y = X[:20], Y[:20]
    seen = seen_in(estimator.model, lambda: trainer.training_loss(x, y))
    first = next(index for index, (training, _, _) in enumerate(seen) if training)
    assert all(training for training, _, _ in seen[first:])
    assert same(list(before.buffers()), seen[first][2])
    adversary, point = made
    has_x = changes.get("global_loss") == "kl" or changes.get("clean_weight", 0) > 0
    if changes.get("global_loss") == "kl" and changes.get("global_weight") == 0:
        has_x = changes["clean_weight"] > 0
    intended = [*[x] * has_x, adversary, point]
    assert same(intended, [z for _, z, _ in seen[first:]])
    mean, variance = torch.zeros(4), torch.ones(4)
    for z in intended:
        hidden = before[0](z).detach()
        mean = 0.7 * mean + 0.3 * hidden.mean(dim=(0, 2, 3))
        variance = 0.7 * variance + 0.3 * hidden.var(dim=(0, 2, 3))
    normalisation = estimator.model[1]
    torch.testing.assert_close(normalisation.running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(normalisation.running_var, variance, rtol=1e-5, atol=1e-6)
    assert int(normalisation.num_batches_tracked) == len(intended)
    assert estimator.model.training

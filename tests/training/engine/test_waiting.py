"""No step waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from art_robust_plugins import (
    BANGTrainer,
    LayerwiseAdversarialTrainer,
    LipschitzMarginTrainer,
    LocalBallTrainer,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
)
from art_robust_plugins.training import TRADESTrainer

from .runs import X, Y, classifier, cuda, two_convolutions


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: values that are read, and indices by truth."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        by_truth = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        self.count += by_truth or name in ("_local_scalar_dense", "nonzero", "masked_select")
        return func(*args, **(kwargs or {}))


EVERY_METHOD: dict[str, Callable[[PyTorchClassifier, TrainingOptions], RobustTrainer]] = {
    "standard": lambda c, o: StandardTrainer(c, options=o),
    "bang": lambda c, o: BANGTrainer(c, ratio=0.5, options=o),
    "layerwise": lambda c, o: LayerwiseAdversarialTrainer(c, options=o),
    "lipschitz-margin": lambda c, o: LipschitzMarginTrainer(c, options=o),
    "local-ball": lambda c, o: LocalBallTrainer(c, threat=ThreatModel("Linf", 0.1), overfitting="ignore", options=o),
    "trades, L2": lambda c, o: TRADESTrainer(c, threat=ThreatModel("L2", 0.5), overfitting="ignore", options=o),
}


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_a_step_reads_nothing_from_the_device(name: str) -> None:
    """The losses are read once in many steps on a GPU, by an operation that is not counted here."""
    counts = []
    for steps in (2, 6):
        low = np.zeros((1, 8, 8), dtype=np.float32)
        low[0, 0, 0] = -0.5  # so that clip_values are tensors
        options = {"augmentation": "crop-flip", "ema_decay": 0.9, "max_gradient_norm": 1.0, "schedule": "cosine"}
        estimator = classifier(two_convolutions(), clip_values=(low, np.ones_like(low)))
        trainer = EVERY_METHOD[name](estimator, TrainingOptions(seed=0, **options))
        with Reads() as reads:
            trainer.fit(X[: 10 * steps], Y[: 10 * steps], batch_size=10, nb_epochs=1, verbose=False)
        counts.append(reads.count)
    assert counts[0] == counts[1]


@cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", EVERY_METHOD)
def test_on_a_gpu_a_step_does_not_wait(name: str) -> None:
    estimator = classifier(two_convolutions().cuda(), device_type="gpu")
    trainer = EVERY_METHOD[name](estimator, TrainingOptions(seed=0, augmentation="crop-flip", ema_decay=0.9))
    inner, calls = trainer.training_loss, 0

    def watch(x: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        torch.cuda.set_sync_debug_mode("error" if 2 < calls < 9 else "default")
        return inner(x, y)

    trainer.training_loss = watch  # type: ignore[method-assign]
    try:
        trainer.fit(X[:100], Y[:100], batch_size=10, nb_epochs=1, verbose=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert calls == 10

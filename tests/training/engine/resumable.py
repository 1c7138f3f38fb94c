"""A training run on a few samples, and what a run must have in common with it to take up its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from art_robust_plugins import RobustTrainer, StandardTrainer, TrainingOptions
from art_robust_plugins.training import Instrument

X = np.random.default_rng(0).random((40, 1, 4, 4)).astype("float32")
Y = np.arange(40) % 3
X_CHANGED, Y_CHANGED = X.copy(), Y.copy()
X_CHANGED[3, 0, 1, 1] = 0.125
Y_CHANGED[5] = (Y[5] + 1) % 3


def network(act: type[nn.Module] = nn.ReLU, drop: float = 0.1) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 16), act(), nn.Dropout(drop), nn.Linear(16, 16), nn.Linear(16, 3))


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, 0.9)


@dataclass(frozen=True)
class Run:
    """A training run: its fields are what a run that takes up its checkpoint must have in common with it."""

    model: Callable[[], nn.Module] = network
    loss: Callable[..., Tensor] = field(default_factory=nn.CrossEntropyLoss)
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = sgd
    scheduler: Callable[[Any], Any] | None = None
    clip_values: tuple[float, float] = (0, 1)
    preprocessing: tuple[float, float] = (0.0, 1.0)
    trainer: Callable[..., RobustTrainer] = StandardTrainer
    instruments: Sequence[Instrument] = ()
    data: Any = (X, Y)
    validation: Any = (X, Y)
    options: Mapping[str, Any] = field(default_factory=dict)

    def train(self, folder: Path | None, epochs: int, made: list[Any] | None = None) -> list[Tensor]:
        """The network's tensors after ``epochs``; the checkpoint in ``folder``, if there is one, is taken up.

        The network and the optimizer are added to ``made`` before the training begins.
        """
        torch.manual_seed(0)
        model = self.model()
        optimizer = self.optimizer(model)
        if made is not None:
            made += [model, optimizer]
        estimator = PyTorchClassifier(
            model,
            self.loss,
            (1, 4, 4),
            3,
            optimizer=optimizer,
            clip_values=self.clip_values,
            preprocessing=self.preprocessing,
        )
        options = TrainingOptions(seed=0, checkpoint_dir=folder, resume=folder is not None, **self.options)
        method = self.trainer(estimator, options=options, instruments=self.instruments)
        scheduler = None if self.scheduler is None else self.scheduler(optimizer)
        if isinstance(self.data, tuple):
            method.fit(*self.data, self.validation, 16, epochs, scheduler, verbose=False)
        else:
            method.fit_loader(self.data, epochs, self.validation, scheduler, verbose=False)
        return [tensor.clone() for tensor in model.state_dict().values()]

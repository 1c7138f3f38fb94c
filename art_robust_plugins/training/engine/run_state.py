"""A run's state between epochs besides the weights: the seed, the average of the weights, the best epoch."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ...bridge import preprocessing_modules
from .averaging import WeightAverage
from .method import TrainingMethod

logger = logging.getLogger(__name__)


class RunState:
    """The objects of a run whose state a checkpoint holds, and the state that the run itself keeps.

    Args:
        method: the trainer.
        scheduler: of the learning rate, or None.
        generators: the loader's random generators, which determine the order of its samples.

    Attributes:
        seed: of the run.
        best: the best epoch so far with its weights, with the option ``keep_best``.
        average: of the weights, with the option ``ema_decay``.
        earlier_averages: the averages in the checkpoint that the run continues.
    """

    def __init__(self, method: TrainingMethod, scheduler: Any, generators: Sequence[torch.Generator]) -> None:
        self.method, self.scheduler, self.generators = method, scheduler, generators
        self.options = method.options
        self.network, self.optimizer = method.classifier.model, method.classifier.optimizer
        self.preprocessing = preprocessing_modules(method.classifier)
        self.seed = 0
        self.best: dict[str, Any] | None = None
        self.average: WeightAverage | None = None
        self.earlier_averages: list[Tensor] | None = None

    def begin_average(self) -> None:
        """Start the average from the current weights, or continue with the checkpoint's."""
        if self.options.ema_decay is None:
            return
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.average = WeightAverage(weights, self.options.ema_decay)
        if self.earlier_averages is not None:
            self.average.load(self.earlier_averages)

    def use_average(self) -> AbstractContextManager[None]:
        """A context within which the network has the averaged weights, if there are any."""
        return nullcontext() if self.average is None else self.average.use()

    def keep_if_best(self, epochs: int, record: dict[str, float]) -> None:
        """With the option ``keep_best``, keep the weights if the epoch of ``record`` is the best one so far."""
        # If the method has gone back to earlier weights, the record does not describe the current ones.
        if not self.options.keep_best or record.get("rolled_back"):
            return
        measure = record.get("validation_robust_accuracy", record["validation_accuracy"])
        if self.best is None or measure > self.best["measure"]:
            with self.use_average():
                weights, *others = (_copy_state(module.state_dict()) for module in (self.network, *self.preprocessing))
            self.best = {"epoch": epochs, "measure": measure, "network": weights, "preprocessing": others}

    def put_result_in_place(self) -> None:
        """Put the resulting weights into the network: the average's, or the best epoch's."""
        if self.average is not None:
            self.average.exchange()
        if self.best is not None:
            self.network.load_state_dict(self.best["network"])
            self.load_preprocessing(self.best)
            logger.info("kept the weights of epoch %d", self.best["epoch"])

    def load_preprocessing(self, state: dict[str, Any]) -> None:
        """Load the weights of ART's preprocessing; older checkpoints lack them."""
        for module, weights in zip(self.preprocessing, state.get("preprocessing", ()), strict=True):
            module.load_state_dict(weights)


def tensors_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict, which holds other things where modules have an extra state."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _copy_state(weights: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy({**weights, **{name: tensor.detach() for name, tensor in tensors_of(weights).items()}})

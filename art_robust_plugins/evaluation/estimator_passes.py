"""Passes through the evaluated estimator, which may change its input or its own state while it predicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ..bridge import (
    EstimatorModule,
    class_logits,
    device_of,
    input_range,
    predict_outputs,
    preprocessing_modules,
    preserve,
)
from ..randomness import cuda_devices, restored_random_states
from ..snapshot import Snapshot, restored_state
from .autoattack.batches import BatchedPasses
from .counting import CallCounter
from .weights import FrozenWeights


@contextmanager
def preserve_network(estimator: PyTorchClassifier) -> Iterator[Snapshot]:
    """Leave network, preprocessing and random numbers as they were; no autocast within."""
    modules = list_modules(estimator)
    # A caller's autocast would round the verdicts.
    exact = torch.autocast(device_of(estimator.model).type, enabled=False)
    with preserve(modules), restored_state(modules) as snapshot, restored_random_states(cuda_devices()), exact:
        yield snapshot


def list_modules(estimator: PyTorchClassifier) -> nn.ModuleList:
    """The network and the modules of the preprocessing."""
    return nn.ModuleList([estimator.model, *preprocessing_modules(estimator)])


class EstimatorPasses:
    """Passes through the estimator, whose state is restored after each pass.

    Args:
        estimator: the classifier.
        module: its network behind its preprocessing, from images in [0, 1], which attacks follow.
        snapshot: the state of both, as the evaluation found it.
        weights: the parameters of both, which may be frozen.
        size: the most samples in a pass.

    Attributes:
        counter: ``module``, with a count of the images that attacks pass through it.
        batched: passes of the estimator's own and of the diagnostics, on batches of at most ``size``.
        changed: the names of the weights and buffers that clean passes have changed.
        beyond: the largest distance outside of [0, 1] of a network's single output under ``BCELoss``.
    """

    def __init__(
        self,
        estimator: PyTorchClassifier,
        module: EstimatorModule,
        snapshot: Snapshot,
        weights: FrozenWeights,
        size: int,
    ) -> None:
        self.estimator, self.module, self.snapshot, self.weights = estimator, module, snapshot, weights
        self.range, self.device = input_range(estimator), module.device
        self.counter = CallCounter(module, lambda forward: weights.retry(forward, snapshot.restore))
        self.batched = BatchedPasses(module, size)
        self.changed: set[str] = set()
        self.beyond = 0.0
        # The module's own checks may have changed the network.
        self.restore()

    def restore(self) -> None:
        """Restore the network's state; once a pass has changed it, every pass of an attack restores it first."""
        self.changed |= set(self.snapshot.restore())
        if self.changed:
            self.counter.before = self.snapshot.restore

    def predict(self, x: Tensor, at_once: int | None = None) -> Tensor:
        """Samples [N, ...] in the estimator's range -> the untouched estimator's outputs [N, classes], on the CPU."""
        passes = self.batched if at_once is None else BatchedPasses(self.module, at_once)
        return self._run(passes, x, self._predict_part)

    def predict_unrestored(self, x: Tensor) -> Tensor:
        """As `predict`, but without restoring the network's state after each pass."""
        return self.batched.run_over(len(x), lambda part: (self._predict_part(x[part]),))[0]

    @torch.no_grad()
    def predict_followed(self, x: Tensor) -> Tensor:
        """As `predict`, for the function that attacks follow: the network after the preprocessing."""
        followed = EstimatorModule(self.estimator, unit_range=False, probabilities=True, straight_through=True)
        self.restore()
        return self._run(
            self.batched,
            x,
            lambda part: class_logits(self.estimator, followed(part.to(self.device))).detach().cpu(),
        )

    def _run(self, passes: BatchedPasses, x: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        def run(part: slice) -> tuple[Tensor, ...]:
            outputs = predict(x[part])
            self.restore()
            return (outputs,)

        return passes.run_over(len(x), run)[0]

    def _predict_part(self, x: Tensor) -> Tensor:
        # A copy, which the network may change.
        outputs = self.weights.watch(lambda: predict_outputs(self.estimator, x.clone()), self.snapshot.restore)
        if self.module.single and isinstance(self.estimator.loss, nn.BCELoss):
            self.beyond = max(self.beyond, float((outputs - outputs.clamp(0, 1)).abs().nan_to_num(0.0).max()))
        return class_logits(self.estimator, outputs)

"""An exponential moving average of the weights that an optimizer trains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class WeightAverage:
    """a <- decay a + (1 - decay) w for all weights w at once, on their device; a starts as w."""

    def __init__(self, weights: Sequence[nn.Parameter], decay: float) -> None:
        self.weights = list(weights)
        self.averages = [weight.detach().clone() for weight in self.weights]
        self._update = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Update the averages with the current weights."""
        self._update(self.averages, self.weights, None)

    def restart(self) -> None:
        """Restart from the current weights."""
        self.load([weight.detach() for weight in self.weights])

    def load(self, averages: Sequence[Tensor]) -> None:
        """Load the averages of an earlier run."""
        for own, given in zip(self.averages, averages, strict=True):
            own.copy_(given)

    @torch.no_grad()
    def exchange(self) -> None:
        """Swap the averages and the weights."""
        for weight, average in zip(self.weights, self.averages, strict=True):
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)

    @contextmanager
    def use(self) -> Iterator[None]:
        """A context within which the weights are their averages."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

"""The mean loss of an epoch, and checks that losses and weights are finite."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class LossMeter:
    """Averages the losses of an epoch's steps over its samples.

    Losses stay on the device, since reading one synchronises with a GPU: on a GPU the losses are checked only in every
    50th step.
    """

    def __init__(self, epoch: int, device: torch.device) -> None:
        self.epoch = epoch
        self.steps = self.samples = 0
        self._read_every = 1 if device.type == "cpu" else 50
        self._losses: list[Tensor] = []  # the losses of the steps since the last check
        self._sizes: list[int] = []
        self._total = torch.zeros((), dtype=torch.float64, device="cpu")

    def add(self, loss: Tensor, samples: int) -> None:
        """Add the mean loss of a step's samples.

        Raises:
            FloatingPointError: one is not finite.
        """
        self.steps += 1
        self._losses.append(loss)
        self._sizes.append(samples)
        if len(self._losses) == self._read_every:
            self._read()

    def mean(self) -> float:
        """The mean over the samples of all steps.

        Raises:
            FloatingPointError: the loss of a step is not finite.
        """
        if self._losses:
            self._read()
        return (self._total / self.samples).item()

    def _read(self) -> None:
        values = torch.stack(self._losses).cpu().double()
        for step, value in enumerate(values.tolist(), self.steps - len(self._losses)):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the loss became {value} in epoch {self.epoch + 1}, step {step + 1}; "
                    f"try a lower learning rate or max_gradient_norm."
                )
        self._total += values @ torch.tensor(self._sizes, dtype=torch.float64, device="cpu")
        self.samples += sum(self._sizes)
        self._losses.clear()
        self._sizes.clear()


def check_weights(modules: Iterable[nn.Module], epoch: int) -> None:
    """Refuse weights that are not finite; a loss can be finite where its gradient is not.

    Raises:
        FloatingPointError: for such weights.
    """
    parameters = [p.detach() for module in modules for p in module.parameters() if p.numel() and p.is_floating_point()]
    largest = [torch.linalg.vector_norm(parameter, torch.inf) for parameter in parameters]
    if largest and not torch.stack(largest).isfinite().all().item():
        raise FloatingPointError(
            f"the weights became NaN or infinite in epoch {epoch + 1}; try a lower learning rate or max_gradient_norm."
        )

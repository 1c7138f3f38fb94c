"""A warning when the trained network does no better than a constant prediction."""

from __future__ import annotations

import math

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ...bridge import class_logits, loss_of

IMAGES = 500
"""Number of training images that are examined."""

PER_BATCH = 8
"""Number of images taken from each batch when the number of batches is not known."""

STEPS = 50
"""Shorter trainings are not judged."""

MARGIN = 0.01
"""A loss that is lower than a constant prediction's by this ratio counts as better than chance."""


class ChanceWatch:
    """Keeps some images of the last epoch, and tests at the end whether the network does better than chance on them.

    A network is at chance when both hold: its accuracy exceeds the share of the most common class by less than two
    standard deviations of guessing, and its loss is not 1 % below that of a constant prediction, the mean of the
    network's outputs. A network that is better in either respect gets no warning.
    """

    def __init__(self, steps: int | None) -> None:
        """``steps`` of an epoch, where they are known."""
        self._few = PER_BATCH if not steps else -(-IMAGES // steps)
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._images = 0
        self.steps = 0
        self.keeping = False

    def count_step(self, x: Tensor, y: Tensor) -> None:
        """Count a step; while ``keeping``, also store the first images of its batch."""
        self.steps += 1
        few = min(self._few, IMAGES - self._images)
        if self.keeping and few > 0:
            self._kept.append((x[:few].clone(), (y.argmax(dim=1) if y.dim() == 2 else y)[:few].clone()))
            self._images += len(self._kept[-1][0])

    @torch.no_grad()
    def describe(self, classifier: PyTorchClassifier, module: nn.Module, batch_size: int, epochs: int) -> str | None:
        """A sentence for a network at chance; None for others, and after few steps.

        Args:
            classifier: what was trained, in evaluation mode.
            module: its network with its preprocessing.
            batch_size: of the passes.
            epochs: how many were trained.
        """
        if self.steps < STEPS or not self._kept:
            return None
        images, labels = (torch.cat(tensors) for tensors in zip(*self._kept, strict=True))
        outputs = torch.cat([module(part).float() for part in torch.split(images, batch_size)])
        commonest = int(torch.bincount(labels).max())
        if commonest == len(labels):
            return None
        right = int((class_logits(classifier, outputs).argmax(dim=1) == labels).sum())
        loss = float(loss_of(classifier, outputs, labels))
        constant = float(loss_of(classifier, outputs.mean(dim=0, keepdim=True).expand_as(outputs), labels))
        # Guessing may exceed the share of the most common class by a little.
        spread = 2 * math.sqrt(commonest * (1 - commonest / len(labels)))
        learned = right > commonest + spread or constant - loss > MARGIN * abs(constant)
        if learned or not math.isfinite(loss) or not math.isfinite(constant):
            return None
        return (
            f"training ended at chance: after {epochs} epochs {right} of {len(labels)} training images are classified "
            f"correctly, where the commonest class alone gives {commonest} (loss {loss:.3g}, and {constant:.3g} for a "
            f"constant answer); look at the learning rate, the radius of the threat, and whether x and y match."
        )

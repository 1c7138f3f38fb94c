"""Adversarial training with projected gradient ascent (Madry et al., arXiv 1706.06083, ICLR 2018).

    xa = k steps of projected steepest ascent on CE(f(.), y) within B(x, eps), from a random start
    L  = CE(f(xa), y)

with CE the classifier's own loss. Status: exact. The term ``clean_weight`` CE(f(x), y) is ours, and off by default.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from ...checks import check_number
from ...threat import ThreatModel
from ..instruments import Instrument
from ..options import TrainingOptions
from ..overfitting import Action
from .adversarial import AdversarialTrainer, Passes, Start


class PGDTrainer(AdversarialTrainer):
    """Adversarial training (Madry et al., arXiv 1706.06083, ICLR 2018), exact: the loss at an adversary of k steps.

    Args:
        clean_weight: weight of the classifier's loss on x itself, which is added.

    For the other arguments and what is raised see `AdversarialTrainer`.

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> optimizer = torch.optim.SGD(network.parameters(), 0.1)
        >>> loss = torch.nn.CrossEntropyLoss()
        >>> classifier = PyTorchClassifier(network, loss, (1, 4, 4), 3, optimizer, clip_values=(0, 1))
        >>> PGDTrainer(classifier, threat=ThreatModel("Linf", 0.1), steps=7).passes
        Passes(forward=8, backward=8, to_weights=1)
    """

    source: ClassVar[str] = "Madry et al., arXiv 1706.06083, ICLR 2018: exact"

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        threat: ThreatModel,
        steps: int = 10,
        step_size: float | str | None = None,
        clean_weight: float = 0.0,
        start: Start = "uniform",
        start_noise: float = 0.0,
        eps_warmup_epochs: float = 0,
        overfitting: Action = "warn",
        instruments: Iterable[Instrument] = (),
        options: TrainingOptions = TrainingOptions(),
    ) -> None:
        self.clean_weight = check_number("clean_weight", clean_weight, zero=True)
        super().__init__(
            classifier,
            threat=threat,
            steps=steps,
            step_size=step_size,
            start=start,
            start_noise=start_noise,
            eps_warmup_epochs=eps_warmup_epochs,
            overfitting=overfitting,
            instruments=instruments,
            options=options,
        )

    def adversary_objective(self, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda z: self.loss(self.logits(z), y)

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss at the adversary, plus the weighted loss on x."""
        xa = self.adversary(x, y)
        if self.clean_weight == 0:
            return self.loss(self.logits(xa), y)
        clean = self.clean_weight * self.loss(self.logits(x), y)
        return clean + self.loss(self.logits(xa), y)

    @property
    def passes(self) -> Passes:
        at_x = int(self.clean_weight > 0)
        return Passes(self.steps + at_x + 1, self.steps + at_x + 1, at_x + 1)

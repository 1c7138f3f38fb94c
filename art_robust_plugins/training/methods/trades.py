"""TRADES (Zhang, Yu, Jiao, Xing, El Ghaoui, Jordan; arXiv 1901.08573; ICML 2019).

    xa = k steps of projected steepest ascent on KL(p(x) || p(.)) within B(x, eps), from a random start
    L  = CE(f(x), y) + beta KL(p(x) || p(xa))

with p = softmax(f) and CE the classifier's own loss. Status: exact. As in the paper's formula p(x) is not a constant in
the divergence of L.
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


class TRADESTrainer(AdversarialTrainer):
    """TRADES (Zhang et al., arXiv 1901.08573, ICML 2019), exact: CE(f(x), y) + beta KL(p(x) || p(xa)).

    Args:
        beta: weight of the divergence.
        start: uniform in the ball; ``"gaussian"`` is that of the authors' code at eps 8/255. (At x itself the
            divergence is flat.)

    For the other arguments and what is raised see `AdversarialTrainer`.

    Example:
        >>> import torch
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> optimizer = torch.optim.SGD(network.parameters(), 0.1)
        >>> loss = torch.nn.CrossEntropyLoss()
        >>> classifier = PyTorchClassifier(network, loss, (1, 4, 4), 3, optimizer, clip_values=(0, 1))
        >>> TRADESTrainer(classifier, threat=ThreatModel("Linf", 0.1), beta=1.0).passes
        Passes(forward=13, backward=12, to_weights=2)
    """

    source: ClassVar[str] = "Zhang et al.: TRADES, arXiv 1901.08573, ICML 2019: exact"
    needs_logits = True  # a divergence between softmax outputs would not be that of the network's distributions

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        threat: ThreatModel,
        beta: float = 6.0,
        steps: int = 10,
        step_size: float | str | None = None,
        start: Start = "uniform",
        start_noise: float = 0.0,
        eps_warmup_epochs: float = 0,
        overfitting: Action = "warn",
        instruments: Iterable[Instrument] = (),
        options: TrainingOptions = TrainingOptions(),
    ) -> None:
        self.beta = check_number("beta", beta)
        if isinstance(start, str) and start == "none":
            raise ValueError("start: got 'none', where the divergence has no gradient, expected another.")
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
        return self.measure_divergence_from(x)

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The loss on x, and beta times the divergence between x and its adversary."""
        xa = self.adversary(x, y)
        at_x, at_xa = self.logits(x), self.logits(xa)
        return self.loss(at_x, y) + self.beta * self.divergence(at_x, at_xa)

    @property
    def passes(self) -> Passes:
        return Passes(self.steps + 3, self.steps + 2, 2)

"""Local-ball adversarial training (Lu, Kumar: Improving Local Effectiveness for Global robust training; 2110.14030).

The network is trained to be robust not only at an adversary xa of each image but in a small ball around xa. The paper
claims that an adversary of few steps is then enough; docs/methods/local-ball.md says what was measured. With f the
logits, p = softmax(f), r = radius * eps, and D the objective that the adversary ascends:

    xa = k steps of projected steepest ascent on D within B(x, eps), from a random start
    xl = xa + r * (the steepest direction of KL(p(xa) || p(.)) at a random point within r / 2 of xa),
         projected on B(x, eps)
    L  = clean_weight CE(f(x), y) + global_weight G + local_weight KL(p(xa) || p(xl))

    global_loss "ce":  D = CE(f(.), y),          G = CE(f(xa), y)
    global_loss "kl":  D = KL(p(x) || p(.)),     G = KL(p(x) || p(xa))

Options, all off by default, change single parts of it:

    start "previous":          the ascent starts from the sample's previous adversary (FGSM-PGI: Jia et al., 2207.08859)
    local_direction "ascent":  xl = xa + r * (the steepest direction of the ascent's last gradient of D)       (ours)
    smoothness "logits":       |f(xa) - f(xl)|^2 for the divergence in L, as GAT has at the clean point
                               (Sriramanan et al., 2011.14969)
    local_weight_grows:        local_weight times the share of eps that its warm-up has reached                 (ours)

Status: the objective is reconstructed from the paper's abstract; its terms and all constants are ours. Its limits
without a local term are exact: "kl" is TRADES (Zhang et al., arXiv 1901.08573, ICML 2019), "ce" is the adversarial
training of Madry et al. (arXiv 1706.06083, ICLR 2018).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Literal, get_args

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from ...bridge import class_logits
from ...checks import check_choice, check_flag, check_number
from ...threat import ThreatModel, clip
from ..instruments import Instrument
from ..options import TrainingOptions
from ..overfitting import Action
from .adversarial import AdversarialTrainer, Passes, Start

GlobalLoss = Literal["ce", "kl"]
LocalDirection = Literal["kl", "ascent"]
Smoothness = Literal["kl", "logits"]

NOISE = 0.5
"""The distance from xa, as a ratio of r, at which the direction to xl is computed: at xa the divergence is flat, and
close to xa it is lost in rounding (of bfloat16 above all)."""

PRESETS: dict[str, dict[str, Any]] = {
    "weak": {"steps": 1},
    "previous": {"steps": 1, "start": "previous", "smoothness": "logits", "local_weight": 1.0},
    "strong": {"steps": 10},
    "pgd": {"steps": 10, "local_weight": 0.0},
    "trades": {"steps": 10, "global_loss": "kl", "local_weight": 0.0},
}
"""Settings by name, for `LocalBallTrainer.preset`."""


class LocalBallTrainer(AdversarialTrainer):
    """Train an ART classifier against an adversary, of few steps or many, and in a local ball around the adversary.

    The objective stands at the head of this module. It is reconstructed from the abstract of Lu and Kumar (arXiv
    2110.14030), and its constants are ours; without the local term it is TRADES or Madry's PGD training, exactly.

    Args:
        global_loss: ``"ce"`` or ``"kl"``, the global term and what the adversary ascends. ``"ce"`` is the classifier's
            own loss.
        global_weight: weight of the global term; None for 1 with ``"ce"`` and 6 (TRADES' beta) with ``"kl"``.
        local_weight: weight of the local term; 0 for none. Large ones may mask gradients.
        local_weight_grows: let the weight of the local term grow with eps during ``eps_warmup_epochs``, from 1 % of it
            (ours).
        local_direction: from xa to xl: ``"kl"``, the steepest one of the divergence near xa, which takes two forward
            passes and a backward pass; or ``"ascent"``, that of the ascent's last step, whose gradient is there already
            (ours). Where xa lies on the border of the threat's ball, the projection brings such an xl back to xa: on
            MNIST one network each lost 11 and 19 points.
        smoothness: the divergence of the local term: ``"kl"``, or ``"logits"``: the squared distance of the logits, the
            mean over samples, as GAT has it at the clean point (Sriramanan et al., arXiv 2011.14969). The direction to
            xl stays as ``local_direction`` says.
        radius: of the local ball, as a ratio of eps.
        clean_weight: weight of the classifier's loss on x; None for 0 with ``"ce"`` and 1 with ``"kl"``.
        within_threat: project xl on B(x, eps); without it only the range of the input limits xl. (In L1 the projection
            may take it further from xa than r, up to 2 r.)

    For the other arguments see `AdversarialTrainer`; ``eps_warmup_epochs`` lets r grow with eps, and ``start="none"``
    (x itself) is for ``"ce"`` only, as the divergence is flat there.

    Raises:
        TypeError: a threat that is no `ThreatModel`.
        ValueError: a number or name outside its range; ``start="none"`` with ``"kl"``; neither a global nor a local
            term.

    The adversary and the local point are made with the network in evaluation mode, from gradients of the input alone.
    Then x (where it counts), xa and xl pass through it in training mode, one after the other, so that batch
    normalisation uses the statistics of each separately. `passes` says what a step costs: with k steps and otherwise
    default arguments k + 4 forward and k + 3 backward passes, of which 2 reach the weights (k + 2 and k + 2 with
    ``local_direction="ascent"``); PGD takes k + 1 and k + 1 (1), TRADES k + 3 and k + 2 (2).

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> optimizer = torch.optim.SGD(network.parameters(), 0.1)
        >>> loss = torch.nn.CrossEntropyLoss()
        >>> classifier = PyTorchClassifier(network, loss, (1, 4, 4), 3, optimizer, clip_values=(0, 1))
        >>> x, y = torch.rand(32, 1, 4, 4), torch.randint(0, 3, (32,))
        >>> trainer = LocalBallTrainer(classifier, threat=ThreatModel("Linf", 0.1), steps=1)
        >>> trainer.fit(x, y, nb_epochs=2, verbose=False)
        >>> trainer.passes
        Passes(forward=5, backward=4, to_weights=2)
    """

    source: ClassVar[str] = (
        "Lu, Kumar, arXiv 2110.14030: reconstructed from the abstract, terms and constants are ours; its limits PGD "
        "and TRADES are exact"
    )

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        threat: ThreatModel,
        steps: int = 1,
        step_size: float | str | None = None,
        global_loss: GlobalLoss = "ce",
        global_weight: float | None = None,
        local_weight: float = 6.0,
        local_weight_grows: bool = False,
        local_direction: LocalDirection = "kl",
        smoothness: Smoothness = "kl",
        radius: float = 0.5,
        clean_weight: float | None = None,
        within_threat: bool = True,
        start: Start = "uniform",
        start_noise: float = 0.0,
        eps_warmup_epochs: float = 0,
        overfitting: Action = "warn",
        instruments: Iterable[Instrument] = (),
        options: TrainingOptions = TrainingOptions(),
    ) -> None:
        check_choice("global_loss", global_loss, get_args(GlobalLoss))
        check_choice("local_direction", local_direction, get_args(LocalDirection))
        check_choice("smoothness", smoothness, get_args(Smoothness))
        check_flag("local_weight_grows", local_weight_grows)
        check_flag("within_threat", within_threat)
        self.uses_kl = global_loss == "kl"
        self.global_loss, self.within_threat = global_loss, within_threat
        global_weight = (6.0 if self.uses_kl else 1.0) if global_weight is None else global_weight
        clean_weight = (1.0 if self.uses_kl else 0.0) if clean_weight is None else clean_weight
        self.global_weight = check_number("global_weight", global_weight, zero=True)
        self.local_weight = check_number("local_weight", local_weight, zero=True)
        self.clean_weight = check_number("clean_weight", clean_weight, zero=True)
        self.local_direction, self.smoothness = local_direction, smoothness
        self.local_weight_grows = local_weight_grows
        self.radius = check_number("radius", radius)
        if self.uses_kl and start == "none":
            raise ValueError("start: got 'none' with global_loss 'kl', whose gradient is 0 there, expected another.")
        if local_weight_grows and eps_warmup_epochs == 0:
            raise ValueError(
                f"local_weight_grows: got True with eps_warmup_epochs {eps_warmup_epochs!r}, expected epochs in which "
                f"eps grows."
            )
        if self.global_weight == 0 and self.local_weight == 0:
            raise ValueError("global_weight: got 0, as is local_weight, expected a term of the adversary that counts.")
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

    @staticmethod
    def preset(name: str, classifier: PyTorchClassifier, *, threat: ThreatModel, **changes: Any) -> LocalBallTrainer:
        """A trainer with the settings of a preset: ``"weak"`` (k 1), ``"strong"`` (k 10), ``"pgd"``, ``"trades"``.

        ``"previous"`` takes one step from each sample's previous adversary, and the squared distance of the logits for
        the divergence of the local term: of the forms with one step that were measured on test images of MNIST and of
        digits the one that resists most (ours, after arXiv 2207.08859 and 2011.14969). It needs ``fit(x, y)``, as
        ``start="previous"`` does.

        ``changes`` are arguments of the constructor, which override the preset's.
        """
        check_choice("name", name, tuple(PRESETS))
        return LocalBallTrainer(classifier, threat=threat, **{**PRESETS[name], **changes})

    def adversary_objective(self, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        return self.measure_divergence_from(x) if self.uses_kl else lambda z: self.loss(self.logits(z), y)

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The objective L of one batch."""
        if self.local_weight == 0:
            return self.objective(x, y, self.adversary(x, y))
        if self.local_direction == "ascent":
            xa, gradient = self.ascend(x, y)
            return self.objective(x, y, xa, self.move_within_ball(x, xa, gradient))
        xa = self.adversary(x, y)
        with self.evaluation_mode():
            xl = self.local_point(x, xa)
        return self.objective(x, y, xa, xl)

    def local_point(self, x: Tensor, xa: Tensor) -> Tensor:
        """The local point xl in the ball of radius r around xa [N, ...], with ``local_direction="kl"``."""
        low, high = self.input_range
        ball = self.current_threat.scale(self.radius)
        with torch.no_grad():
            at_xa = self.logits(xa)
        noise = self.draw(ball.scale(NOISE).random_change, xa)
        beside = clip(xa + noise, low, high).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.divergence(at_xa, self.logits(beside)), beside)
        return self.move_within_ball(x, xa, gradient)

    def move_within_ball(self, x: Tensor, xa: Tensor, gradient: Tensor) -> Tensor:
        """The point at distance r from xa along the steepest direction of a gradient, within the threat's ball."""
        threat, (low, high) = self.current_threat, self.input_range
        ball = threat.scale(self.radius)
        xl = ball.move(xa, gradient, ball.eps, low, high)
        return threat.project(xl, x, low, high) if self.within_threat else clip(xl, low, high)

    def objective(self, x: Tensor, y: Tensor, xa: Tensor, xl: Tensor | None = None) -> Tensor:
        """L for given points; without xl, L without the local term."""
        terms: list[Tensor] = []
        if self._needs_x:
            at_x = self.logits(x)
        at_xa = self.logits(xa)
        if self.clean_weight > 0:
            terms.append(self.clean_weight * self.loss(at_x, y))
        if self.global_weight > 0:
            terms.append(self.global_weight * (self.divergence(at_x, at_xa) if self.uses_kl else self.loss(at_xa, y)))
        if xl is not None:
            terms.append(self.current_local_weight * self._difference(at_xa, self.logits(xl)))
        return torch.stack(terms).sum()

    @property
    def current_local_weight(self) -> float:
        """The weight of the local term; with ``local_weight_grows`` a smaller one during the warm-up of eps."""
        return self.local_weight * (self.current_threat.eps / self.threat.eps if self.local_weight_grows else 1.0)

    def _difference(self, at_xa: Tensor, at_xl: Tensor) -> Tensor:
        if self.smoothness == "kl":
            return self.divergence(at_xa, at_xl)
        difference = class_logits(self.classifier, at_xa) - class_logits(self.classifier, at_xl)
        return difference.square().sum(dim=1).mean()

    @property
    def passes(self) -> Passes:
        """The passes of one training step."""
        local = int(self.local_weight > 0)
        ascent = self.steps + self.uses_kl  # a gradient each, and p(x)
        to_weights = self._needs_x + 1 + local
        # p(xa) and a gradient for the local point.
        own = local * (self.local_direction == "kl")
        return Passes(ascent + 2 * own + to_weights, self.steps + own + to_weights, to_weights)

    @property
    def needs_logits(self) -> bool:
        # A divergence between softmax outputs would not be that of the network's distributions.
        return super().needs_logits or self.uses_kl or self.local_weight > 0

    @property
    def _needs_x(self) -> bool:
        return self.clean_weight > 0 or (self.uses_kl and self.global_weight > 0)

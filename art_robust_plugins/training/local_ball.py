"""Local-ball adversarial training (Lu, Kumar: Improving Local Effectiveness for Global robust training; 2110.14030).

Robustness is asked for not only at an adversary xa of each image but in a small ball around xa, so that an adversary of
few steps may be enough, as the paper claims; the README says what was measured. With f the logits, p = softmax(f), r =
radius * eps, and D what the adversary ascends:

    xa = k steps of projected steepest ascent on D within B(x, eps), from a random start
    xl = xa + r * (the steepest direction of KL(p(xa) || p(.)) at a random point within r / 2 of xa),
         projected on B(x, eps)
    L  = clean_weight CE(f(x), y) + global_weight G + local_weight KL(p(xa) || p(xl))

    global_loss "ce":  D = CE(f(.), y),          G = CE(f(xa), y)
    global_loss "kl":  D = KL(p(x) || p(.)),     G = KL(p(x) || p(xa))

Status: the objective is reconstructed from the paper's abstract; its terms and all constants are ours. Its limits
without a local term are exact: "kl" is TRADES (Zhang et al., arXiv 1901.08573, ICML 2019), "ce" is the adversarial
training of Madry et al. (arXiv 1706.06083, ICLR 2018).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import functional

from ..bridge import check_threat, class_logits
from ..checks import check_choice, check_count, check_flag, check_number, plain_number
from ..threat import ThreatModel, clip
from .instruments import Instrument
from .loop import RobustTrainer
from .options import TrainingOptions
from .overfitting import Action, OverfittingWatch

GlobalLoss = Literal["ce", "kl"]
Start = Literal["uniform", "gaussian", "none"]

NOISE = 0.5
"""How far from xa the direction to xl is taken, as a share of r: at xa the divergence is flat, and close to it drowns
in rounding (of bfloat16 above all)."""

GAUSSIAN_START = 0.03
"""Standard deviation of the gaussian start, as a share of eps (TRADES: 0.001 at 8/255)."""

_NUMBERS = ("global_weight", "local_weight", "clean_weight", "eps_warmup_epochs")

PRESETS: dict[str, dict[str, Any]] = {
    "weak": {"steps": 1},
    "strong": {"steps": 10},
    "pgd": {"steps": 10, "local_weight": 0.0},
    "trades": {"steps": 10, "global_loss": "kl", "local_weight": 0.0},
}
"""Settings by name, for `LocalBallTrainer.preset`."""


class Passes(NamedTuple):
    """Passes of a whole batch through the network in one step of training."""

    forward: int
    backward: int
    to_weights: int
    """How many of the backward passes reach the weights; the others give gradients of the input alone."""


class LocalBallTrainer(RobustTrainer):
    """Train an ART classifier against an adversary, of few steps or many, and in a local ball around it.

    The objective stands at the head of this module. It is reconstructed from the abstract of Lu and Kumar (arXiv
    2110.14030), and its constants are ours; without the local term it is TRADES or Madry's PGD training, exactly.

    Args:
        classifier: an ART ``PyTorchClassifier`` with an optimizer.
        threat: the ball B(x, eps), in the units of the classifier's input. L1 takes the same formulas; its steps move
            one coordinate each, and ascend slowly.
        steps: k, the ascent steps of the adversary: 1 to 3 are weak, 10 is strong.
        step_size: length of a step in the threat's norm and units; None for 1.25 eps in one step, 2.5 eps / k in 2 or
            3, eps / 4 in more.
        global_loss: ``"ce"`` or ``"kl"``, the global term and what the adversary ascends. ``"ce"`` is the classifier's
            own loss.
        global_weight: weight of the global term; None for 1 with ``"ce"`` and 6 (TRADES' beta) with ``"kl"``.
        local_weight: weight of the local term; 0 for none. Large ones mask gradients: 18 did on MNIST.
        radius: of the local ball, as a share of eps.
        clean_weight: weight of the classifier's loss on x; None for 0 with ``"ce"`` and 1 with ``"kl"``.
        within_threat: project xl on B(x, eps); without it only the range of the input limits xl. (In L1 the projection
            may take it further from xa than r, up to 2 r.)
        every_iterate: average the local term over all iterates of the ascent, rather than take the last alone.
        constant_target: p(xa) is a constant in the local term, whose gradient then flows through p(xl) alone.
        start: of the ascent: ``"uniform"`` in the ball, ``"gaussian"`` with 3 % of eps as standard deviation (as
            TRADES' own start at 8/255), or ``"none"`` for x itself (with ``"ce"`` only: the divergence is flat there).
        eps_warmup_epochs: let eps, and the step size and r with it, grow linearly during the first epochs (a fraction
            of one is possible), step by step.
        overfitting: what to do when a weak adversary is resisted and a strong one is not (see `OverfittingWatch`; with
            10 steps and more it does not look): ``"warn"``; ``"rollback"`` to the last good epoch; ``"ignore"``.
        instruments: attached to the network while it trains, such as `Layerwise` and `BANG`.
        options: see `TrainingOptions`.

    Raises:
        TypeError: a threat that is no `ThreatModel`.
        ValueError: a number or name outside its range; ``start="none"`` with ``"kl"``; neither a global nor a local
            term.

    The adversary and the local point are made with the network in evaluation mode, from gradients of the input alone.
    Then x (where it counts), xa and xl pass through it in training mode, one after the other, so that batch
    normalisation takes the statistics of each by itself. `passes` says what a step costs: with k steps and else the
    defaults k + 4 forward and k + 3 backward passes, of which 2 reach the weights; PGD takes k + 1 and k + 1 (1),
    TRADES k + 3 and k + 2 (2).

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

    threat: ThreatModel

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        threat: ThreatModel,
        steps: int = 1,
        step_size: float | None = None,
        global_loss: GlobalLoss = "ce",
        global_weight: float | None = None,
        local_weight: float = 6.0,
        radius: float = 0.5,
        clean_weight: float | None = None,
        within_threat: bool = True,
        every_iterate: bool = False,
        constant_target: bool = False,
        start: Start = "uniform",
        eps_warmup_epochs: float = 0,
        overfitting: Action = "warn",
        instruments: Iterable[Instrument] = (),
        options: TrainingOptions = TrainingOptions(),
    ) -> None:
        if not isinstance(threat, ThreatModel):
            raise TypeError(f"threat: got {type(threat).__name__}, expected a ThreatModel.")
        check_count("steps", steps)
        check_choice("global_loss", global_loss, get_args(GlobalLoss))
        check_choice("start", start, get_args(Start))
        check_choice("overfitting", overfitting, get_args(Action))
        kl = global_loss == "kl"
        self.steps = steps
        self.step_size = _default_step(steps) * threat.eps if step_size is None else step_size
        self.global_loss = global_loss
        self.global_weight = (6.0 if kl else 1.0) if global_weight is None else global_weight
        self.local_weight, self.radius = local_weight, radius
        self.clean_weight = (1.0 if kl else 0.0) if clean_weight is None else clean_weight
        self.within_threat, self.every_iterate = within_threat, every_iterate
        self.constant_target, self.start = constant_target, start
        self.eps_warmup_epochs, self.overfitting = eps_warmup_epochs, overfitting
        for name in ("step_size", "radius"):
            check_number(name, getattr(self, name))
        for name in _NUMBERS:
            check_number(name, getattr(self, name), zero=True)
        for name in ("within_threat", "every_iterate", "constant_target"):
            check_flag(name, getattr(self, name))
        for name in ("steps", "step_size", "radius", *_NUMBERS):
            setattr(self, name, plain_number(getattr(self, name)))
        if kl and start == "none":
            raise ValueError("start: got 'none' with global_loss 'kl', whose gradient is 0 there, expected another.")
        if self.global_weight == 0 and self.local_weight == 0:
            raise ValueError("global_weight: got 0, as is local_weight, expected a term of the adversary that counts.")
        self._watch = OverfittingWatch(self, overfitting)
        super().__init__(classifier, threat=threat, instruments=instruments, options=options)
        if step_size is not None:
            check_threat(threat, classifier, name="step_size", value=self.step_size)

    @staticmethod
    def preset(name: str, classifier: PyTorchClassifier, *, threat: ThreatModel, **changes: Any) -> LocalBallTrainer:
        """A trainer with the settings of a preset: ``"weak"`` (k 1), ``"strong"`` (k 10), ``"pgd"``, ``"trades"``.

        ``changes`` are arguments of the constructor, and count before the preset's.
        """
        check_choice("name", name, tuple(PRESETS))
        return LocalBallTrainer(classifier, threat=threat, **{**PRESETS[name], **changes})

    @property
    def passes(self) -> Passes:
        """What a step of training costs."""
        kl, local = self.global_loss == "kl", self.local_weight > 0
        centers = self._centers
        ascent = self.steps + kl  # a gradient each, and p(x)
        local_points = local + centers  # p(xa), that of the other iterates being known, and a gradient each
        at_x = self._needs_x
        at_centers = max(centers, 1)
        forward = ascent + local_points + at_x + at_centers + centers
        to_weights = at_x + (int(self.global_weight > 0) if self.constant_target else at_centers) + centers
        return Passes(forward, self.steps + centers + to_weights, to_weights)

    @property
    def present_threat(self) -> ThreatModel:
        """The ball at this point of the training: while eps grows a smaller one, of 1 % of it at first."""
        if self.epochs_done >= self.eps_warmup_epochs:
            return self.threat
        return self.threat.scaled(max(self.epochs_done / self.eps_warmup_epochs, 0.01))

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The objective L of one batch."""
        self._watch.begin_step(x, y)
        network = self.classifier.model
        network.eval()
        iterates, outputs = self.ascent(x, y)
        centers = list(zip(iterates, outputs, strict=True))[len(iterates) - self._centers :]
        local_points = [self.local_point(x, center, output) for center, output in centers]
        self.enter_training_mode()
        # Some versions of torch keep weights that autocast cast without gradients, and use them where they are needed.
        torch.clear_autocast_cache()
        return self.objective(x, y, iterates, local_points)

    def ascent(self, x: Tensor, y: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """The adversary's last iterates, and the network's outputs that it met there (None at the last).

        As many as have a local ball, and the adversary itself.
        """
        threat, (low, high) = self.present_threat, self.input_range
        step_size = self.step_size * threat.eps / self.threat.eps
        if self.global_loss == "kl":
            with torch.no_grad():
                at_x = self.logits(x)
        met: list[Tensor | None] = []

        def ascended(z: Tensor) -> Tensor:
            outputs = self.logits(z)
            met.append(outputs.detach())
            return self.divergence(at_x, outputs) if self.global_loss == "kl" else self.loss(outputs, y)

        point = self.start_point(x)
        kept = max(self._centers, 1)
        iterates: deque[Tensor] = deque(maxlen=kept)
        for _ in range(self.steps):
            point = threat.ascend(ascended, x, point, steps=1, step_size=step_size, low=low, high=high)
            iterates.append(point)
        return [*iterates], [*met[1:], None][-kept:]

    def local_point(self, x: Tensor, center: Tensor, outputs: Tensor | None = None) -> Tensor:
        """xl in the ball of radius r around ``center`` [N, ...]; ``outputs`` are the network's there, where known."""
        threat, (low, high) = self.present_threat, self.input_range
        ball = threat.scaled(self.radius)
        if outputs is None:
            with torch.no_grad():
                outputs = self.logits(center)
        noise = self.drawn(ball.scaled(NOISE).random_change, center)
        beside = clip(center + noise, low, high).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.divergence(outputs, self.logits(beside)), beside)
        point = ball.moved(center, gradient, ball.eps, low, high)
        return threat.project(point, x, low, high) if self.within_threat else clip(point, low, high)

    def objective(self, x: Tensor, y: Tensor, iterates: list[Tensor], local_points: list[Tensor]) -> Tensor:
        """L of points that are made: the adversary is the last iterate, and local points belong to the last ones."""
        terms: list[Tensor] = []
        if self._needs_x:
            at_x = self.logits(x)
        at_adversary = self.logits(iterates[-1])
        if self.clean_weight > 0:
            terms.append(self.clean_weight * self.loss(at_x, y))
        if self.global_weight > 0:
            kl = self.global_loss == "kl"
            terms.append(
                self.global_weight * (self.divergence(at_x, at_adversary) if kl else self.loss(at_adversary, y))
            )
        if local_points:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.constant_target):
                at_others = [self.logits(center) for center in iterates[len(iterates) - len(local_points) : -1]]
            at_centers = [*at_others, at_adversary.detach() if self.constant_target else at_adversary]
            weight = self.local_weight / len(local_points)
            for at_center, point in zip(at_centers, local_points, strict=True):
                terms.append(weight * self.divergence(at_center, self.logits(point)))
        return torch.stack(terms).sum()

    def divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """KL(softmax(p) || softmax(q)) of the network's outputs, the mean over samples."""
        p, q = class_logits(self.classifier, p), class_logits(self.classifier, q)
        return functional.kl_div(q.log_softmax(dim=1), p.log_softmax(dim=1), reduction="batchmean", log_target=True)

    @property
    def _centers(self) -> int:
        """How many iterates, the last ones, have a local ball."""
        if self.local_weight == 0:
            return 0
        return self.steps if self.every_iterate else 1

    @property
    def _needs_x(self) -> bool:
        return self.clean_weight > 0 or (self.global_loss == "kl" and self.global_weight > 0)

    def start_point(self, x: Tensor) -> Tensor:
        """Where the ascent begins."""
        threat, (low, high) = self.present_threat, self.input_range
        if self.start == "uniform":
            return clip(x + self.drawn(threat.random_change, x), low, high)
        if self.start == "none":
            return x
        return threat.project(x + GAUSSIAN_START * threat.eps * self.drawn(torch.randn_like, x), x, low, high)

    def end_epoch(self, record: dict[str, float]) -> None:
        """Look for catastrophic overfitting."""
        self._watch.end_epoch(record)

    def state_dict(self) -> dict[str, Tensor]:
        """What the watch for catastrophic overfitting remembers."""
        return self._watch.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up the state of an earlier run, as `state_dict` gave it."""
        self._watch.load_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_watch"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._watch = OverfittingWatch(self, state["overfitting"])
        super().__setstate__(state)

    def _prepare(self) -> None:
        super()._prepare()
        self._watch.reset()

    @property
    def _needs_logits(self) -> bool:
        # A divergence between softmax outputs would not be that of the network's distributions.
        return super()._needs_logits or self.global_loss == "kl" or self.local_weight > 0


class PGDTrainer(LocalBallTrainer):
    """Adversarial training with projected gradient ascent (Madry et al., arXiv 1706.06083, ICLR 2018), exact.

    The classifier's own loss at an adversary of k steps, and nothing else: `LocalBallTrainer` with ``global_loss="ce"``
    and no local term. ``clean_weight`` adds the loss on clean images. See there for the other arguments.

    Example:
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
        step_size: float | None = None,
        clean_weight: float = 0.0,
        start: Start = "uniform",
        eps_warmup_epochs: float = 0,
        overfitting: Action = "warn",
        instruments: Iterable[Instrument] = (),
        options: TrainingOptions = TrainingOptions(),
    ) -> None:
        super().__init__(
            classifier,
            threat=threat,
            steps=steps,
            step_size=step_size,
            clean_weight=clean_weight,
            local_weight=0.0,
            start=start,
            eps_warmup_epochs=eps_warmup_epochs,
            overfitting=overfitting,
            instruments=instruments,
            options=options,
        )


class TRADESTrainer(LocalBallTrainer):
    """TRADES (Zhang et al., arXiv 1901.08573, ICML 2019), exact: CE(f(x), y) + beta KL(p(x) || p(xa)).

    xa ascends the divergence in k steps: `LocalBallTrainer` with ``global_loss="kl"`` and no local term; see there for
    the arguments. As in the paper's formula p(x) is not a constant. The start is uniform in the ball; ``"gaussian"``
    is that of the authors' code at eps 8/255.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
        >>> optimizer = torch.optim.SGD(network.parameters(), 0.1)
        >>> loss = torch.nn.CrossEntropyLoss()
        >>> classifier = PyTorchClassifier(network, loss, (1, 4, 4), 3, optimizer, clip_values=(0, 1))
        >>> TRADESTrainer(classifier, threat=ThreatModel("Linf", 0.1), beta=1.0).passes
        Passes(forward=13, backward=12, to_weights=2)
    """

    source: ClassVar[str] = "Zhang et al.: TRADES, arXiv 1901.08573, ICML 2019: exact"

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        threat: ThreatModel,
        beta: float = 6.0,
        steps: int = 10,
        step_size: float | None = None,
        start: Start = "uniform",
        eps_warmup_epochs: float = 0,
        overfitting: Action = "warn",
        instruments: Iterable[Instrument] = (),
        options: TrainingOptions = TrainingOptions(),
    ) -> None:
        check_number("beta", beta)
        self.beta = plain_number(beta)
        super().__init__(
            classifier,
            threat=threat,
            steps=steps,
            step_size=step_size,
            global_loss="kl",
            global_weight=beta,
            local_weight=0.0,
            start=start,
            eps_warmup_epochs=eps_warmup_epochs,
            overfitting=overfitting,
            instruments=instruments,
            options=options,
        )


def _default_step(steps: int) -> float:
    """The length of an ascent step as a share of eps."""
    if steps == 1:
        return 1.25
    return 2.5 / steps if steps <= 3 else 0.25

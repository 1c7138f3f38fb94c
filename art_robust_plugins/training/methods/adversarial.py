"""The base of adversarial training, for any objective: ascent, random start, growing ball, overfitting watch.

    xa = k steps of projected steepest ascent on D within B(x, eps), from a random start

A method gives D (`AdversarialTrainer.adversary_objective`) and a loss (`training_loss`) that uses `adversary`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, get_args

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.nn import functional

from ...bridge import class_logits, device_of
from ...checks import check_choice, check_count, check_number
from ...threat import Norm, ThreatModel, clip, parse_radius
from ..change_store import ChangeStore
from ..instruments import Instrument
from ..options import TrainingOptions
from ..overfitting import Action, OverfittingWatch
from ..trainer import RobustTrainer

Start = Literal["uniform", "gaussian", "none", "previous"]

GAUSSIAN_START = 0.03
"""Standard deviation of the gaussian start, as a share of eps (TRADES: 0.001 at 8/255)."""


class Passes(NamedTuple):
    """Passes of a whole batch through the network in one step of training."""

    forward: int
    backward: int
    to_weights: int
    """The number of backward passes that reach the weights; the others give gradients of the input alone."""


class AdversarialTrainer(RobustTrainer):
    """The base of methods that train against an adversary made by projected steepest ascent.

    Args:
        classifier: an ART ``PyTorchClassifier`` with an optimizer.
        threat: the ball B(x, eps), in the units of the classifier's input. L1 takes the same formulas; its steps move
            one coordinate each, and ascend slowly.
        steps: k, the ascent steps of the adversary: 1 to 3 are weak, 10 is strong.
        step_size: length of a step in the threat's norm and units; None for 1.25 eps in one step, 2.5 eps / k in 2 or
            3, eps / 4 in more.
        start: of the ascent: ``"uniform"`` in the ball, ``"gaussian"`` with 3 % of eps as standard deviation (as
            TRADES' own start at 8/255), ``"none"`` for x itself, or ``"previous"`` for the sample's previous adversary
            (as FGSM-PGI: Jia et al., arXiv 2207.08859), uniform where it has none yet, as in the first epoch.
        start_noise: with ``"previous"``, a uniform change of so many eps that is added to the start, before it is
            projected (ours).
        eps_warmup_epochs: let eps, and the step size with it, grow linearly during the first epochs (a fraction of one
            is possible), step by step.
        overfitting: what to do when the network resists a weak adversary but not a strong one (see `OverfittingWatch`;
            with 10 steps and more there is no check): ``"warn"``; ``"rollback"`` to the last good epoch; ``"ignore"``.
        instruments: attached to the network while it trains, such as `Layerwise` and `BANG`.
        options: see `TrainingOptions`.

    Raises:
        TypeError: a threat that is no `ThreatModel`.
        ValueError: a number or name outside its range.

    The adversary is made with the network in evaluation mode, from gradients of the input alone.

    For ``start="previous"`` the change xa - x of each sample is kept on the network's device, and in the checkpoint, as
    a share of the current eps: in Linf a byte for each number of the training images, in L2 and L1 two (float16). It
    lies in the image's own frame: crops and flips move it with the image, and pixels that a crop cuts off keep what
    they had; padding starts at 0. Only ``fit`` knows a batch's samples: loaders and preprocessing that acts in training
    alone are refused. Several processes exchange their changes in each step. A rollback restores them too.

    Subclasses repeat these arguments in their constructors, with their own defaults: the registry and the command line
    read a method's parameters from its signature.
    """

    threat: ThreatModel

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        threat: ThreatModel,
        steps: int,
        step_size: float | str | None,
        start: Start,
        start_noise: float = 0.0,
        eps_warmup_epochs: float,
        overfitting: Action,
        instruments: Iterable[Instrument],
        options: TrainingOptions,
    ) -> None:
        if not isinstance(threat, ThreatModel):
            raise TypeError(
                f"threat: got {type(threat).__name__}, expected a ThreatModel, such as ThreatModel('Linf', '8/255')."
            )
        check_choice("start", start, get_args(Start))
        check_choice("overfitting", overfitting, get_args(Action))
        self.steps = check_count("steps", steps)
        own_size = default_step(self.steps) * threat.eps
        self.step_size = own_size if step_size is None else parse_radius(step_size, name="step_size")
        self.eps_warmup_epochs = check_number("eps_warmup_epochs", eps_warmup_epochs, zero=True)
        self.start, self.overfitting = start, overfitting
        self.start_noise = check_number("start_noise", start_noise, zero=True)
        if self.start_noise and start != "previous":
            raise ValueError(f"start_noise: got {start_noise!r} with start {start!r}, expected it with 'previous'.")
        self.change_store: ChangeStore | None = None
        self.overfitting_watch = OverfittingWatch(self, overfitting)
        super().__init__(classifier, threat=threat, instruments=instruments, options=options)

    @property
    @abstractmethod
    def passes(self) -> Passes:
        """The passes of one training step."""

    @abstractmethod
    def adversary_objective(self, x: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
        """D for a batch: a function of points z [N, ...] that gives a scalar, which the adversary ascends."""

    @property
    def radii(self) -> dict[str, tuple[Norm, float]]:
        """The radius of the threat, and a step size that was given."""
        own_size = default_step(self.steps) * self.threat.eps
        given = {} if self.step_size == own_size else {"step_size": (self.threat.norm, self.step_size)}
        return {**super().radii, **given}

    @property
    def current_threat(self) -> ThreatModel:
        """The current ball: during the warm-up of eps a smaller one, beginning with 1 % of eps."""
        if self.epochs_done >= self.eps_warmup_epochs:
            return self.threat
        return self.threat.scale(max(self.epochs_done / self.eps_warmup_epochs, 0.01))

    def adversary(self, x: Tensor, y: Tensor) -> Tensor:
        """The adversary xa [N, ...], detached."""
        return self.ascend(x, y)[0]

    def ascend(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The adversary xa [N, ...], and the gradient along which the ascent's last step went, both detached."""
        self.overfitting_watch.begin_step(x, y)
        threat, (low, high) = self.current_threat, self.input_range
        step_size = self.step_size * threat.eps / self.threat.eps
        with self.evaluation_mode():
            objective, start = self.adversary_objective(x, y), self.start_point(x)
            z = threat.ascend(objective, x, start, steps=self.steps - 1, step_size=step_size, low=low, high=high)
            z.requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(objective(z), z)
            xa = threat.project(threat.move(z.detach(), gradient, step_size, low, high), x, low, high)
        if self.change_store is not None and self.samples is not None:
            self.change_store.write(self.samples, (xa - x) / threat.eps, self.share)
        return xa, gradient

    def start_point(self, x: Tensor) -> Tensor:
        """The start of the ascent: a point [N, ...] in the ball around each sample."""
        threat, (low, high) = self.current_threat, self.input_range
        if self.start == "uniform":
            return clip(x + self.draw(threat.random_change, x), low, high)
        if self.start == "none":
            return x
        if self.start == "previous":
            return threat.project(x + self._previous_change(x), x, low, high)
        return threat.project(x + GAUSSIAN_START * threat.eps * self.draw(torch.randn_like, x), x, low, high)

    def _previous_change(self, x: Tensor) -> Tensor:
        """The change of each sample's previous adversary with fresh noise; uniform for those that have had none."""
        threat, store, samples, share = self.current_threat, self.change_store, self.samples, self.share
        if store is None or samples is None:
            return self.draw(threat.random_change, x)
        kept, known = store.read(samples, x), store.known[samples.rows]
        if share is not None:
            kept, known = share.select(kept), share.select(known)
        change = threat.eps * kept
        if self.start_noise:
            change = change + self.draw(threat.scale(self.start_noise).random_change, x)
        if store.complete:
            return change
        return torch.where(known.view(-1, *[1] * (x.dim() - 1)), change, self.draw(threat.random_change, x))

    @contextmanager
    def evaluation_mode(self) -> Iterator[None]:
        """A context for making points: the network is in evaluation mode within it, and in training mode after it."""
        self.classifier.model.eval()
        yield
        self.enter_training_mode()
        # Some versions of torch cache weights that were cast without gradients, and reuse them with gradients.
        torch.clear_autocast_cache()

    def divergence(self, p: Tensor, q: Tensor) -> Tensor:
        """KL(softmax(p) || softmax(q)) of the network's outputs, the mean over samples."""
        p, q = class_logits(self.classifier, p), class_logits(self.classifier, q)
        return functional.kl_div(q.log_softmax(dim=1), p.log_softmax(dim=1), reduction="batchmean", log_target=True)

    def measure_divergence_from(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """The function of z [N, ...] that gives KL(p(x) || p(z)), without gradients through x."""
        with torch.no_grad():
            at_x = self.logits(x)
        return lambda z: self.divergence(at_x, self.logits(z))

    def prepare(self) -> None:
        super().prepare()
        self.overfitting_watch.reset()
        self.change_store = None
        if self.start == "previous" and self.training_defences:
            names = ", ".join(type(defence).__name__ for defence in self.training_defences)
            raise ValueError(
                f"start: got 'previous' for a classifier with {names}, which changes training images in a way that "
                f"cannot be undone, expected another start, or a classifier without it."
            )

    def begin_run(self, samples: int | None) -> None:
        """Make room for the changes that ``start="previous"`` keeps."""
        if self.start != "previous":
            return
        if samples is None:
            raise ValueError(
                "start: got 'previous' for a loader, whose batches do not tell which samples they hold, expected "
                "fit(x, y) or another start."
            )
        shape, device = self.classifier.input_shape, device_of(self.classifier.model)
        self.change_store = ChangeStore(self.threat.norm, samples, shape, device)

    def end_epoch(self, record: dict[str, float]) -> None:
        """Look for catastrophic overfitting."""
        self.overfitting_watch.end_epoch(record)
        if self.change_store is not None:
            self.change_store.end_epoch()

    def state_dict(self) -> dict[str, Tensor]:
        """The state of the watch for catastrophic overfitting, and the changes that ``start="previous"`` keeps."""
        changes = {} if self.change_store is None else self.change_store.state_dict()
        return {**self.overfitting_watch.state_dict(), **changes}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the state of an earlier run, as `state_dict` returned it."""
        if self.change_store is not None:
            self.change_store.load_state_dict(state)
        elif "changes" in state:
            raise ValueError(f"state: got changes of earlier adversaries with start {self.start!r}, expected none.")
        self.overfitting_watch.load_state_dict(state)

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("overfitting_watch", "change_store")
        return {name: value for name, value in super().__getstate__().items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.overfitting_watch = OverfittingWatch(self, state["overfitting"])
        super().__setstate__(state)


def default_step(steps: int) -> float:
    """The length of an ascent step as a share of eps."""
    if steps == 1:
        return 1.25
    return 2.5 / steps if steps <= 3 else 0.25

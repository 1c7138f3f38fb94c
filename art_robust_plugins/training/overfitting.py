"""Catastrophic overfitting (Wong, Rice, Kolter: Fast is better than free, arXiv 2001.03994, ICLR 2020).

Training against an adversary of one or a few steps can, within an epoch, learn to resist that adversary alone, and lose
all robustness against a stronger one.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any, Literal, Protocol

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from ..bridge import class_logits, device_of, preprocessing_modules
from ..processes import find_processes
from ..threat import Bound, ThreatModel
from .change_store import ChangeStore
from .engine.samples import Samples
from .instruments import Instrument
from .processes import Share

Action = Literal["warn", "rollback", "ignore"]

STRONG = 10
"""Ascent steps of the strong adversary; training with as many is not watched."""
SAMPLES = 64
GAP = 0.3


class Watched(Protocol):
    """A trainer whose adversary ascends the classifier's loss, or something like it, in a few steps."""

    classifier: PyTorchClassifier
    threat: ThreatModel
    instruments: tuple[Instrument, ...]
    share: Share | None
    samples: Samples | None
    steps: int
    step_size: float

    @property
    def current_threat(self) -> ThreatModel: ...
    @property
    def input_range(self) -> tuple[Bound | None, Bound | None]: ...
    @property
    def change_store(self) -> ChangeStore | None: ...
    def start_point(self, x: Tensor) -> Tensor: ...
    def logits(self, x: Tensor) -> Tensor: ...
    def loss(self, logits: Tensor, y: Tensor) -> Tensor: ...
    def copy_from_main_process(self, tensors: list[Tensor]) -> None: ...


class OverfittingWatch:
    """Compares a trainer's own adversary with a strong one, PGD of 10 steps, at the end of each epoch.

    Both ascend the classifier's loss, even where the method ascends a divergence, so that they differ in strength only:
    the trainer's own has its start, steps and step size. They attack up to 64 images of one batch of the epoch. The
    epoch is bad when the strong adversary leaves less than half as many images correct as the trainer's own, and at
    least 30 percentage points fewer.
    The accuracies join the epoch's record as ``own_adversary_accuracy`` and ``strong_adversary_accuracy``.

    ``"warn"`` warns once. ``"rollback"`` warns and brings weights, the optimizer's state, the instruments' and the
    changes of earlier adversaries back to the end of the last good epoch (``rolled_back`` in the record is 1, the rest
    of the record is of the epoch that was undone); training continues from there with other random numbers and the
    current learning rate. A copy of these states is kept in memory. ``"ignore"`` disables the watch.
    """

    def __init__(self, trainer: Watched, action: Action) -> None:
        self.trainer, self.action = trainer, action
        self.reset()

    def reset(self) -> None:
        """Forget everything, before a new run."""
        self._seen: tuple[Tensor, Tensor] | None = None
        self._share: Share | None = None
        self._samples: Samples | None = None
        self._size = 0
        self._good: dict[str, Any] | None = None
        self._warned = False

    @property
    def watching(self) -> bool:
        """Whether the watch is active."""
        return self.action != "ignore" and self.trainer.steps < STRONG

    def begin_step(self, x: Tensor, y: Tensor) -> None:
        """Keep some images of the next batch."""
        if not self.watching:
            return
        share = self.trainer.share
        size = min(len(x) if share is None else share.whole, SAMPLES)
        if self._seen is None or size >= self._size:  # a small last batch is less reliable
            self._seen, self._share, self._size = (x[:SAMPLES].clone(), y[:SAMPLES].clone()), share, size
            samples = self.trainer.samples
            self._samples = None if samples is None else samples.select(slice(SAMPLES))

    def end_epoch(self, record: dict[str, float]) -> None:
        """Judge the epoch and act."""
        if not self.watching:
            return
        own_right, strong_right, images = self.count_resisting()
        own, strong = own_right / images, strong_right / images
        record |= {"own_adversary_accuracy": own, "strong_adversary_accuracy": strong}
        if strong >= own / 2 or own - strong < GAP:
            self._good = self._copy_state() if self.action == "rollback" else None
            return
        if self._good is not None:
            self._restore(self._good)
            record["rolled_back"] = 1.0
            consequence = "went back to the last good epoch"
        else:
            consequence = "there is no good epoch to go back to" if self.action == "rollback" else "training goes on"
        if self.action == "rollback" or not self._warned:
            self._warned = True
            if not find_processes(device_of(self.trainer.classifier.model)).is_main_process:
                return
            warnings.warn(
                f"catastrophic overfitting in epoch {record['epoch']:g}: of {images} training images "
                f"{own:.0%} resist the adversary of {self.trainer.steps} steps and {strong:.0%} one of {STRONG}; "
                f"{consequence}. A local term, more steps, a smaller step_size or eps_warmup_epochs may help.",
                stacklevel=2,
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Whether there is a good epoch; the weights in a checkpoint are then those of the last one."""
        return {"good": torch.tensor(self._good is not None)} if self.action == "rollback" else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the state of an earlier run, as `state_dict` returned it, after all other state is loaded."""
        if bool(state.get("good", False)):
            self._good = self._copy_state()

    def count_resisting(self) -> tuple[int, int, int]:
        """Count images: those that resist the trainer's adversary, those that resist the strong one, and all."""
        trainer = self.trainer
        x, y = self._images()
        labels, threat = y.argmax(dim=1) if y.dim() == 2 else y, trainer.current_threat
        share = threat.eps / trainer.threat.eps
        trainer.classifier.model.eval()
        low, high = trainer.input_range
        trainer.samples = self._samples  # those of x, whose adversary may start from their previous ones
        start, trainer.samples = trainer.start_point(x), None
        own = self._adversary(x, y, start, trainer.steps, trainer.step_size * share)
        uniform = threat.random_start(x, low, high)
        strong = self._adversary(x, y, uniform, STRONG, 2.5 * threat.eps / STRONG)
        right = []
        for adversary in (own, strong):
            with torch.no_grad():
                logits = class_logits(trainer.classifier, trainer.logits(adversary))
            right.append((logits.argmax(dim=1) == labels).sum())
        counts = torch.stack(right)
        # On GPUs the counts may differ between processes, which must act alike.
        trainer.copy_from_main_process([counts])
        own_right, strong_right = counts.tolist()
        return own_right, strong_right, len(x)

    def _images(self) -> tuple[Tensor, Tensor]:
        """Return and forget the images that were kept; with several processes, the first ones of the whole batch."""
        assert self._seen is not None
        (x, y), share = self._seen, self._share
        self._seen = None
        if share is None:
            return x, y
        return share.gather(x, SAMPLES)[:SAMPLES], share.gather(y, SAMPLES)[:SAMPLES]

    def _adversary(self, x: Tensor, y: Tensor, start: Tensor, steps: int, step_size: float) -> Tensor:
        trainer, (low, high) = self.trainer, self.trainer.input_range

        def loss(z: Tensor) -> Tensor:
            return trainer.loss(trainer.logits(z), y)

        return trainer.current_threat.ascend(loss, x, start, steps=steps, step_size=step_size, low=low, high=high)

    def _copy_state(self) -> dict[str, Any]:
        trainer = self.trainer
        state = {
            "network": trainer.classifier.model.state_dict(),
            "preprocessing": [module.state_dict() for module in preprocessing_modules(trainer.classifier)],
            "optimizer": trainer.classifier.optimizer.state_dict()["state"],
            "instruments": [instrument.state_dict() for instrument in trainer.instruments],
            "changes": None if trainer.change_store is None else trainer.change_store.state_dict(),
        }
        return copy.deepcopy(state)

    def _restore(self, good: dict[str, Any]) -> None:
        trainer, state = self.trainer, copy.deepcopy(good)  # the optimizer would change the given tensors in place
        optimizer = trainer.classifier.optimizer
        trainer.classifier.model.load_state_dict(state["network"])
        for module, weights in zip(preprocessing_modules(trainer.classifier), state["preprocessing"], strict=True):
            module.load_state_dict(weights)
        # The learning rate is the scheduler's, whose state is not restored.
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        for instrument, saved in zip(trainer.instruments, state["instruments"], strict=True):
            instrument.load_state_dict(saved)
        if trainer.change_store is not None:
            trainer.change_store.load_state_dict(state["changes"])

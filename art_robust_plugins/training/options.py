"""The settings of the training loop."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from ..checks import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_seed,
    check_share,
    is_number,
    plain_number,
)
from ..keywords import KnownKeywords

Schedule = Literal["constant", "cosine", "one-cycle", "piecewise"]
Augmentation = Literal["none", "flip", "crop-flip"]
Interval = Literal["epoch", "step"]
MixedPrecision = Literal["no", "bf16"]
Compile = Literal["no", "default", "reduce-overhead"]


@dataclass(frozen=True)
class TrainingOptions(KnownKeywords):
    """Settings of the training loop that every method shares; whatever changes a result is off by default.

    Args:
        seed: makes a run repeatable: weights, on a CPU bit for bit. None takes one from torch's global random state.
            The global states of torch, numpy and random are left as they were.
        shuffle: draw a new order of the samples each epoch (``fit`` only).
        drop_last: leave out a last batch that is smaller than the others (``fit`` only).
        scheduler_interval: call the scheduler's ``step`` after each ``"epoch"`` or after each ``"step"``.
        schedule: of the learning rate, step by step over the ``nb_epochs`` of a run, in place of a ``scheduler`` given
            to ``fit``; the optimizer's own rate is restored afterwards. ``"cosine"`` falls from the optimizer's rate
            to 0 in half a cosine; ``"one-cycle"`` rises from 1/25 of it in 30 % of the steps and falls to 1/250,000;
            ``"piecewise"`` multiplies it at ``milestones``.
        warmup_epochs: with ``"cosine"``, first let the rate grow linearly for so many epochs (a fraction is possible).
        milestones: with ``"piecewise"``, increasing numbers of epochs (fractions are possible) after which the rate is
            multiplied by ``milestone_decay``.
        milestone_decay: see ``milestones``.
        augmentation: of the images of each batch, on the device, before the method sees them: ``"flip"`` mirrors each
            from left to right with probability 1/2; ``"crop-flip"`` also pads each by ``crop_padding`` pixels and takes
            a random crop of the original size. Images are changed independently; validation data are not changed.
        crop_padding: pixels of padding on each side, with the lower clip value (0 without clip_values, or with
            infinite ones).
        mixed_precision: ``"bf16"`` runs forward passes under autocast; weights stay float32. An x86 CPU without AVX-512
            emulates bfloat16, slower than float32: a warning says so.
        channels_last: keep weights and images in this memory format while training; most convolutions are faster in
            it.
        compile: run the network's forward passes in training, those of an adversary's ascent too, through
            ``torch.compile``: ``"default"``, or ``"reduce-overhead"`` for CUDA graphs as well (on CUDA only). Results
            then differ by rounding, and dropout draws other numbers; a resumed run is equal up to rounding. Where
            compiling fails (no C++ compiler, or a network or instrument with Python code that cannot be traced), a
            warning says why and training continues uncompiled (versions of torch that compile backward passes late may
            fail there). Hooks that change in every step, such as those of `LipschitzMarginTrainer` on batch
            normalisation, are detected only after eight compilations. Validation is not compiled.
        fused_optimizer: let the optimizer (torch's SGD, Adam or AdamW) step in one fused kernel while it trains;
            results differ by rounding.
        accumulation_steps: split each batch into this many parts and add up their gradients before the optimizer's
            step: the gradient of the whole batch in the memory of a part. Statistics of a batch become those of a part
            (batch normalisation, BANG's largest norm, the pairs of `Layerwise`), and methods draw other random numbers.
            A loss of the classifier that is not the mean over samples (with a sum, weights, an ``ignore_index``, or
            terms that couple samples) is refused, as with several processes; a method's own terms are not checked.
        max_gradient_norm: clip the gradient of all parameters together to this L2 norm.
        ema_decay: keep an exponential moving average of the weights, a <- decay a + (1 - decay) w after each step, from
            the first weights on; it spans about 1 / (1 - decay) steps: a shorter training leaves it near the start. The
            average is validated, is kept by ``keep_best``, and is in the network at the end (after Ctrl-C the network
            has the trained weights). Everything that the optimizer trains is averaged; buffers (batch normalisation's
            running statistics) are the trained network's. A method that goes back to earlier weights restarts the
            average from them.
        freeze_batch_norm: batch normalisations that stay in evaluation mode while the rest trains, for fine-tuning:
            they use their running statistics and do not update them; their weights are trained. True for all of them,
            or patterns of their names (``["backbone.*"]``). The mode of a layer before ``fit`` does not matter, since
            ART's ``predict`` puts all layers into evaluation mode.
        validation_steps: PGD steps of the robust validation accuracy. Its passes are as large as those of training at
            most, and its random starts depend on their size.
        keep_best: end with the weights of the epoch with the best validation accuracy, robust if a threat is known.
        checkpoint_dir: write ``training.pt`` there after every epoch, with all that is needed to resume. Only one
            training at a time may use the folder; another one is refused.
        resume: continue from the checkpoint in ``checkpoint_dir``, if one is there; the finished run equals one that
            was never interrupted (on a CPU bit for bit, on a GPU as nearly as two runs with one seed do). Without it,
            an existing checkpoint is an error. A run that differs from the checkpoint's is refused, and network and
            optimizer stay as they were. Compared are the data's content (of a loader what `fit_loader` says); the
            network's modules, hooks and outputs; loss, preprocessing, clip_values, parameter groups (order and initial
            hyper-parameters), scheduler, method and instruments, with their settings, inner modules and the attributes
            that their code names; the user's own code of methods, losses, schedules and of modules that behave
            differently in training (within one version of Python); and the variables that this code uses. Not compared
            are values that change during training, such as counters, the folders of paths, other code of modules, and
            versions of libraries.

    Raises:
        ValueError: for a value outside its range.
    """

    seed: int | None = None
    shuffle: bool = True
    drop_last: bool = False
    scheduler_interval: Interval = "epoch"
    schedule: Schedule = "constant"
    warmup_epochs: float = 0
    milestones: Sequence[float] = ()
    milestone_decay: float = 0.1
    augmentation: Augmentation = "none"
    crop_padding: int = 4
    mixed_precision: MixedPrecision = "no"
    channels_last: bool = False
    compile: Compile = "no"
    fused_optimizer: bool = False
    accumulation_steps: int = 1
    max_gradient_norm: float | None = None
    ema_decay: float | None = None
    freeze_batch_norm: bool | Sequence[str] = False
    validation_steps: int = 10
    keep_best: bool = False
    checkpoint_dir: str | Path | None = None
    resume: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, _plain(getattr(self, field.name)))
        for name in ("shuffle", "drop_last", "channels_last", "fused_optimizer", "keep_best", "resume"):
            check_flag(name, getattr(self, name))
        check_choice("scheduler_interval", self.scheduler_interval, get_args(Interval))
        check_choice("schedule", self.schedule, get_args(Schedule))
        self._check_schedule()
        check_choice("augmentation", self.augmentation, get_args(Augmentation))
        check_choice("mixed_precision", self.mixed_precision, get_args(MixedPrecision))
        check_choice("compile", self.compile, get_args(Compile))
        for name in ("crop_padding", "accumulation_steps", "validation_steps"):
            check_count(name, getattr(self, name))
        if self.accumulation_steps > 1 and self.compile == "reduce-overhead":
            raise ValueError(
                f"accumulation_steps: got {self.accumulation_steps} with compile 'reduce-overhead', whose memory holds "
                f"the gradients of one part, expected compile 'default'."
            )
        if self.seed is not None:
            check_seed("seed", self.seed, 2**63)
        if self.max_gradient_norm is not None:
            check_number("max_gradient_norm", self.max_gradient_norm)
        if self.ema_decay is not None:
            check_share("ema_decay", self.ema_decay)
        self._check_freezing()
        if self.checkpoint_dir is not None and not isinstance(self.checkpoint_dir, str | Path):
            raise ValueError(f"checkpoint_dir: got {self.checkpoint_dir!r}, expected a folder's path, or None.")
        if self.resume and self.checkpoint_dir is None:
            raise ValueError("resume: got True without checkpoint_dir, expected the folder of the run to continue.")

    def __repr__(self) -> str:
        """The settings that differ from their defaults."""
        changed = [
            f"{each.name}={value!r}" for each in fields(self) if (value := getattr(self, each.name)) != each.default
        ]
        return f"TrainingOptions({', '.join(changed)})"

    @property
    def scheduler_per_step(self) -> bool:
        """Whether the scheduler's ``step`` is called after each step rather than after each epoch."""
        return self.schedule != "constant" or self.scheduler_interval == "step"

    def _check_freezing(self) -> None:
        frozen = self.freeze_batch_norm
        if isinstance(frozen, bool):
            return
        if isinstance(frozen, str) or not isinstance(frozen, Sequence) or not all(isinstance(f, str) for f in frozen):
            raise ValueError(
                f"freeze_batch_norm: got {frozen!r}, expected True, False, or a list of names such as ['backbone.*']."
            )
        object.__setattr__(self, "freeze_batch_norm", tuple(frozen))

    def _check_schedule(self) -> None:
        check_number("warmup_epochs", self.warmup_epochs, zero=True)
        if self.warmup_epochs and self.schedule != "cosine":
            raise ValueError(
                f"warmup_epochs: got {self.warmup_epochs} with schedule {self.schedule!r}, expected it with 'cosine'."
            )
        given = self.milestones if isinstance(self.milestones, Sequence) else ()
        numbers = [plain_number(m) for m in given if is_number(m) and 0 < float(m) < math.inf]
        if len(numbers) < len(given) or given is not self.milestones or sorted(set(numbers)) != numbers:
            raise ValueError(f"milestones: got {self.milestones!r}, expected increasing positive numbers of epochs.")
        if (self.schedule == "piecewise") != bool(given):
            wanted = "at least one" if not given else "none"
            raise ValueError(f"milestones: got {self.milestones!r} with schedule {self.schedule!r}, expected {wanted}.")
        object.__setattr__(self, "milestones", tuple(numbers))  # checkpoints compare this form
        check_number("milestone_decay", self.milestone_decay)


def _plain(value: Any) -> Any:
    """NumPy values as Python values, so that equal settings have equal texts in checkpoints."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return plain_number(value)

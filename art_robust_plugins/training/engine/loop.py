"""The training loop: the epochs with their steps, and the setup around them.

`Loop.run` is the outline of a call of ``fit``: setup, epochs, result. `Loop.run_epoch` trains, validates and saves;
`Loop.train_step` is one step of the optimizer.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from ...bridge import device_of, preprocessing_modules
from ...checks import check_count
from ...randomness import restored_random_states
from ...terminal import Progress
from ..memory_format import use_channels_last
from ..processes import Processes
from .batch_loss import BatchLoss
from .batches import BatchSource
from .chance import ChanceWatch
from .checkpointer import CHECKPOINT, Checkpointer
from .compiling import Compiled
from .first_batch import FirstBatch, WeightMarks
from .first_step import restore_buffers, take_first_step
from .fit_checks import check_options, check_setup, warn_of_emulation
from .fused import fuse_steps
from .gradients import average_gradients
from .learning_rates import follow_schedule, schedule_factor
from .loss_meter import LossMeter, check_weights
from .method import TrainingMethod
from .run_state import RunState, tensors_of
from .samples import Samples
from .schedulers import check_scheduler, step_scheduler
from .seeding import choose_seed, seed_epoch
from .settings import describe_for_processes, describe_settings
from .targets import ClassCensus
from .validator import Validator, without_weight_gradients

_LARGEST_PASS = 500
"""The largest number of images in a validation pass."""


@dataclass(frozen=True)
class FitArguments:
    """The arguments of ``fit`` other than the data; see `RobustTrainer.fit`."""

    nb_epochs: int = 20
    validation_data: tuple[Any, Any] | None = None
    scheduler: Any = None
    verbose: bool = True


class Loop:
    """One call of ``fit``."""

    def __init__(self, method: TrainingMethod, batches: BatchSource, arguments: FitArguments) -> None:
        self.method, self.batches, self.arguments = method, batches, arguments
        self.options, self.classifier = method.options, method.classifier
        self.network, self.optimizer = self.classifier.model, self.classifier.optimizer
        self.device = device_of(self.network)
        self.nb_epochs = check_count("nb_epochs", arguments.nb_epochs)
        self.scheduler = arguments.scheduler
        self.marks: WeightMarks | None = None

    def run(self) -> None:
        """Train from the first epoch, or from the checkpoint on."""
        with self._set_up_options():
            first = self._begin()
            with self._attach(first):
                for epoch in range(first, self.nb_epochs):
                    self.run_epoch(epoch)
            self.state.put_result_in_place()
            self._warn_of_chance()

    def run_epoch(self, epoch: int) -> None:
        """Train for an epoch, validate, and save."""
        self.processes.moment = f"in epoch {epoch + 1}"
        self.progress.begin(f"epoch {epoch + 1}/{self.nb_epochs}")
        record = self.train_epoch(epoch)
        self._warn_of_missing_classes()
        self.processes.copy_from_main(self.network.buffers())
        record |= self._validate()
        self.method.end_epoch(record)
        if self.state.average is not None and record.get("rolled_back"):
            self.state.average.restart()
        self.method.history.append(record)
        if self.scheduler is not None and not self.options.scheduler_per_step:
            step_scheduler(self.scheduler, record)
        self.state.keep_if_best(epoch + 1, record)
        self.checkpointer.save(epoch + 1, is_main=self.processes.is_main)
        self.progress.conclude(_describe_epoch(record))

    def train_epoch(self, epoch: int) -> dict[str, float]:
        """Make one pass over the data; returns the epoch's record for the history."""
        order = seed_epoch(self.state.seed, epoch, self.device, self.processes)
        batches, steps = self.batches.epoch(order, self.processes, self.census), self.batches.steps
        started = time.perf_counter()
        self.chance.keeping = epoch + 1 == self.nb_epochs
        self.meter = LossMeter(epoch, self.device)
        self.batch_loss.largest = 1
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.untrained = _leave_out(self.network.parameters(), self.trained)
        rate: float | Tensor = 0.0
        self.method.enter_training_mode()
        for step, (x, y) in enumerate(batches):
            if step == steps and self.options.schedule != "constant":
                raise ValueError(f"loader: got more batches than the {steps} of its length, which the schedule needs.")
            self.method.epochs_done = epoch + (0.0 if steps is None else step / steps)
            self.train_step(x, y)
            rate = self._step_scheduler()
            self.progress.advance()
        self.method.epochs_done = epoch + 1.0
        self._check_length(epoch)
        self._warn_of_still_weights()
        loss = self.meter.mean()
        check_weights([self.network, *preprocessing_modules(self.classifier)], epoch)
        seconds = time.perf_counter() - started
        return {"epoch": epoch + 1, "loss": loss, "seconds": seconds, "learning_rate": float(rate)}

    def train_step(self, images: Tensor, y: Tensor) -> None:
        """Take one step of the optimizer on a batch."""
        self.optimizer.zero_grad(set_to_none=True)
        for parameter in self.untrained:
            parameter.grad = None
        (x, placement), first = self.batch_loss.augment(images), self.chance.steps == 0
        samples = None if self.batches.rows is None else Samples(self.batches.rows, placement)
        if first and self.batches.whole is None:
            self.method.check_radii(images)
        # If the first step is refused, buffers such as those of batch normalisation are restored.
        modules = [self.network, *preprocessing_modules(self.classifier)] if first else []
        with restore_buffers(modules, only_on_error=True):
            with FirstBatch(self.method).watch(x, y) if first else nullcontext():
                loss = average_gradients(self.trained, self.batch_loss.backward(x, y, samples), self.processes)
            self.meter.add(loss, len(x))
            if self.options.max_gradient_norm is not None:
                nn.utils.clip_grad_norm_(self.trained, self.options.max_gradient_norm)
            if first:
                self.marks = WeightMarks(self.optimizer)
                take_first_step(self.optimizer)
            else:
                self.optimizer.step()
        self.chance.count_step(images, y)
        if self.state.average is not None:
            self.state.average.update()

    @contextmanager
    def _set_up_options(self) -> Iterator[None]:
        """A context that sets up network and optimizer by the options, and restores both at its end."""
        options = self.options
        self.settings = {**self.batches.settings, **self._schedule_settings()}
        with ExitStack() as stack:
            if options.checkpoint_dir is not None:
                holder = Processes(self.device).hold_folder(
                    "checkpoint_dir", options.checkpoint_dir, "training", [CHECKPOINT]
                )
                stack.enter_context(holder)
            if options.channels_last:
                stack.enter_context(use_channels_last(self.network, self.optimizer))
            if options.fused_optimizer:
                stack.enter_context(fuse_steps(self.optimizer))
            if options.schedule != "constant":
                factor = schedule_factor(options, cast(int, self.batches.steps), self.nb_epochs)
                self.scheduler = stack.enter_context(follow_schedule(self.optimizer, factor))
            yield

    def _schedule_settings(self) -> dict[str, int]:
        """The settings that a schedule depends on, which a resumed run must keep."""
        schedule, steps = self.options.schedule, self.batches.steps
        if schedule == "constant":
            return {}
        if self.scheduler is not None:
            given = type(self.scheduler).__name__
            raise ValueError(f"scheduler: got {given} beside schedule {schedule!r}, expected one.")
        if steps is None:
            raise ValueError(f"schedule: got {schedule!r} for a stream without a length, expected 'constant'.")
        return {"steps": steps} if schedule == "piecewise" else {"steps": steps, "nb_epochs": self.nb_epochs}

    def _begin(self) -> int:
        """Refuse what cannot be trained, and load a checkpoint; returns the number of epochs that are already done."""
        method, batches = self.method, self.batches
        processes = self.processes = method.processes = Processes(self.device)
        self._check()
        if batches.whole is not None:
            method.check_radii(batches.whole[0])
        method.begin_run(None if batches.whole is None else len(batches.whole[0]))
        self.validator = self._make_validator()
        validation = None if self.validator is None else self.validator.data
        self.state = RunState(method, self.scheduler, batches.generators)
        settings = describe_settings(self.state, self.settings)
        self.checkpointer = Checkpointer(self.state, settings)
        processes.advice = self.checkpointer.advice
        if processes.count > 1:
            # This comes before a checkpoint is read, since a single process could refuse it.
            described = describe_for_processes(settings, self.state, self.nb_epochs, batches.whole, validation)
            processes.check_same_settings(described)
        self.checkpointer.identify(batches.whole, batches.origin, validation)
        self.state.seed = choose_seed(self.options.seed, processes)
        first = self.checkpointer.take_up(self.nb_epochs)
        processes.check_same({"checkpoint_dir, epochs that its checkpoint holds": first})
        for module in (self.network, *self.state.preprocessing):
            processes.copy_from_main(tensors_of(module.state_dict()).values())
        self.state.begin_average()
        self.batch_loss = BatchLoss(method, processes)
        self.chance = ChanceWatch(batches.steps)
        self.census: ClassCensus | None = ClassCensus(self.classifier.nb_classes)
        if batches.whole is not None:
            self.census.count(batches.whole[1])
            self._warn_of_missing_classes()
        return first

    def _check(self) -> None:
        validated, per_step = self.arguments.validation_data is not None, self.options.scheduler_per_step
        steps = self.batches.steps
        check_options(self.options, self.classifier, validated=validated)
        check_scheduler(
            self.scheduler,
            self.optimizer,
            per_step=per_step,
            calls=self.nb_epochs if not per_step else None if steps is None else self.nb_epochs * steps,
            validated=validated,
            resumed=self.options.resume,
        )
        check_setup(self.method, self.processes, self.batches.sizes)
        if self.processes.is_main:
            warn_of_emulation(self.options, self.device)

    def _make_validator(self) -> Validator | None:
        if self.arguments.validation_data is None:
            return None
        return Validator(
            self.classifier,
            self.arguments.validation_data,
            threat=self.method.threat,
            steps=self.options.validation_steps,
            processes=self.processes,
        )

    @contextmanager
    def _attach(self, first: int) -> Iterator[None]:
        """A context for the epochs: instruments are attached, passes compiled, random states restored after."""
        method, steps = self.method, self.batches.steps
        self.progress = Progress(
            None if steps is None else self.nb_epochs * steps,
            "training",
            initial=first * (steps or 0),
            shown=self.arguments.verbose and self.processes.is_main,
        )
        with ExitStack() as stack:
            stack.enter_context(self._restore_random_states())
            stack.enter_context(self.progress)
            for instrument in method.instruments:
                stack.enter_context(instrument.attached(self.network))
            self.checkpointer.verify()
            stack.callback(self.network.eval)
            stack.callback(self.batch_loss.announce_share, None)
            if self.options.compile != "no":
                method.forward_pass = Compiled(method.estimator_module, self.options.compile)
                stack.callback(setattr, method, "forward_pass", method.estimator_module)
            yield

    def _restore_random_states(self) -> Any:
        return restored_random_states([self.device] if self.device.type == "cuda" else [])

    def _step_scheduler(self) -> float | Tensor:
        """Step the scheduler after an optimizer step; returns the learning rate that the step used."""
        rate: float | Tensor = self.optimizer.param_groups[0]["lr"]
        if self.scheduler is not None and self.options.scheduler_per_step:
            rate = rate.clone() if isinstance(rate, Tensor) else rate
            self.scheduler.step()
        return rate

    def _check_length(self, epoch: int) -> None:
        if self.options.schedule != "constant" and self.meter.steps != self.batches.steps:
            raise ValueError(
                f"loader: got {self.meter.steps} batches in epoch {epoch + 1}, expected the {self.batches.steps} of "
                f"its length, which the schedule needs."
            )

    def _validate(self) -> dict[str, float]:
        if self.validator is None:
            return {}
        # Without gradients of the weights, an attack's pass needs no more memory than a training pass.
        with self.state.use_average(), without_weight_gradients((self.network, *self.state.preprocessing)):
            return self.validator.validate(batch_size=min(self.batch_loss.largest, _LARGEST_PASS))

    def _warn_of_missing_classes(self) -> None:
        """Warn once in a run, when all labels have been seen."""
        if self.census is not None and self.processes.is_main:
            self.census.warn()
        self.census = None

    def _warn_of_still_weights(self) -> None:
        """Warn once in a run, after its first epoch."""
        if self.marks is not None and self.processes.is_main:
            self.marks.warn_if_still(self.meter.steps)
        self.marks = None

    def _warn_of_chance(self) -> None:
        if not self.processes.is_main or not self.chance.steps:
            return
        # The passes of a randomised network must not advance the caller's random state.
        with self._restore_random_states():
            batch_size = min(self.batch_loss.largest, _LARGEST_PASS)
            message = self.chance.describe(self.classifier, self.method.estimator_module, batch_size, self.nb_epochs)
        if message is not None:
            warnings.warn(message, stacklevel=2)


def _describe_epoch(record: dict[str, float]) -> str:
    """The numbers of an epoch in one short line."""
    shown = [f"loss {record['loss']:.4f}"]
    accuracies = {"validation": "validation_accuracy", "robust": "validation_robust_accuracy"}
    shown += [f"{name} {record[key]:.1%}" for name, key in accuracies.items() if key in record]
    return ", ".join(shown)


def _leave_out(parameters: Iterator[nn.Parameter], left_out: list[nn.Parameter]) -> list[nn.Parameter]:
    known = {id(parameter) for parameter in left_out}
    return [parameter for parameter in parameters if id(parameter) not in known]

"""The one training loop: a method gives its loss and its instruments, everything else is here."""

from __future__ import annotations

import inspect
import logging
import math
import random
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, ClassVar, cast

import numpy as np
import torch
from art.data_generators import DataGenerator, PyTorchDataGenerator
from art.defences.trainer import Trainer
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..bridge import (
    EstimatorModule,
    augmentations,
    check_classifier,
    check_threat,
    class_logits,
    clip_range,
    device_of,
    image_tensor,
    label_tensor,
    loss_of,
    preprocessing_modules,
    preserved,
    warn_of_own_predict,
)
from ..checks import check_count
from ..randomness import restored_random_states, seed_torch
from ..threat import Bound, ThreatModel
from .engine.augmentation import cropped_and_flipped
from .engine.averaging import WeightAverage
from .engine.chance import ChanceWatch
from .engine.checkpointer import CHECKPOINT, TrainingRun, checksum, tensors_of
from .engine.compiling import Compiled
from .engine.first_step import (
    check_optimizer,
    check_outputs,
    check_single_samples,
    first_step_of,
    frozen_layers,
    raise_single_sample,
    restored_buffers,
)
from .engine.fused import check_fused, fused_steps
from .engine.learning_rates import schedule_factor, scheduled
from .engine.loss_checks import check_averages, check_counted, check_reduction, check_scalar, uncounted_classes
from .engine.memory_format import in_channels_last
from .engine.prefetch import Batch, prefetched
from .engine.processes import Processes, Share
from .engine.schedulers import check_scheduler, step_scheduler
from .engine.targets import ClassCensus, training_labels
from .instruments import Instrument
from .options import TrainingOptions

logger = logging.getLogger(__name__)

_READ_FROM_CLASSIFIER = {
    *("_module", "_forward", "_predicting", "_device", "_augmentations", "_frozen_layers", "_uncounted"),
    *("_chance", "_census", "_processes", "share"),
}
"""Attributes of a trainer that belong to a call of ``fit``, or are made anew from the classifier."""


class RobustTrainer(Trainer):
    """The base of all training methods, and of one's own: an ART ``Trainer`` whose subclasses give a loss.

    A subclass implements `training_loss` and hands the rest to this constructor. In it, `logits` is the network with
    ART's preprocessing before it, and `loss` the classifier's own loss.

    Args:
        classifier: an ART ``PyTorchClassifier`` with an optimizer; it is trained in place. Any loss works
            that gives one number for a batch.
        threat: for robust validation accuracy, and for methods that train against an adversary.
        instruments: what is attached to the network while it trains, such as `BANG`.
        options: the training loop's settings.

    Attributes:
        history: one dictionary an epoch, to which methods may add: ``epoch``, ``loss``, ``seconds``, ``learning_rate``
            (of the epoch's last step) and, with validation data, ``validation_accuracy`` and (with a threat)
            ``validation_robust_accuracy``, between 0 and 1.
        epochs_done: how far the training is, in epochs, with the steps of the present one as a fraction (of a stream
            without a length: in whole epochs).
        share: in `training_loss`, which part of the batch is this process's; None when it is whole.
        input_range: the classifier's ``clip_values`` (low, high): numbers, tensors on the network's device where they
            differ by feature, or None.

    Raises:
        TypeError: for another kind of classifier, threat, instruments or options.
        ValueError: one instrument given twice; for a classifier without optimizer, with postprocessing, or with
            preprocessing that is not torch; a threat whose ball holds every input within ``clip_values``, as a radius
            in other units does.

    Preprocessing defences of the classifier act as ART means them, but in each batch: those of ``fit`` and ``predict``
    belong to the network, those of ``fit`` alone change the batch (and its labels) before the method sees it.

    Several processes (``accelerate launch``, ``torchrun``) share each batch, and every one calls ``fit`` with the same
    arguments, which are compared. Gradients are averaged by sample, and random numbers come through `drawn`: with the
    same seed the result is that of one process up to rounding. Two layers differ, as they see one process's share of a
    batch: batch normalisation takes its statistics (``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` makes them the
    whole batch's, on GPUs; the running ones are those of the main process), and dropout draws a mask of its own. A
    process that is lost ends the others with a `ProcessLostError`; the main process writes the checkpoint, which all
    must be able to read.

    Example:
        >>> class Smoothed(RobustTrainer):
        ...     def training_loss(self, x, y):
        ...         return self.loss(self.logits(x + 0.1 * self.drawn(torch.randn_like, x)), y)
    """

    source: ClassVar[str] = ""
    """The paper, and whether the implementation is exact or a reconstruction."""

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        threat: ThreatModel | None = None,
        instruments: Iterable[Instrument] = (),
        options: TrainingOptions = TrainingOptions(),
    ) -> None:
        check_classifier(classifier)
        if classifier.optimizer is None:
            raise ValueError("classifier: it has no optimizer, expected PyTorchClassifier(..., optimizer=...).")
        if threat is not None and not isinstance(threat, ThreatModel):
            raise TypeError(f"threat: got {type(threat).__name__}, expected a ThreatModel or None.")
        if not isinstance(options, TrainingOptions):
            raise TypeError(f"options: got {type(options).__name__}, expected TrainingOptions.")
        super().__init__(classifier)
        self.threat = threat
        self.instruments = _checked_instruments(instruments)
        self.options = options
        self.history: list[dict[str, float]] = []
        self.epochs_done = 0.0
        self._batch_sizes: set[int] = set()  # of a call of fit, as far as they are known
        self.share: Share | None = None
        self._processes: Processes | None = None
        warn_of_own_predict(classifier)
        self.prepare()

    @abstractmethod
    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The objective of one batch, a scalar to be minimised.

        ``x``: float32 [N, *input_shape] in the classifier's range; ``y``: int64 [N], or class probabilities [N, C]
        where a preprocessing defence such as mixup made them.
        """

    def logits(self, x: Tensor) -> Tensor:
        """The network's outputs [N, C] for inputs in the classifier's range, after ART's preprocessing.

        In float32 at least: under mixed precision, losses of what is in bfloat16 would be rounded to it on a CPU.
        """
        outputs = check_outputs(self._forward(x))
        return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The classifier's own loss, a scalar; labels are brought to the form that it takes."""
        return loss_of(self.classifier, logits, y)

    def drawn(self, draw: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """Random numbers for the samples of ``like`` [N, ...], which do not depend on how many processes there are.

        Args:
            draw: gives them for a tensor of a batch's shape, type and device, whose values are not to be used; such as
                ``torch.randn_like``. It is given a tensor for the whole batch, of which this process has a share.
            like: the samples of this process, or several copies of them one after the other.

        Returns:
            what ``draw`` gave for the samples of ``like``.
        """
        return draw(like) if self.share is None else self.share.drawn(draw, like)

    def enter_training_mode(self) -> None:
        """Put the network into training mode, but for batch normalisations that the options freeze.

        For methods that look at the network in evaluation mode within a step.
        """
        self.classifier.model.train()
        for layer in self._frozen_layers:
            layer.eval()

    def copy_from_main_process(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors, where several processes train together, with those of the main process.

        For what a method keeps and what may differ between them; all of them must call it.
        """
        if self._processes is not None:
            self._processes.copy_from_main(tensors)

    def state_dict(self) -> dict[str, Tensor]:
        """What the method itself remembers between batches; checkpoints hold it."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up the state of an earlier run, as `state_dict` gave it."""
        if state:
            raise ValueError(f"state: got entries {sorted(state)}, but {type(self).__name__} keeps none.")

    def end_epoch(self, record: dict[str, float]) -> None:
        """Called after each epoch, with what `history` will hold of it; a method may add to it.

        A method that goes back to earlier weights sets ``record["rolled_back"] = 1.0``: ``keep_best`` then leaves the
        epoch out, as what was measured is not true of the weights.
        """

    def check_fit(self, samples: int, batch_size: int, nb_epochs: int, *, validated: bool = False) -> None:
        """Refuse now the settings that `fit` would refuse, without data; it does so by itself.

        Args:
            samples: how many there will be.
            batch_size: as for `fit`.
            nb_epochs: as for `fit`.
            validated: whether there will be validation data.

        Raises:
            ValueError: names the setting.
        """
        check_count("batch_size", batch_size)
        check_count("nb_epochs", nb_epochs)
        if self.options.drop_last and samples < batch_size:
            raise ValueError(f"batch_size: got {batch_size} for {samples} samples, expected fewer with drop_last.")
        schedule_factor(self.options, self._steps(samples, batch_size), nb_epochs)
        if self.options.fused_optimizer:
            check_fused(self.classifier.optimizer)
        self._check_options(validated)

    def __getstate__(self) -> dict[str, Any]:
        """All but what is read from the classifier, which a copy reads from its own."""
        return {name: value for name, value in vars(self).items() if name not in _READ_FROM_CLASSIFIER}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.share, self._processes = None, None
        self.prepare()

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's settings: the constructor's arguments, other than the classifier and the options."""
        names = list(inspect.signature(type(self).__init__).parameters)[2:]
        return {name: getattr(self, name) for name in names if name != "options" and hasattr(self, name)}

    def fit(
        self,
        x: Any,
        y: Any,
        validation_data: tuple[Any, Any] | None = None,
        batch_size: int = 128,
        nb_epochs: int = 20,
        scheduler: Any = None,
        verbose: bool = True,
    ) -> None:
        """Train on arrays, which are brought to the network's device once.

        Args:
            x: [N, *input_shape] in the classifier's ``clip_values``, array or tensor.
            y: class indices [N], one-hot rows [N, nb_classes], or rows of class probabilities, which sum to 1, where
                the loss takes them (not ``NLLLoss``, ``MultiMarginLoss`` and binary networks; nor
                `LipschitzMarginTrainer`). What needs one class of a sample takes its most probable one.
            validation_data: a pair (x, y) to measure accuracy on after each epoch; y as indices or one-hot rows.
            batch_size: samples in a batch, over all processes.
            nb_epochs: passes over the data; a resumed run counts those before.
            scheduler: anything with ``step()``, over the classifier's optimizer. ``ReduceLROnPlateau`` monitors the
                training loss with mode ``"min"``, and with mode ``"max"`` the validation accuracy: the robust one
                where the trainer has a threat, else the clean one.
            verbose: show a progress bar.

        The network ends in evaluation mode, and all of it trains in training mode, whatever mode its layers are in
        now: batch normalisations stay in evaluation mode where ``freeze_batch_norm`` of the options says so. A
        ``UserWarning`` tells of a class without samples, and of a training that ended at chance.

        Raises:
            ValueError: for bad data (see `image_tensor` and `label_tensor` in bridge.py) or settings; for a network,
                loss, optimizer or scheduler that the loop cannot drive, before the first step, with weights and buffers
                as they were.
            FloatingPointError: when the loss is no longer finite; says at which epoch and step.
        """
        batch_size, nb_epochs = check_count("batch_size", batch_size), check_count("nb_epochs", nb_epochs)
        self.prepare()
        device, options = self._device, self.options
        images = image_tensor(x, self.classifier).to(device)
        labels = training_labels(y, self.classifier, samples=len(images)).to(device)
        self.check_fit(len(images), batch_size, nb_epochs, validated=validation_data is not None)
        steps = self._steps(len(images), batch_size)

        def batches(order: torch.Generator) -> Iterator[Batch]:
            index = torch.randperm(len(images), generator=order) if options.shuffle else torch.arange(len(images))
            index = index.to(device)
            for step in range(steps):
                rows = index[step * batch_size : (step + 1) * batch_size]
                yield images[rows], labels[rows]

        self._batch_sizes = _batch_sizes(len(images), batch_size, options.drop_last)
        data = {"samples": len(images), "batch_size": batch_size}
        self._run(batches, steps, data, validation_data, nb_epochs, scheduler, verbose, whole=(images, labels))

    def fit_generator(
        self,
        generator: DataGenerator,
        nb_epochs: int = 20,
        validation_data: tuple[Any, Any] | None = None,
        scheduler: Any = None,
        verbose: bool = True,
    ) -> None:
        """Train on batches from an ART ``DataGenerator``; an epoch is its ``size``. Otherwise as `fit`.

        A generator that can be iterated is iterated anew each epoch. From any other, a resumed run takes the batches
        that it gives then, so only the former resume exactly.
        """
        if not isinstance(generator, DataGenerator):
            raise TypeError(f"generator: got {type(generator).__name__}, expected an ART DataGenerator.")
        self._batch_sizes = set()
        if isinstance(generator, PyTorchDataGenerator):
            return self.fit_loader(generator.iterator, nb_epochs, validation_data, scheduler, verbose)
        if isinstance(generator, Iterable):
            return self._fit_batches(
                lambda: iter(generator), None, nb_epochs, validation_data, scheduler, verbose, source=generator
            )
        if generator.size is None:
            raise ValueError("generator: its size is None, expected the number of samples of an epoch.")
        steps = -(-generator.size // generator.batch_size)

        def one_epoch() -> Iterator[Any]:
            return (generator.get_batch() for _ in range(steps))

        return self._fit_batches(one_epoch, steps, nb_epochs, validation_data, scheduler, verbose, source=generator)

    def fit_loader(
        self,
        loader: DataLoader[Any] | Iterable[Any],
        nb_epochs: int = 20,
        validation_data: tuple[Any, Any] | None = None,
        scheduler: Any = None,
        verbose: bool = True,
    ) -> None:
        """Train on a ``DataLoader``, or on anything that yields batches (x, y) each time it is iterated; as `fit`.

        For data larger than memory: only the present batch is held, and on CUDA the next one, which is read, pinned and
        copied on a stream of its own meanwhile (a ``DataLoader`` with workers reads further ahead by itself).

        Each of several processes iterates its own loader, which must give the same whole batches in all of them (no
        ``DistributedSampler``), and takes its share; labels that differ are an error. A ``DataLoader`` that shuffles
        does so by random numbers that are the same in all.

        A resumed run must have a loader of the same types, length, batch size and sampler, and the same arrays in the
        memory of its data set (tensors, arrays, lists of numbers; lists of batches whole). Nothing is drawn from it to
        compare: of data that are read from files as they are needed, only the number of samples is known.
        """
        if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
            raise TypeError(
                f"loader: got {type(loader).__name__}, expected an iterable of (x, y) that can be iterated every epoch."
            )
        try:
            steps = len(loader)  # type: ignore[arg-type]
        except TypeError:  # a stream: its length shows when it ends
            steps = None
        order = _generators_of(loader)
        self._batch_sizes = _batch_sizes_of(loader)
        self._fit_batches(
            lambda: iter(loader), steps, nb_epochs, validation_data, scheduler, verbose, order, source=loader
        )

    # ------------------------------------------------------------------------------------------------ the loop

    def _steps(self, samples: int, batch_size: int) -> int:
        """Of an epoch of `fit`."""
        return samples // batch_size if self.options.drop_last else -(-samples // batch_size)

    def prepare(self) -> None:
        """Read the classifier as it is now: its network, device and preprocessing."""
        classifier = self.classifier
        self._module = EstimatorModule(classifier, unit_range=False, fit=True, probabilities=not self.needs_logits)
        self._forward: Callable[[Tensor], Tensor] = self._module
        self._predicting: EstimatorModule | None = None
        self._device = device_of(classifier.model)
        self.input_range = clip_range(classifier)
        if self.threat is not None:
            check_threat(self.threat, classifier)
        self._augmentations = augmentations(classifier)
        self._frozen_layers = frozen_layers(classifier.model, self.options.freeze_batch_norm)
        self._uncounted = uncounted_classes(classifier.loss, classifier.nb_classes)
        self._census: ClassCensus | None = None
        self._padding = self._padding_value() if self.options.augmentation == "crop-flip" else 0.0

    @property
    def needs_logits(self) -> bool:
        """Whether softmax outputs would be wrong."""
        return isinstance(self.classifier.loss, nn.CrossEntropyLoss)

    def _fit_batches(
        self,
        one_epoch: Callable[[], Iterator[Any]],
        steps: int | None,
        nb_epochs: int,
        validation_data: tuple[Any, Any] | None,
        scheduler: Any,
        verbose: bool,
        order: Sequence[torch.Generator] = (),
        source: object = None,
    ) -> None:
        self.prepare()

        def checked() -> Iterator[Batch]:
            empty = True
            for batch in one_epoch():
                empty = False
                if not isinstance(batch, Sequence) or len(batch) != 2:
                    raise ValueError(f"loader: got a batch of type {type(batch).__name__}, expected a pair (x, y).")
                x = image_tensor(batch[0], self.classifier)
                y = training_labels(batch[1], self.classifier, samples=len(x))
                if self._census is not None:
                    self._census.count(y)
                yield x, y
            if empty:
                raise ValueError("loader: got no batch in an epoch, expected at least one.")

        def batches(_: torch.Generator) -> Iterator[Batch]:
            # Compared on the host: labels need not be read back from the device.
            return prefetched(_alike(checked(), cast(Processes, self._processes)), self._device)

        self._run(batches, steps, {}, validation_data, nb_epochs, scheduler, verbose, order, source=source)

    def _run(
        self,
        batches: Callable[[torch.Generator], Iterator[Batch]],
        steps: int | None,
        data: dict[str, int],
        validation_data: tuple[Any, Any] | None,
        nb_epochs: int,
        scheduler: Any,
        verbose: bool,
        order: Sequence[torch.Generator] = (),
        whole: Batch | None = None,
        source: object = None,
    ) -> None:
        """Train with network and optimizer set up as the options say, and as they were afterwards."""
        nb_epochs = check_count("nb_epochs", nb_epochs)
        if self.options.schedule != "constant":
            data = {**data, **self._schedule_settings(scheduler, steps, nb_epochs)}
        with ExitStack() as stack:
            if self.options.checkpoint_dir is not None:
                folder, processes = self.options.checkpoint_dir, Processes(self._device)
                stack.enter_context(processes.held_folder("checkpoint_dir", folder, "training", [CHECKPOINT]))
            if self.options.channels_last:
                stack.enter_context(in_channels_last(self.classifier.model, self.classifier.optimizer))
            if self.options.fused_optimizer:
                stack.enter_context(fused_steps(self.classifier.optimizer))
            if self.options.schedule != "constant":
                factor = schedule_factor(self.options, cast(int, steps), nb_epochs)
                scheduler = stack.enter_context(scheduled(self.classifier.optimizer, factor))
            self._all_epochs(batches, steps, data, validation_data, nb_epochs, scheduler, verbose, order, whole, source)

    def _schedule_settings(self, scheduler: Any, steps: int | None, nb_epochs: int) -> dict[str, int]:
        """What a schedule of the options depends on, and a resumed run must keep."""
        schedule = self.options.schedule
        if scheduler is not None:
            raise ValueError(f"scheduler: got {type(scheduler).__name__} beside schedule {schedule!r}, expected one.")
        if steps is None:
            raise ValueError(f"schedule: got {schedule!r} for a stream without a length, expected 'constant'.")
        return {"steps": steps} if schedule == "piecewise" else {"steps": steps, "nb_epochs": nb_epochs}

    def _all_epochs(
        self,
        batches: Callable[[torch.Generator], Iterator[Batch]],
        steps: int | None,
        data: dict[str, int],
        validation_data: tuple[Any, Any] | None,
        nb_epochs: int,
        scheduler: Any,
        verbose: bool,
        order: Sequence[torch.Generator],
        whole: Batch | None,
        source: object,
    ) -> None:
        """From the first epoch, or from where a checkpoint stands.

        ``order`` holds a loader's own generators, ``whole`` all the data of ``fit``, ``source`` what gives the batches
        otherwise.
        """
        options, network = self.options, self.classifier.model
        processes = self._processes = Processes(self._device)
        self._check_options(validated=validation_data is not None)
        self._check_scheduler(scheduler, steps, nb_epochs, validated=validation_data is not None)
        self._check_setup(processes)
        validation = self._validation_tensors(validation_data)
        run = TrainingRun(self, data, scheduler, order)
        processes.advice = run.advice
        if processes.count > 1:
            # Before a checkpoint is read, which one process could refuse alone.
            processes.check_same_settings(run.same_in_all(nb_epochs, whole, validation))
        run.identify(whole, source, validation)
        first = run.start(processes, nb_epochs)
        processes.check_same({"checkpoint_dir, epochs that its checkpoint holds": first})
        for module in (network, *run.preprocessing):
            processes.copy_from_main(tensors_of(module.state_dict()).values())
        run.begin_average()
        self._begin_watching(steps, whole, processes)

        epochs = range(first, nb_epochs)
        total = None if steps is None else nb_epochs * steps
        bar = tqdm(total=total, initial=first * (steps or 0), disable=not (verbose and processes.is_main))
        with ExitStack() as stack:
            stack.enter_context(restored_random_states([self._device] if self._device.type == "cuda" else []))
            stack.enter_context(bar)
            for instrument in self.instruments:
                stack.enter_context(instrument.attached(network))
            run.verify()
            stack.callback(network.eval)
            stack.callback(self._set_share, None)
            if options.compile != "no":
                self._forward = Compiled(self._module, options.compile)
                stack.callback(setattr, self, "_forward", self._module)
            for epoch in epochs:
                processes.moment = f"in epoch {epoch + 1}"
                bar.set_description(f"epoch {epoch + 1}/{nb_epochs}")
                drawn = batches(_seeded(run.seed, epoch, self._device, processes))
                self._chance.keeping = epoch + 1 == nb_epochs
                record = self._epoch(epoch, steps, drawn, scheduler, bar, processes, run.average)
                self._tell_of_missing_classes(processes)
                processes.copy_from_main(network.buffers())
                if validation is not None:
                    # Without gradients of weights, a pass needs no more memory than one of training.
                    with run.averaged(), _frozen((network, *run.preprocessing)):
                        record |= self._validate(*validation, batch_size=min(self._largest, 500))
                self.end_epoch(record)
                if run.average is not None and record.get("rolled_back"):
                    run.average.restart()
                self.history.append(record)
                if scheduler is not None and not options.scheduler_per_step:
                    step_scheduler(scheduler, record)
                run.finish_epoch(epoch + 1, record, processes)
                bar.set_postfix({name: f"{record[name]:.4f}" for name in _SHOWN if name in record})
        run.finish()
        self._tell_of_chance(processes, nb_epochs)

    def _begin_watching(self, steps: int | None, whole: Batch | None, processes: Processes) -> None:
        """For what a run can tell of its data and of its end."""
        self._chance = ChanceWatch(steps)
        self._census = ClassCensus(self.classifier.nb_classes)
        if whole is not None:
            self._census.count(whole[1])
            self._tell_of_missing_classes(processes)

    def _tell_of_chance(self, processes: Processes, nb_epochs: int) -> None:
        if not processes.is_main or not self._chance.steps:
            return
        # A randomised network must not move the caller's random stream.
        with restored_random_states([self._device] if self._device.type == "cuda" else []):
            told = self._chance.warning(self.classifier, self._module, min(self._largest, 500), nb_epochs)
        if told is not None:
            warnings.warn(told, stacklevel=2)

    def _tell_of_missing_classes(self, processes: Processes) -> None:
        """Once in a run: when all labels have been seen."""
        if self._census is not None and processes.is_main:
            self._census.warn()
        self._census = None

    def _check_options(self, validated: bool) -> None:
        """Refuse options that do not fit the classifier."""
        classifier = self.classifier
        check_optimizer(classifier.optimizer, [classifier.model, *preprocessing_modules(classifier)])
        check_reduction(classifier.loss)
        if self.options.compile == "reduce-overhead" and self._device.type != "cuda":
            raise ValueError(
                f"compile: got 'reduce-overhead' (CUDA graphs) for a network on {self._device}, expected 'default'."
            )
        if self.options.keep_best and not validated:
            raise ValueError("validation_data: got none with keep_best, expected a pair (x, y).")
        self._check_augmentation()

    def _check_setup(self, processes: Processes) -> None:
        """Refuse a device or loss that would fail, or differ from what is asked for, after the first steps."""
        classifier = self.classifier
        several, parts = processes.count > 1, self.options.accumulation_steps > 1
        if several and self._device.type == "cuda" and self._device != processes.device:
            raise ValueError(
                f"classifier: its network is on {self._device} where this process works on {processes.device}, "
                f"expected accelerate.PartialState() to be made before the classifier."
            )
        if several or parts:
            with preserved(classifier.model), torch.no_grad():
                classifier.model.eval()
                outputs = self._module(self._probe_images(2))
            check_averages(classifier, outputs, "several processes" if several else "accumulation_steps")
        self._check_single_samples(processes)

    def _check_scheduler(self, scheduler: Any, steps: int | None, nb_epochs: int, *, validated: bool) -> None:
        per_step = self.options.scheduler_per_step
        calls = nb_epochs if not per_step else None if steps is None else nb_epochs * steps
        check_scheduler(
            scheduler,
            self.classifier.optimizer,
            per_step=per_step,
            calls=calls,
            validated=validated,
            resumed=self.options.resume,
        )

    def _check_single_samples(self, processes: Processes) -> None:
        """Refuse passes of one sample that a batch normalisation would refuse, maybe after many steps."""
        parts = self.options.accumulation_steps
        sizes = {max(size // min(parts, size) // processes.count, 1) for size in self._batch_sizes}
        if 1 not in sizes:
            return
        whole = processes.count == 1 and parts == 1
        at = "a batch of one sample" if whole else "a batch of which one sample passes through the network by itself"
        network = self.classifier.model
        with preserved(network):
            self.enter_training_mode()
            check_single_samples(self._module, network, self._probe_images(1), sizes, at=at)

    def _probe_images(self, count: int) -> Tensor:
        """Random ones within the classifier's range, on its device."""
        generator = torch.Generator("cpu").manual_seed(0)
        x = torch.rand(count, *self.classifier.input_shape, generator=generator, device="cpu").to(self._device)
        low, high = (None if limit is None else torch.as_tensor(limit) for limit in self.input_range)
        if low is None or high is None or not bool(low.isfinite().all() & high.isfinite().all()):
            return x
        return low + x * (high - low)

    def _check_augmentation(self) -> None:
        kind, padding, shape = self.options.augmentation, self.options.crop_padding, tuple(self.classifier.input_shape)
        if kind == "none":
            return
        if len(shape) != 3:
            raise ValueError(f"augmentation: got {kind!r} for inputs of shape {shape}, expected images of three axes.")
        height, width = shape[1:] if self.classifier.channels_first else shape[:2]
        if kind == "crop-flip" and padding >= min(height, width):
            raise ValueError(f"crop_padding: got {padding} for images of {height} x {width} pixels, expected fewer.")

    def _epoch(
        self,
        epoch: int,
        steps: int | None,
        batches: Iterator[Batch],
        scheduler: Any,
        bar: Any,
        processes: Processes,
        average: WeightAverage | None,
    ) -> dict[str, float]:
        """One pass over the data. Losses stay on the device: reading one would make a GPU wait for its queue."""
        optimizer, network, options = self.classifier.optimizer, self.classifier.model, self.options
        trained = [p for group in optimizer.param_groups for p in group["params"]]
        others = _without(network.parameters(), trained)
        check_every = 1 if self._device.type == "cpu" else 50
        started = time.perf_counter()
        losses: list[Tensor] = []  # of the steps since the last look at them
        sizes: list[int] = []
        total, samples, step = torch.zeros((), dtype=torch.float64, device="cpu"), 0, -1
        rate: Any = 0.0
        self._largest = 1
        self.enter_training_mode()
        for step, (images, y) in enumerate(batches):
            if step == steps and options.schedule != "constant":
                raise ValueError(f"loader: got more batches than the {steps} of its length, which the schedule needs.")
            self.epochs_done = epoch + (0.0 if steps is None else step / steps)
            optimizer.zero_grad(set_to_none=True)
            for parameter in others:
                parameter.grad = None
            x = images if options.augmentation == "none" else self._augmented(images)
            # What the first step refuses leaves no trace in the buffers, as of batch normalisation.
            modules = [network, *preprocessing_modules(self.classifier)] if self._chance.steps == 0 else []
            with restored_buffers(modules, only_on_error=True):
                losses.append(_average_gradients(trained, self._gradients(x, y, processes), processes))
                sizes.append(len(x))
                if len(losses) == check_every:
                    total += _checked_sum(losses, sizes, epoch, step)
                    samples += sum(sizes)
                    losses.clear()
                    sizes.clear()
                if options.max_gradient_norm is not None:
                    nn.utils.clip_grad_norm_(trained, options.max_gradient_norm)
                (optimizer.step if self._chance.steps else partial(first_step_of, optimizer))()
            self._chance.count_step(images, y)
            if average is not None:
                average.update()
            if scheduler is not None and options.scheduler_per_step:
                rate = optimizer.param_groups[0]["lr"]
                rate = rate.clone() if isinstance(rate, Tensor) else rate
                scheduler.step()
            bar.update()
        self.epochs_done = epoch + 1.0
        if options.schedule != "constant" and step + 1 != steps:
            raise ValueError(
                f"loader: got {step + 1} batches in epoch {epoch + 1}, expected the {steps} of its length, which the "
                f"schedule needs."
            )
        if losses:
            total += _checked_sum(losses, sizes, epoch, step)
            samples += sum(sizes)
        _check_weights([network, *preprocessing_modules(self.classifier)], epoch)
        per_step = scheduler is not None and options.scheduler_per_step
        return {
            "epoch": epoch + 1,
            "loss": (total / samples).item(),
            "seconds": time.perf_counter() - started,
            "learning_rate": float(rate if per_step else optimizer.param_groups[0]["lr"]),
        }

    def _gradients(self, x: Tensor, y: Tensor, processes: Processes) -> Tensor:
        """Let a batch's parts fill the gradients, one after the other; the loss of this process."""
        parts = []
        for part_x, part_y in _parts(x, y, self.options.accumulation_steps):
            loss = self._batch_loss(part_x, part_y, processes)
            loss = loss if len(part_x) == len(x) else loss * (len(part_x) / len(x))
            torch.autograd.backward(loss)
            parts.append(loss.detach())
            self._largest = max(self._largest, len(part_x))
        return sum(parts[1:], parts[0])

    def _set_share(self, share: Share | None) -> None:
        self.share = share
        for instrument in self.instruments:
            instrument.share = share

    def _augmented(self, x: Tensor) -> Tensor:
        padding = self.options.crop_padding if self.options.augmentation == "crop-flip" else 0
        if self.classifier.channels_first:
            return cropped_and_flipped(x, padding, self._padding)
        return cropped_and_flipped(x.movedim(-1, 1), padding, self._padding).movedim(1, -1)

    def _padding_value(self) -> Bound:
        """What pixels beside an image hold: the lower clip value, along the axes [C, H, W]; 0 where there is none."""
        low, shape = self.input_range[0], tuple(self.classifier.input_shape)
        if not isinstance(low, Tensor) or len(shape) != 3:
            return low if isinstance(low, float) and math.isfinite(low) else 0.0
        low = low.where(low.isfinite(), 0.0)
        low = low[0] if low.dim() == 4 else low  # with the axis of a batch
        return low.expand(shape) if self.classifier.channels_first else low.expand(shape).movedim(-1, 0)

    def _batch_loss(self, x: Tensor, y: Tensor, processes: Processes) -> Tensor:
        """The loss of a batch; of this process's share of it, with its weight, where there are several."""
        for augmentation in self._augmentations:
            one_hot = functional.one_hot(y, self.classifier.nb_classes).float() if y.dim() == 1 else y
            x, changed = augmentation.forward(x, one_hot)
            y = y if changed is one_hot else cast(Tensor, changed)
        share = processes.share_of(len(x))
        if share is not None:
            x, y = x[share.rows], y[share.rows]
        if self.options.channels_last and self.classifier.channels_first and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        check_counted(y, self._uncounted)
        self._set_share(share)
        for instrument in self.instruments:
            instrument.begin_step(y)
        with (
            torch.autocast(self._device.type, torch.bfloat16, enabled=self.options.mixed_precision == "bf16"),
            processes.exchanged_noise(),
        ):
            loss = self._training_loss(x, y)
        self.share = None
        return loss if share is None else loss * share.weight

    def _training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        try:
            return check_scalar(self.training_loss(x, y), len(x))
        except ValueError as error:
            raise_single_sample(error, "a batch of one sample")
            raise

    def _validation_tensors(self, validation_data: tuple[Any, Any] | None) -> Batch | None:
        if validation_data is None:
            return None
        if not isinstance(validation_data, Sequence) or len(validation_data) != 2:
            raise ValueError(f"validation_data: got {type(validation_data).__name__}, expected a pair (x, y).")
        x = image_tensor(validation_data[0], self.classifier, name="validation_data[0]").to(self._device)
        y = label_tensor(validation_data[1], self.classifier.nb_classes, samples=len(x), name="validation_data[1]")
        self._predictor()  # refuses what cannot predict
        return x, y.to(self._device)

    def _predictor(self) -> EstimatorModule:
        """The network with the preprocessing of ``predict``; made once in a fit, and only where it is used."""
        if self._predicting is None:
            self._predicting = EstimatorModule(self.classifier, unit_range=False, probabilities=True)
        return self._predicting

    def _validate(self, x: Tensor, y: Tensor, batch_size: int = 500) -> dict[str, float]:
        """Accuracy on clean inputs and, with a threat, under PGD from a random start (the same every epoch)."""
        network, threat, predictor = self.classifier.model, self.threat, self._predictor()
        low, high = self.input_range

        def logits(images: Tensor) -> Tensor:
            return class_logits(self.classifier, predictor(images))

        network.eval()
        correct = torch.zeros((), device=x.device)
        robust = torch.zeros((), device=x.device)
        generator = torch.Generator(x.device).manual_seed(0)
        for start in range(0, len(x), batch_size):
            images, labels = x[start : start + batch_size], y[start : start + batch_size]
            begin = None if threat is None else threat.random_start(images, low, high, generator)
            share = None if self._processes is None else self._processes.share_of(len(images))
            if share is not None:
                own = slice(share.rows.start, share.rows.start + share.size)
                images, labels, begin = images[own], labels[own], None if begin is None else begin[own]
            if not len(images):
                continue
            with torch.no_grad():
                correct += (logits(images).argmax(dim=1) == labels).sum()
            if threat is None or begin is None:
                continue

            def cross_entropy(adversarial: Tensor, labels: Tensor = labels) -> Tensor:
                return functional.cross_entropy(logits(adversarial), labels, reduction="sum")

            steps = self.options.validation_steps
            adversarial = threat.ascend(
                cross_entropy,
                images,
                begin,
                steps=steps,
                step_size=2.5 * threat.eps / steps,
                low=low,
                high=high,
            )
            with torch.no_grad():
                robust += (logits(adversarial).argmax(dim=1) == labels).sum()
        counts = torch.stack([correct, robust])
        if self._processes is not None:
            self._processes.sum(counts)
        result = {"validation_accuracy": counts[0].item() / len(x)}
        if threat is not None:
            result["validation_robust_accuracy"] = counts[1].item() / len(x)
        return result


_SHOWN = ("loss", "validation_accuracy", "validation_robust_accuracy")


@contextmanager
def _frozen(modules: Iterable[nn.Module]) -> Iterator[None]:
    """A context within which no weights of these modules get gradients."""
    trained = [p for module in modules for p in module.parameters() if p.requires_grad and p.is_leaf]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _generators_of(loader: object) -> list[torch.Generator]:
    """What a loader, or its samplers, draw from; each once."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


def _batch_sizes(samples: int, batch_size: int, drop_last: bool) -> set[int]:
    """Which numbers of samples the batches of an epoch have."""
    whole, last = divmod(samples, batch_size)
    return ({batch_size} if whole else set()) | ({last} if last and not drop_last else set())


def _batch_sizes_of(loader: object) -> set[int]:
    """Those of a ``DataLoader`` with torch's own batches; of others none is known before they come."""
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return set()
    try:
        samples = len(loader.sampler)  # type: ignore[arg-type]
    except TypeError:  # a stream
        return set()
    return _batch_sizes(samples, loader.batch_size, loader.drop_last)


def _checked_instruments(instruments: Iterable[Instrument]) -> tuple[Instrument, ...]:
    given = tuple(instruments) if isinstance(instruments, Iterable) else None
    if given is None or not all(isinstance(each, Instrument) for each in given):
        raise TypeError(f"instruments: got {instruments!r}, expected a list of Instrument objects, as [BANG()].")
    if len(set(map(id, given))) < len(given):
        raise ValueError(f"instruments: got one object twice in {list(given)}, expected each once.")
    return given


def _without(parameters: Iterable[nn.Parameter], left_out: list[nn.Parameter]) -> list[nn.Parameter]:
    known = {id(parameter) for parameter in left_out}
    return [parameter for parameter in parameters if id(parameter) not in known]


def _check_weights(modules: Iterable[nn.Module], epoch: int) -> None:
    """Once an epoch, before anything is saved: a loss can be finite where its gradient is not."""
    parameters = [p.detach() for module in modules for p in module.parameters() if p.numel() and p.is_floating_point()]
    largest = [torch.linalg.vector_norm(parameter, torch.inf) for parameter in parameters]
    if largest and not torch.stack(largest).isfinite().all().item():
        raise FloatingPointError(
            f"the weights became NaN or infinite in epoch {epoch + 1}; try a lower learning rate or max_gradient_norm."
        )


def _checked_sum(losses: list[Tensor], sizes: list[int], epoch: int, last_step: int) -> Tensor:
    """The sum of the losses of all samples in some steps, each of which is the mean over its batch."""
    values = torch.stack(losses).cpu().double()
    for step, value in enumerate(values.tolist(), last_step - len(losses) + 1):
        if not math.isfinite(value):
            raise FloatingPointError(
                f"the loss became {value} in epoch {epoch + 1}, step {step + 1}; "
                f"try a lower learning rate or max_gradient_norm."
            )
    return values @ torch.tensor(sizes, dtype=torch.float64, device="cpu")


# ------------------------------------------------------------------------------------------ randomness, processes


def _seeded(seed: int, epoch: int, device: torch.device, processes: Processes) -> torch.Generator:
    """Seed an epoch: its random numbers depend on (seed, epoch) alone, so a resumed run draws the same ones.

    They are the same in all processes, as is the order of the samples, from the generator that is returned.
    """
    noise = _spread(seed, epoch, 1, 0)
    seed_torch(noise, device)
    np.random.seed(noise)  # ART's generators shuffle with it
    random.seed(noise)
    processes.seed_own_noise(_spread(seed, epoch, 1, 1 + processes.index))
    return torch.Generator().manual_seed(_spread(seed, epoch, 0))


def _spread(*numbers: int) -> int:
    """A seed from several."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _alike(batches: Iterator[Batch], processes: Processes) -> Iterator[Batch]:
    """A loader's batches, once it is known that they are the same in all processes; also that they end together."""
    if processes.count == 1:
        yield from batches
        return
    samples, labels = "loader, samples in a batch (0 after the last)", "loader, checksum of a batch's labels"
    for x, y in batches:
        processes.check_same({samples: len(x), labels: checksum(y)})
        yield x, y
    processes.check_same({samples: 0, labels: 0})


def _parts(x: Tensor, y: Tensor, count: int) -> list[Batch]:
    """A batch cut into ``count`` parts, or as many as it has samples."""
    count = min(count, len(x))
    if count == 1:
        return [(x, y)]
    return list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))


def _average_gradients(parameters: list[nn.Parameter], loss: Tensor, processes: Processes) -> Tensor:
    """One reduction of all gradients and the loss, which it returns; unlike DDP it allows any number of passes."""
    if processes.count == 1:
        return loss
    reached = [p.grad is not None for p in parameters]
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    flat = torch.cat([*parts, torch.tensor(reached, device=loss.device, dtype=loss.dtype), loss.view(1)])
    processes.sum(flat)
    flat /= processes.count
    *means, anywhere, mean_loss = torch.split(flat, [*(len(part) for part in parts), len(parameters), 1])
    if not all(reached):
        # A parameter that the loss reaches in no process must get no gradient: weight decay would move it. Reading
        # this makes a GPU's host wait in each step; what the others reached cannot be known in another way, as it may
        # change from step to step in any of them.
        reached = [share > 0 for share in anywhere.tolist()]
    for parameter, mean, wanted in zip(parameters, means, reached, strict=True):
        if wanted:
            # In the parameter's own order in memory, which fused optimizers follow.
            parameter.grad = torch.empty_like(parameter).copy_(mean.view_as(parameter))
    return mean_loss[0]

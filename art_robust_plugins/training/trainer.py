"""`RobustTrainer`: what the author of a training method builds on. The loop behind ``fit`` is in `engine.loop`."""

from __future__ import annotations

import inspect
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import torch
from art.data_generators import DataGenerator, PyTorchDataGenerator
from art.defences.trainer import Trainer
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ..bridge import (
    EstimatorModule,
    augmentations,
    check_classifier,
    check_threat,
    clip_range,
    device_of,
    image_tensor,
    loss_of,
    warn_of_own_predict,
)
from ..checks import check_count
from ..keywords import KnownKeywords, explain_keywords
from ..threat import ThreatModel
from .engine.batches import ArrayBatches, LoadedBatches, count_steps
from .engine.first_step import check_outputs, find_frozen_layers
from .engine.fit_checks import check_options
from .engine.fused import check_fused
from .engine.learning_rates import schedule_factor
from .engine.loop import FitArguments, Loop
from .engine.processes import Processes, Share
from .engine.targets import training_labels
from .instruments import Instrument
from .options import TrainingOptions

_READ_FROM_CLASSIFIER = {"estimator_module", "forward_pass", "training_defences", "_frozen_layers"}
_OF_A_FIT = {"processes", "share"}


class RobustTrainer(Trainer, KnownKeywords):
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
        epochs_done: how far the training is, in epochs, with the steps of the current one as a fraction (of a stream
            without a length: in whole epochs).
        share: in `training_loss`, which part of the batch is this process's; None when it is whole.
        processes: those that train together, since the last call of ``fit`` began; before it None.
        input_range: the classifier's ``clip_values`` (low, high): numbers, tensors on the network's device where they
            differ by feature, or None.
        estimator_module: the network with ART's preprocessing before it, in the classifier's range.
        forward_pass: what `logits` calls: ``estimator_module``, or its compiled form while ``fit`` runs.
        training_defences: ART's preprocessing that acts in training alone.

    Raises:
        TypeError: for another kind of classifier, threat, instruments or options.
        ValueError: one instrument given twice; for a classifier without optimizer, with postprocessing, or with
            preprocessing that is not torch; a threat whose ball holds every input within ``clip_values``, as a radius
            in other units does.

    Preprocessing defences of the classifier act as ART means them, but in each batch: those of ``fit`` and ``predict``
    belong to the network, those of ``fit`` alone change the batch (and its labels) before the method sees it.

    Several processes (``accelerate launch``, ``torchrun``) share each batch, and every one calls ``fit`` with the same
    arguments, which are compared. Gradients are averaged by sample, and random numbers come through `draw`: with the
    same seed the result is that of one process up to rounding. Two layers differ, as they see one process's share of a
    batch: batch normalisation takes its statistics (``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` makes them the
    whole batch's, on GPUs; the running ones are those of the main process), and dropout draws a mask of its own. A
    process that is lost ends the others with a `ProcessLostError`; the main process writes the checkpoint, which all
    must be able to read.

    Example:
        >>> class Smoothed(RobustTrainer):
        ...     def training_loss(self, x, y):
        ...         return self.loss(self.logits(x + 0.1 * self.draw(torch.randn_like, x)), y)
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
        self.instruments = _check_instruments(instruments)
        self.options = options
        self.history: list[dict[str, float]] = []
        self.epochs_done = 0.0
        self.share: Share | None = None
        self.processes: Processes | None = None
        warn_of_own_predict(classifier)
        self.prepare()

    @abstractmethod
    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The objective of one batch, a scalar to be minimised.

        ``x``: float32 [N, *input_shape] in the classifier's range; ``y``: int64 [N], or class probabilities [N, C]
        where a preprocessing defence such as mixup made them.
        """

    def prepare(self) -> None:
        """Read the classifier as it is now: called when the trainer is made, copied or unpickled, and by each ``fit``.

        A subclass that reads more of the classifier does so here, after ``super().prepare()``.
        """
        classifier, probabilities = self.classifier, not self.needs_logits
        self.estimator_module = EstimatorModule(classifier, unit_range=False, fit=True, probabilities=probabilities)
        self.forward_pass: Callable[[Tensor], Tensor] = self.estimator_module
        self.input_range = clip_range(classifier)
        if self.threat is not None:
            check_threat(self.threat, classifier)
        self.training_defences = augmentations(classifier)
        self._frozen_layers = find_frozen_layers(classifier.model, self.options.freeze_batch_norm)

    @property
    def needs_logits(self) -> bool:
        """Whether softmax outputs would be wrong for the method, as they are for ``CrossEntropyLoss``."""
        return isinstance(self.classifier.loss, nn.CrossEntropyLoss)

    def logits(self, x: Tensor) -> Tensor:
        """The network's outputs [N, C] for inputs in the classifier's range, after ART's preprocessing.

        In float32 at least: under mixed precision, losses of what is in bfloat16 would be rounded to it on a CPU.
        """
        outputs = check_outputs(self.forward_pass(x))
        return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The classifier's own loss, a scalar; labels are brought to the form that it takes."""
        return loss_of(self.classifier, logits, y)

    def draw(self, draw: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """Random numbers for the samples of ``like`` [N, ...], which do not depend on how many processes there are.

        Args:
            draw: gives them for a tensor of a batch's shape, type and device, whose values are not to be used; such as
                ``torch.randn_like``. It is given a tensor for the whole batch, of which this process has a share.
            like: the samples of this process, or several copies of them one after the other.

        Returns:
            what ``draw`` gave for the samples of ``like``.
        """
        return draw(like) if self.share is None else self.share.draw(draw, like)

    def drawn(self, draw: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """Deprecated: the earlier name of `draw`."""
        warnings.warn("drawn is deprecated, expected draw instead.", DeprecationWarning, stacklevel=2)
        return self.draw(draw, like)

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
        if self.processes is not None:
            self.processes.copy_from_main(tensors)

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
        schedule_factor(self.options, count_steps(samples, batch_size, self.options.drop_last), nb_epochs)
        if self.options.fused_optimizer:
            check_fused(self.classifier.optimizer)
        check_options(self.options, self.classifier, validated=validated)

    def __repr__(self) -> str:
        settings = [f"{name}={value!r}" for name, value in self.parameters.items() if value not in (None, ())]
        return f"{type(self).__name__}({', '.join([*settings, f'epochs_done={self.epochs_done:g}'])})"

    def __getstate__(self) -> dict[str, Any]:
        """All but what is read from the classifier, which a copy reads from its own."""
        left_out = _READ_FROM_CLASSIFIER | _OF_A_FIT
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.share, self.processes = None, None
        self.prepare()

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's settings: the constructor's arguments, other than the classifier and the options."""
        names = list(inspect.signature(type(self).__init__).parameters)[2:]
        return {name: getattr(self, name) for name in names if name != "options" and hasattr(self, name)}

    @explain_keywords
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
        device, options = device_of(self.classifier.model), self.options
        images = image_tensor(x, self.classifier).to(device)
        labels = training_labels(y, self.classifier, samples=len(images)).to(device)
        self.check_fit(len(images), batch_size, nb_epochs, validated=validation_data is not None)
        batches = ArrayBatches(images, labels, batch_size, shuffle=options.shuffle, drop_last=options.drop_last)
        Loop(self, batches, FitArguments(nb_epochs, validation_data, scheduler, verbose)).run()

    @explain_keywords
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
        if isinstance(generator, PyTorchDataGenerator):
            self.fit_loader(generator.iterator, nb_epochs, validation_data, scheduler, verbose)
            return
        self.prepare()
        batches = LoadedBatches.from_generator(self.classifier, generator)
        Loop(self, batches, FitArguments(nb_epochs, validation_data, scheduler, verbose)).run()

    @explain_keywords
    def fit_loader(
        self,
        loader: DataLoader[Any] | Iterable[Any],
        nb_epochs: int = 20,
        validation_data: tuple[Any, Any] | None = None,
        scheduler: Any = None,
        verbose: bool = True,
    ) -> None:
        """Train on a ``DataLoader``, or on anything that yields batches (x, y) each time it is iterated; as `fit`.

        For data larger than memory: only the current batch is held, and on CUDA the next one, which is read, pinned and
        copied on a stream of its own meanwhile (a ``DataLoader`` with workers reads further ahead by itself).

        Each of several processes iterates its own loader, which must give the same whole batches in all of them (no
        ``DistributedSampler``), and takes its share; labels that differ are an error. A ``DataLoader`` that shuffles
        does so by random numbers that are the same in all.

        A resumed run must have a loader of the same types, length, batch size, sampler, ``collate_fn`` and transforms,
        and the same arrays in the memory of its data set (lists of batches whole), also where another object holds the
        ``DataLoader``. Nothing is drawn from it to compare: of data that are read from files as they are needed, only
        names and the number of samples are known.
        """
        if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
            raise TypeError(
                f"loader: got {type(loader).__name__}, expected an iterable of (x, y) that can be iterated every epoch."
            )
        self.prepare()
        batches = LoadedBatches.from_loader(self.classifier, loader)
        Loop(self, batches, FitArguments(nb_epochs, validation_data, scheduler, verbose)).run()


def _check_instruments(instruments: Iterable[Instrument]) -> tuple[Instrument, ...]:
    given = tuple(instruments) if isinstance(instruments, Iterable) else None
    if given is None or not all(isinstance(each, Instrument) for each in given):
        raise TypeError(f"instruments: got {instruments!r}, expected a list of Instrument objects, as [BANG()].")
    if len(set(map(id, given))) < len(given):
        raise ValueError(f"instruments: got one object twice in {list(given)}, expected each once.")
    return given

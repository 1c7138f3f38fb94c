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
    is_bounded,
    loss_of,
    warn_of_own_predict,
)
from ..checks import check_count
from ..keywords import KnownKeywords, explain_keywords
from ..threat import Norm, ThreatModel
from .engine.batches import ArrayBatches, LoadedBatches, count_steps, load_images
from .engine.first_step import check_outputs, find_frozen_layers
from .engine.fit_checks import check_options
from .engine.fused import check_fused
from .engine.learning_rates import schedule_factor
from .engine.loop import FitArguments, Loop
from .engine.samples import Samples
from .engine.targets import training_labels
from .instruments import Instrument, check_instruments
from .options import TrainingOptions
from .processes import Processes, Share

_READ_FROM_CLASSIFIER = {"estimator_module", "forward_pass", "training_defences", "_frozen_layers"}
_OF_A_FIT = {"processes", "share", "samples"}


class RobustTrainer(Trainer, KnownKeywords):
    """The base of all training methods, yours included: an ART ``Trainer`` whose subclasses give a loss.

    A subclass implements `training_loss` and hands the rest to this constructor. In it, `logits` is the network with
    ART's preprocessing before it, and `loss` the classifier's own loss.

    Args:
        classifier: an ART ``PyTorchClassifier`` with an optimizer; it is trained in place. Any loss works
            that gives one number for a batch.
        threat: for robust validation accuracy, and for methods that train against an adversary.
        instruments: are attached to the network while it trains, such as `BANG`.
        options: the training loop's settings.

    Attributes:
        history: one dictionary an epoch, to which methods may add: ``epoch``, ``loss``, ``seconds``, ``learning_rate``
            (of the epoch's last step) and, with validation data, ``validation_accuracy`` and (with a threat)
            ``validation_robust_accuracy``, between 0 and 1.
        epochs_done: the epochs trained so far, with the steps of the current one as a fraction (for a stream without a
            length, whole epochs only).
        share: in `training_loss`, this process's share of the batch; None when it is the whole batch.
        samples: in `training_loss`, which samples of ``fit``'s arrays the whole batch holds, and how augmentation moved
            them (a `Samples`); None for batches of a loader.
        processes: the processes that train together, since the last call of ``fit`` began; before it None.
        input_range: the classifier's ``clip_values`` (low, high): numbers, tensors on the network's device where they
            differ by feature, or None.
        estimator_module: the network with ART's preprocessing before it, in the classifier's range.
        forward_pass: what `logits` calls: ``estimator_module``, or its compiled form while ``fit`` runs.
        training_defences: ART's preprocessing that acts in training alone.

    Raises:
        TypeError: for another kind of classifier, threat, instruments or options.
        ValueError: one instrument given twice; a classifier without optimizer, with postprocessing, or with
            preprocessing that is not torch; a threat whose ball holds every input within ``clip_values``, such as a
            radius in other units.

    Preprocessing defences of the classifier act as in ART, but in each batch: those of ``fit`` and ``predict``
    belong to the network, those of ``fit`` alone change the batch (and its labels) before the method sees it.

    Several processes (``accelerate launch``, ``torchrun``) share each batch, and every one calls ``fit`` with the same
    arguments, which are compared. Gradients are averaged by sample, and random numbers come from `draw`: with the same
    seed the result is that of one process up to rounding. Two kinds of layers differ, since they see one process's
    share of a batch: batch normalisation uses the share's statistics (``SyncBatchNorm.convert_sync_batchnorm`` of
    torch.nn makes them the whole batch's, on GPUs; the running ones are the main process's), and dropout draws a mask
    for each share. When one process is lost, the others end with a `ProcessLostError`; the main process writes the
    checkpoint, which all must be able to read.

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
        self.instruments = check_instruments(instruments)
        self.options = options
        self.history: list[dict[str, float]] = []
        self.epochs_done = 0.0
        self.share: Share | None = None
        self.samples: Samples | None = None
        self.processes: Processes | None = None
        warn_of_own_predict(classifier)
        self.prepare()
        self.check_radii()

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
        self.training_defences = augmentations(classifier)
        self._frozen_layers = find_frozen_layers(classifier.model, self.options.freeze_batch_norm)

    @property
    def radii(self) -> dict[str, tuple[Norm, float]]:
        """The method's lengths in the units of the input, by argument, each with its norm: `check_radii` checks them.

        A subclass with other such lengths adds them.
        """
        return {} if self.threat is None else {"eps": (self.threat.norm, self.threat.eps)}

    def check_radii(self, x: Tensor | None = None) -> None:
        """Refuse `radii` that are likely in other units than the classifier's input; see `bridge.check_threat`.

        ``x``: training inputs [N, ...], whose range counts where the classifier has no limits.
        """
        for name, (norm, radius) in self.radii.items():
            # A range that is known has been warned of when the trainer was made.
            warn = x is None or not is_bounded(*self.input_range)
            check_threat(ThreatModel(norm, 1.0), self.classifier, name=name, value=radius, x=x, warn=warn)

    @property
    def needs_logits(self) -> bool:
        """Whether softmax outputs would be wrong for the method, as they are for ``CrossEntropyLoss``."""
        return isinstance(self.classifier.loss, nn.CrossEntropyLoss)

    def logits(self, x: Tensor) -> Tensor:
        """The network's outputs [N, C] for inputs in the classifier's range, after ART's preprocessing.

        They are in float32 at least: on a CPU, losses of bfloat16 outputs would be rounded to bfloat16.
        """
        outputs = check_outputs(self.forward_pass(x))
        return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs

    def loss(self, logits: Tensor, y: Tensor) -> Tensor:
        """The classifier's own loss, a scalar; labels are converted to the form that it takes."""
        return loss_of(self.classifier, logits, y)

    def draw(self, draw: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """Random numbers for the samples of ``like`` [N, ...], which do not depend on how many processes there are.

        Args:
            draw: a function such as ``torch.randn_like`` from a tensor, whose values it must not use, to random numbers
                of the tensor's shape, type and device. It gets a tensor for the whole batch.
            like: the samples of this process, or several copies of them one after the other.

        Returns:
            the random numbers for the samples of ``like``.
        """
        return draw(like) if self.share is None else self.share.draw(draw, like)

    def drawn(self, draw: Callable[[Tensor], Tensor], like: Tensor) -> Tensor:
        """Deprecated: the earlier name of `draw`."""
        warnings.warn("drawn is deprecated, expected draw instead.", DeprecationWarning, stacklevel=2)
        return self.draw(draw, like)

    def enter_training_mode(self) -> None:
        """Put the network into training mode, except for batch normalisations that the options freeze.

        For methods that switch the network to evaluation mode within a step.
        """
        self.classifier.model.train()
        for layer in self._frozen_layers:
            layer.eval()

    def copy_from_main_process(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the main process, if several processes train together.

        For a method's own tensors, which may differ between processes; all processes must call it.
        """
        if self.processes is not None:
            self.processes.copy_from_main(tensors)

    def state_dict(self) -> dict[str, Tensor]:
        """The method's own state between batches; checkpoints hold it."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the state of an earlier run, as `state_dict` returned it."""
        if state:
            raise ValueError(f"state: got entries {sorted(state)}, but {type(self).__name__} keeps none.")

    def begin_run(self, samples: int | None) -> None:
        """A hook called when ``fit`` begins, before the checkpoint of an earlier run is loaded.

        ``samples``: how many there are; None for a loader, whose batches do not tell which samples they hold.
        """

    def end_epoch(self, record: dict[str, float]) -> None:
        """A hook called after each epoch with the entry that `history` gets for it; a method may add values to it.

        A method that goes back to earlier weights sets ``record["rolled_back"] = 1.0``: ``keep_best`` then ignores the
        epoch, since its accuracies were measured with other weights.
        """

    def check_fit(self, samples: int, batch_size: int, nb_epochs: int, *, validated: bool = False) -> None:
        """Refuse the settings that `fit` would refuse, before any data are loaded; `fit` calls it too.

        Args:
            samples: the number of training samples.
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
        """The state without what `prepare` reads from the classifier: a copy reads it from its own classifier."""
        left_out = _READ_FROM_CLASSIFIER | _OF_A_FIT
        return {name: value for name, value in vars(self).items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.share, self.samples, self.processes = None, None, None
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
                `LipschitzMarginTrainer`). Where one class is needed, a sample has its most probable one.
            validation_data: a pair (x, y) to measure accuracy on after each epoch; y as indices or one-hot rows.
            batch_size: samples in a batch, over all processes.
            nb_epochs: passes over the data, including those before a run was resumed.
            scheduler: anything with ``step()``, over the classifier's optimizer. ``ReduceLROnPlateau`` monitors the
                training loss with mode ``"min"``, and with mode ``"max"`` the validation accuracy: the robust one
                where the trainer has a threat, else the clean one.
            verbose: show a progress bar.

        All layers are trained in training mode, whatever their mode before, except for batch normalisations that the
        option ``freeze_batch_norm`` names; the network ends in evaluation mode. A ``UserWarning`` reports a class
        without samples, and a training that ended at chance.

        Raises:
            ValueError: for bad data (see `bridge.image_tensor` and `bridge.label_tensor`) or settings; for a network,
                loss, optimizer or scheduler that the loop cannot drive, before the first step, with weights and buffers
                as they were.
            FloatingPointError: when the loss is no longer finite; says at which epoch and step.
        """
        batch_size, nb_epochs = check_count("batch_size", batch_size), check_count("nb_epochs", nb_epochs)
        self.prepare()
        device, options = device_of(self.classifier.model), self.options
        images = load_images(x, self.classifier)
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

        A generator that can be iterated is iterated from its start each epoch, so that a resumed run gets the same
        batches. A resumed run gets from any other generator whatever it then yields.
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
        copied on a separate stream meanwhile (a ``DataLoader`` with workers reads further ahead).

        With several processes, each iterates its own loader, which must yield the same whole batches everywhere (no
        ``DistributedSampler``), and takes its share; labels that differ are an error. A ``DataLoader`` shuffles with
        the same random numbers in all processes.

        A resumed run must have a loader of the same types, length, batch size, sampler, ``collate_fn`` and transforms,
        with the same arrays in its data set (lists of batches are compared as a whole), also where another object wraps
        the ``DataLoader``. The comparison draws no batch: of data that are read from files on demand, only names and
        the number of samples are compared.
        """
        if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
            raise TypeError(
                f"loader: got {type(loader).__name__}, expected an iterable of (x, y) that can be iterated every epoch."
            )
        self.prepare()
        batches = LoadedBatches.from_loader(self.classifier, loader)
        Loop(self, batches, FitArguments(nb_epochs, validation_data, scheduler, verbose)).run()

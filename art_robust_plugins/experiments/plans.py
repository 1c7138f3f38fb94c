"""Training plans: how one network is made and trained, by names, as on the command line or in a recipe's row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..checks import check_choice, check_count, check_number, check_share, plain_number, quote_error
from ..choices import Kernel
from ..memory import in_gigabytes, physical_memory
from ..training.options import Schedule, TrainingOptions

# The command line reads the settings without importing torch or ART: what trains is imported where it is used.
if TYPE_CHECKING:
    from ..data import Dataset
    from ..training import RobustTrainer

OptimizerName = Literal["sgd", "adam"]

SCHEDULE: Schedule = "cosine"
"""The schedule of a plan whose options name none."""


@dataclass(frozen=True)
class TrainingPlan:
    """A description, by names, of how a network is made and trained: ``art-robust train`` or the row of a recipe.

    Args:
        method: a trainer, or an estimator whose network is changed first and then trained plainly.
        network: a name of `models`.
        network_arguments: further arguments of `create_model`.
        parameters: the method's own arguments.
        instruments: names of instruments that are attached in training, with the parameters of each.
        weight_map: the kernel of weight maps that the network is given, whatever the method; None for no maps.
        epochs: passes over the training data.
        batch_size: samples in a batch.
        optimizer: ``"sgd"`` or ``"adam"``.
        lr: learning rate.
        momentum: of ``"sgd"``.
        weight_decay: of the optimizer.
        train: the number of training images, the first ones; None for all.
        validation: the number of these that are held out to validate each epoch.
        options: fields of `TrainingOptions`, other than the seed and the folder of checkpoints; the schedule is
            `SCHEDULE` unless they name another.
        label_smoothing: of the cross-entropy, from 0 to less than 1; an adversary that ascends it sees it too.

    Raises:
        ValueError: for a value outside its range.
    """

    method: str
    network: str = "small-cnn"
    network_arguments: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    instruments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weight_map: Kernel | None = None
    epochs: int = 20
    batch_size: int = 64
    optimizer: OptimizerName = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    train: int | None = None
    validation: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            check_count(name, getattr(self, name))
        check_count("validation", self.validation, zero=True)
        if self.train is not None:
            check_count("train", self.train)
        check_choice("optimizer", self.optimizer, get_args(OptimizerName))
        check_number("lr", self.lr)
        for name in ("momentum", "weight_decay"):
            check_number(name, getattr(self, name), zero=True)
        if check_number("label_smoothing", self.label_smoothing, zero=True):
            check_share("label_smoothing", self.label_smoothing)
        for each in fields(self):
            object.__setattr__(self, each.name, plain_number(getattr(self, each.name)))

    def images(self, data: Dataset) -> int:
        """The number of images of the data for training and validation."""
        return len(data.x_train) if self.train is None else min(self.train, len(data.x_train))

    def trainer(
        self, data: Dataset, *, seed: int, checkpoint_dir: Path | None = None, resume: bool = False
    ) -> tuple[RobustTrainer, dict[str, Any]]:
        """A trainer of a new network for these data, and the method's parameters with their defaults."""
        import torch
        from art.defences.trainer import Trainer
        from art.estimators.classification import PyTorchClassifier

        from ..models import create_model
        from ..registry import create, create_instrument, method, parameters_of
        from ..weight_map import PyTorchWeightMapClassifier

        if self.validation >= self.images(data):
            raise ValueError(
                f"validation: got {self.validation} of {self.images(data)} training images, expected fewer."
            )
        self._check_memory(data)
        torch.manual_seed(seed)
        network = create_model(self.network, data.input_shape, data.nb_classes, **self.network_arguments)
        descent: torch.optim.Optimizer
        if self.optimizer == "sgd":
            descent = torch.optim.SGD(network.parameters(), self.lr, self.momentum, weight_decay=self.weight_decay)
        else:
            descent = torch.optim.Adam(network.parameters(), self.lr, weight_decay=self.weight_decay)
        classifier = PyTorchClassifier(
            network,
            torch.nn.CrossEntropyLoss(label_smoothing=self.label_smoothing),
            data.input_shape,
            data.nb_classes,
            optimizer=descent,
            clip_values=(0.0, 1.0),
        )
        given = {"schedule": SCHEDULE, **self.options}
        options = TrainingOptions(**given, seed=seed, checkpoint_dir=checkpoint_dir, resume=resume)
        attached = [create_instrument(instrument, **values) for instrument, values in self.instruments.items()]
        training = {"options": options, **({"instruments": attached} if attached else {})}
        if self.weight_map is not None:
            classifier = PyTorchWeightMapClassifier.from_classifier(classifier, kernel=self.weight_map)
        trainer: RobustTrainer
        if issubclass(method(self.method), Trainer):
            trainer = create(self.method, classifier, **training, **self.parameters)
            return trainer, trainer.parameters
        classifier = create(self.method, classifier, **self.parameters)
        trainer = create("standard", classifier, **training)
        return trainer, {key: getattr(classifier, key) for key in parameters_of(type(classifier))}

    def _check_memory(self, data: Dataset) -> None:
        """Refuse a network that is larger than the memory, before it is made."""
        import torch

        from ..models import create_model

        try:
            with torch.device("meta"):
                twin = create_model(self.network, data.input_shape, data.nb_classes, **self.network_arguments)
        except RuntimeError as error:  # sizes below 0, or beyond any memory
            raise ValueError(
                f"network: got arguments that make no network ({quote_error(error)}), expected others."
            ) from error
        size = sum(tensor.numel() * tensor.element_size() for tensor in twin.state_dict().values())
        if size > physical_memory():
            raise ValueError(
                f"network: got arguments that make {in_gigabytes(size)} of weights, expected at most the memory, "
                f"{in_gigabytes(physical_memory())}."
            )

    def check(self, trainer: RobustTrainer, data: Dataset) -> None:
        """Refuse settings that training with these data would refuse, before it begins.

        Raises:
            ValueError: the sentence names the setting.
        """
        samples = self.images(data) - self.validation
        trainer.check_fit(samples, self.batch_size, self.epochs, validated=self.validation > 0)


def is_trainable(kind: type) -> bool:
    """Whether a method can be trained: a trainer, or the estimator that changes its network before plain training."""
    from art.defences.trainer import Trainer

    from ..weight_map import PyTorchWeightMapClassifier

    return issubclass(kind, Trainer | PyTorchWeightMapClassifier)

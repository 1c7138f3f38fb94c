"""A run: the folder of one network that was trained by names, and in it its evaluations and certificates."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from art.defences.trainer import Trainer
from art.estimators.classification import PyTorchClassifier
from torch import nn

from .bridge import check_threat, processes_of
from .checkpoint import CLASSIFIER_FILE, WEIGHTS_FILE, load_classifier, save_classifier
from .checks import check_choice, check_count, check_number, plain_number
from .data import Dataset, Images, Labels
from .evaluation import EvaluationReport, Evaluator, save_comparison, sweep, transfer
from .evaluation.diagnostics import TRANSFER
from .evaluation.report import REPORT_FILE, REPORT_FILES
from .evaluation.suites import Backend
from .files import read_json, save_tensors, write_json
from .labels import MissingClassWarning
from .lipschitz import LipschitzReport, NoLipschitzRuleError, PyTorchLipschitzCertifier
from .memory import in_gigabytes, physical_memory
from .models import create_model
from .registry import create, create_instrument, method, parameters_of
from .terminal import console
from .threat import ThreatModel
from .training import RobustTrainer, TrainingOptions
from .training.checkpoints import CHECKPOINT
from .training.processes import Processes
from .training_record import read_training_record
from .weight_map import PyTorchWeightMapClassifier

EVALUATIONS = "evaluations"
CERTIFICATES = "certificates"
CERTIFICATE_FILE = "certificate.json"
RADII_FILE = "radii.safetensors"
RUN_FILES = (CHECKPOINT, WEIGHTS_FILE, CLASSIFIER_FILE)
"""What `train_run` writes."""
STATE = "state"
BATCH_SIZE = 250


@dataclass(frozen=True)
class TrainingPlan:
    """How a network is made and trained, by names: what ``art-robust train`` and the row of a recipe say.

    Args:
        method: a trainer, or an estimator whose network is changed first and then trained plainly.
        network: a name of `models`.
        network_arguments: what `create_model` takes besides.
        parameters: the method's own.
        instruments: attached in training, with the parameters of each.
        weight_map: the kernel of weight maps that the network is given, whatever the method; None for no maps.
        epochs: passes over the training data.
        batch_size: samples in a batch.
        optimizer: ``"sgd"`` or ``"adam"``.
        lr: learning rate.
        momentum: of ``"sgd"``.
        weight_decay: of the optimizer.
        train: how many training images, the first ones; None for all.
        validation: how many of them are held out, to measure each epoch on.
        options: fields of `TrainingOptions`, other than the seed and where checkpoints are; the schedule is
            ``"cosine"`` unless they name another.

    Raises:
        ValueError: for a value outside its range.
    """

    method: str
    network: str = "small-cnn"
    network_arguments: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    instruments: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    weight_map: Any = None
    epochs: int = 20
    batch_size: int = 64
    optimizer: Literal["sgd", "adam"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    train: int | None = None
    validation: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            check_count(name, getattr(self, name))
        check_count("validation", self.validation, zero=True)
        if self.train is not None:
            check_count("train", self.train)
        check_choice("optimizer", self.optimizer, ("sgd", "adam"))
        check_number("lr", self.lr)
        for name in ("momentum", "weight_decay"):
            check_number(name, getattr(self, name), zero=True)
        for each in fields(self):
            object.__setattr__(self, each.name, plain_number(getattr(self, each.name)))

    def images(self, data: Dataset) -> int:
        """How many images of the data are for training and validation."""
        return len(data.x_train) if self.train is None else min(self.train, len(data.x_train))

    def trainer(
        self, data: Dataset, *, seed: int, checkpoint_dir: Path | None = None, resume: bool = False
    ) -> tuple[RobustTrainer, dict[str, Any]]:
        """A trainer of a new network for these data, and the method's parameters with their defaults."""
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
            network, nn.CrossEntropyLoss(), data.input_shape, data.nb_classes, optimizer=descent, clip_values=(0.0, 1.0)
        )
        given = {"schedule": "cosine", **self.options}
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
        try:
            with torch.device("meta"):
                twin = create_model(self.network, data.input_shape, data.nb_classes, **self.network_arguments)
        except RuntimeError as error:  # sizes below 0, or beyond any memory
            reason = str(error).strip().split("\n")[0]
            raise ValueError(f"network: got arguments that make no network ({reason}), expected others.") from error
        size = sum(tensor.numel() * tensor.element_size() for tensor in twin.state_dict().values())
        if size > physical_memory():
            raise ValueError(
                f"network: got arguments that make {in_gigabytes(size)} of weights, expected at most the memory, "
                f"{in_gigabytes(physical_memory())}."
            )

    def check(self, trainer: RobustTrainer, data: Dataset) -> None:
        """Refuse what training with these data would refuse, before it begins.

        Raises:
            ValueError: the sentence names the setting.
        """
        samples = self.images(data) - self.validation
        trainer.check_fit(samples, self.batch_size, self.epochs, validated=self.validation > 0)


def train_run(
    plan: TrainingPlan, data: Dataset, out: Path, *, seed: int, resume: bool = False, verbose: bool = True
) -> None:
    """Train a network and save it in the folder ``out``, with a record of how it was made.

    Raises:
        ValueError: as many validation images as there are, a folder that cannot be written to, and what networks,
            methods and options refuse.
        FolderInUseError: another process trains into this folder.
    """
    with Processes(processes_here().device).held_folder("--out", out, "run", RUN_FILES):
        _train_run(plan, data, out, seed=seed, resume=resume, verbose=verbose)


def _train_run(plan: TrainingPlan, data: Dataset, out: Path, *, seed: int, resume: bool, verbose: bool) -> None:
    # On its own device each process makes its network; the first one writes.
    processes = processes_here()
    trainer, parameters = plan.trainer(data, seed=seed, checkpoint_dir=out, resume=resume)
    classifier = trainer.classifier
    images = plan.images(data)
    held_out = np.random.default_rng(0).permutation(images)[: plan.validation]
    kept = np.setdiff1d(np.arange(images), held_out)
    with warnings.catch_warnings():
        if data.name.endswith(".npz"):  # what was told when the data were loaded
            warnings.simplefilter("ignore", MissingClassWarning)
        trainer.fit(
            data.x_train[kept],
            data.y_train[kept],
            validation_data=(data.x_train[held_out], data.y_train[held_out]) if plan.validation else None,
            batch_size=plan.batch_size,
            nb_epochs=plan.epochs,
            verbose=verbose,
        )
    record = {
        "method": plan.method,
        "parameters": {key: _recorded(value) for key, value in parameters.items()},
        "weight_map": plan.weight_map,
        "data": str(Path(data.name).resolve()) if data.name.endswith(".npz") else data.name,
        "train": plan.train,
        "epochs": plan.epochs,
        "batch_size": plan.batch_size,
        "seed": seed,
        "history": trainer.history,
    }
    if processes.is_main_process:
        save_classifier(classifier, out, extra=record)
    Processes(
        processes.device,
        moment="while the first one saved the trained network",
        advice=f"start all of them again with resume (--resume), to save it from {out / CHECKPOINT}.",
    ).wait()  # all may read it now


def evaluate_run(
    run: Path,
    data: Dataset,
    threats: Sequence[ThreatModel],
    attacks: Sequence[str],
    transfers: Sequence[Path] = (),
    *,
    points: int,
    seed: int,
    batch_size: int = BATCH_SIZE,
    physical_batch_size: int | None = None,
    backend: Backend = "native",
    certify: Literal["always", "if possible", "never"] = "never",
    out: Path | None = None,
    verbose: bool = True,
) -> list[EvaluationReport]:
    """The report of each threat, saved; several threats in folders of their own, with a page that compares them."""
    others = {path.resolve().name: path for path in transfers}
    if len(others) < len(transfers):
        raise ValueError(f"--transfer: got {', '.join(map(str, transfers))}, expected runs of different names.")
    names = [*attacks, *(f"{TRANSFER}{other}" for other in others)]
    name = _label(run, data, threats, names, points=points, seed=seed, batch=batch_size, backend=backend)
    folder = out or run / EVALUATIONS / name
    processes = processes_here()
    classifier = load_classifier(run)
    if _holds_certificate(folder / REPORT_FILE):
        certify = "always"  # a report that is made again keeps what it has
    if certify != "never":
        try:
            classifier = PyTorchLipschitzCertifier.from_classifier(classifier)
        except NoLipschitzRuleError as reason:
            if certify == "always":
                raise
            if processes.is_main_process:
                console.print(f"{run.name}: not certified, {reason}", soft_wrap=True)
    chosen = [*attacks, *(transfer(load_classifier(path), other) for other, path in others.items())]
    settings: dict[str, Any] = {
        "attacks": chosen,
        "backend": backend,
        "batch_size": batch_size,
        "physical_batch_size": physical_batch_size,
        "seed": seed,
        "verbose": verbose,
    }
    x, y = data.x_test[:points], data.y_test[:points]
    with Processes(processes.device).held_folder("--out", folder, "report", REPORT_FILES):
        return _reports(classifier, x, y, threats, folder, settings)


def _reports(
    classifier: PyTorchClassifier,
    x: Images,
    y: Labels,
    threats: Sequence[ThreatModel],
    folder: Path,
    settings: Mapping[str, Any],
) -> list[EvaluationReport]:
    """Evaluate and save, in a folder that nobody else writes to."""
    writes = processes_here().is_main_process
    if len(threats) == 1:
        report = Evaluator(classifier, threats[0], state_dir=folder / STATE, **settings).evaluate(x, y)
        if writes:
            report.save(folder)
        return [report]
    reports = sweep(classifier, threats[0].norm, [each.eps for each in threats], x, y, state_dir=folder, **settings)
    if writes:
        for eps, report in reports.items():
            report.save(folder / f"{eps:g}")
        save_comparison({report.settings["threat"]["text"]: report for report in reports.values()}, folder)
    return list(reports.values())


def certify_run(
    run: Path,
    data: Dataset,
    threats: Sequence[ThreatModel],
    out: Path,
    *,
    points: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> tuple[dict[str, Any], LipschitzReport]:
    """Certify test images within the threats, which have one norm; what is written in ``out``, and the bound."""
    norm = threats[0].norm
    images, labels = data.x_test[:points], data.y_test[:points]
    classifier = load_classifier(run)
    for threat in threats:
        check_threat(threat, classifier)
    certifier = PyTorchLipschitzCertifier.from_classifier(classifier)
    prediction, radius = certifier.certify(images, batch_size, norm=norm)
    correct, bound = prediction == labels, certifier.lipschitz_report()
    save_tensors(out / RADII_FILE, {"radius": torch.from_numpy(radius), "prediction": torch.from_numpy(prediction)})
    accuracies = {threat.eps: float((correct & (radius >= threat.eps)).mean()) for threat in threats}
    summary = {
        "norm": norm,
        "data": data.name,
        "points": len(images),
        "clean_accuracy": float(correct.mean()),
        "certified_accuracy": [{"eps": eps, "accuracy": accuracy} for eps, accuracy in accuracies.items()],
        "median_radius": float(np.median(radius)),
        "lipschitz": bound.lipschitz,
        "largest_pair": bound.largest_pair,
        "operators": bound.rows,
    }
    write_json(out / CERTIFICATE_FILE, summary)
    return summary, bound


def is_trainable(kind: type) -> bool:
    """Trainers, and the one estimator whose network is changed first and then trained plainly."""
    return issubclass(kind, Trainer | PyTorchWeightMapClassifier)


def processes_here() -> PartialState:
    """Those that ``accelerate launch`` or ``torchrun`` started; each takes its device, and makes networks there."""
    return processes_of(torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def _holds_certificate(report: Path) -> bool:
    try:
        return report.exists() and read_json(report)["settings"]["certificate"] is not None
    except (ValueError, KeyError, TypeError):  # a damaged or older report, which the new one replaces
        return False


def _label(
    run: Path,
    data: Dataset,
    threats: Sequence[ThreatModel],
    attacks: Sequence[str],
    *,
    points: int,
    seed: int,
    batch: int,
    backend: Backend,
) -> str:
    """A folder's name for an evaluation: another one of the same run gets another name."""
    radii = [str(threat).split(" ")[1] for threat in threats[1:]]
    parts = [str(threats[0]), *radii, *attacks, str(min(points, len(data.x_test)))]
    trained_on = read_training_record(run).get("data")
    if trained_on is not None and Path(data.name).name != Path(trained_on).name:
        parts.append(Path(data.name).stem)
    parts += [f"seed{seed}"] if seed else []
    parts += [f"batch{batch}"] if batch != BATCH_SIZE else []
    parts += [backend] if backend != "native" else []
    return "-".join(parts).replace("/", "_").replace(" ", "-")


def _recorded(value: Any) -> Any:
    """A parameter as JSON data."""
    value = plain_number(value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, dict):
        return {str(key): _recorded(entry) for key, entry in value.items()}
    return [_recorded(entry) for entry in value] if isinstance(value, list | tuple) else str(value)

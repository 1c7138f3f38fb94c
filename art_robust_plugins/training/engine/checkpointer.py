"""What outlives an epoch of training: the checkpoint, and what it must agree with to be continued."""

from __future__ import annotations

import copy
import logging
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Protocol

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from ...bridge import preprocessing_modules
from ...files import save_state
from ..instruments import Instrument
from ..options import TrainingOptions
from .averaging import WeightAverage
from .identity import (
    describe_arrays,
    describe_estimator,
    describe_groups,
    describe_loader,
    describe_method,
    describe_scheduler,
    describe_scheduler_code,
    plain_text,
)
from .memory_format import align_state
from .prefetch import Batch
from .probe import OutputProbe
from .processes import Processes
from .resuming import (
    Snapshot,
    check_averages,
    check_identity,
    check_optimizer,
    check_same,
    check_scheduler,
    check_tensors,
    read_checkpoint,
)

logger = logging.getLogger(__name__)

CHECKPOINT = "training.pt"


class Resumable(Protocol):
    """What a `TrainingRun` needs of a trainer."""

    classifier: PyTorchClassifier
    options: TrainingOptions
    instruments: tuple[Instrument, ...]
    history: list[dict[str, float]]

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's settings."""

    def state_dict(self) -> dict[str, Tensor]:
        """What the method remembers between batches."""

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take up the state of an earlier run."""


class TrainingRun:
    """What outlives an epoch: the seed, the best weights, and the checkpoint that holds all of it."""

    def __init__(
        self, trainer: Resumable, data: dict[str, int], scheduler: Any, order: Sequence[torch.Generator]
    ) -> None:
        self.trainer, self.scheduler, self.order = trainer, scheduler, order
        self.options = trainer.options
        self.network, self.optimizer = trainer.classifier.model, trainer.classifier.optimizer
        self.preprocessing = preprocessing_modules(trainer.classifier)
        self.path = None if self.options.checkpoint_dir is None else Path(self.options.checkpoint_dir) / CHECKPOINT
        if self.path is not None and scheduler is not None and not hasattr(scheduler, "state_dict"):
            raise ValueError(
                f"scheduler: {type(scheduler).__name__} has no state_dict, which checkpoint_dir needs to resume it."
            )
        self.settings = self._settings(data)
        self.best: dict[str, Any] | None = None
        self.average: WeightAverage | None = None
        self._earlier_averages: list[Tensor] | None = None
        self.seed = 0
        self._identity: dict[str, str] = {}
        self._probe: OutputProbe | None = None
        self._unverified: tuple[Snapshot, dict[str, Any]] | None = None

    def identify(self, whole: Batch | None, loader: object, validation: Batch | None) -> None:
        """Describe what the run is made of, where checkpoints are written: all the data of ``fit``, or its loader."""
        if self.path is None:
            return
        self._probe = OutputProbe(self.trainer.classifier)
        self._identity = {
            "data from": "arrays" if whole is not None else "a loader",
            **(describe_arrays(*whole) if whole is not None else describe_loader(loader)),
            **({} if validation is None else describe_arrays(*validation, prefix="validation_data ")),
            "validation data": "none" if validation is None else "given",
            **describe_estimator(self.trainer.classifier),
            **describe_method(self.trainer, self.trainer.instruments),
            **describe_scheduler_code(self.scheduler),
            **self._progress(),
        }

    def _progress(self) -> dict[str, str]:
        return {**describe_groups(self.trainer.classifier), **describe_scheduler(self.scheduler)}

    @property
    def advice(self) -> str:
        """What to do when another process is lost."""
        if self.path is None:
            return "no checkpoint_dir was given, so that training must begin anew."
        return f"start all of them again with resume (--resume), to go on from the last epoch in {self.path}."

    def start(self, processes: Processes, nb_epochs: int) -> int:
        """Begin anew or take up the checkpoint; the number of epochs that are already done.

        What is taken up is only sure when `verify` has been called.
        """
        drawn = torch.randint(2**31, ()) if self.options.seed is None else torch.tensor(self.options.seed)
        drawn = drawn.to(processes.device)
        processes.copy_from_main([drawn])
        self.seed = int(drawn)
        if self.path is None or not self.path.exists():
            self.trainer.history = []
            return 0
        if not self.options.resume:
            raise ValueError(
                f"checkpoint_dir: {self.path} holds an earlier run, expected resume=True to continue it or another "
                f"folder."
            )
        return self._load(self.path, nb_epochs)

    def verify(self) -> None:
        """Refuse, when the instruments are attached, a network that computes something else than the checkpoint's.

        Raises:
            ValueError: it does; all is then as it was before `start`.
        """
        if self._unverified is None or self._probe is None:
            return
        (snapshot, outputs), self._unverified = self._unverified, None
        if not self._probe.matches(outputs):
            self._undo(snapshot)
            raise ValueError(
                f"resume: {self.path} was written with a network of other outputs for the same inputs and weights, "
                f"expected the same code and constants."
            )

    def begin_average(self) -> None:
        """Start the average of the weights, or go on with the checkpoint's, now that the weights are there."""
        if self.options.ema_decay is None:
            return
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        self.average = WeightAverage(weights, self.options.ema_decay)
        if self._earlier_averages is not None:
            self.average.load(self._earlier_averages)

    def averaged(self) -> AbstractContextManager[None]:
        """A context with the weights that will be the result."""
        return nullcontext() if self.average is None else self.average.in_place()

    def finish_epoch(self, epochs: int, record: dict[str, float], processes: Processes) -> None:
        # What was measured before a method went back to earlier weights is not true of them.
        if self.options.keep_best and not record.get("rolled_back"):
            measure = record.get("validation_robust_accuracy", record["validation_accuracy"])
            if self.best is None or measure > self.best["measure"]:
                with self.averaged():
                    weights, *others = (_copied(module.state_dict()) for module in (self.network, *self.preprocessing))
                self.best = {"epoch": epochs, "measure": measure, "network": weights, "preprocessing": others}
        if self.path is None:
            return
        instruments = [instrument.state_dict() for instrument in self.trainer.instruments]  # by all processes together
        if not processes.is_main:
            return
        state = {
            "settings": self.settings,
            "seed": self.seed,
            "epochs": epochs,
            "history": self.trainer.history,
            "network": self.network.state_dict(),
            "preprocessing": [module.state_dict() for module in self.preprocessing],
            "optimizer": self.optimizer.state_dict(),
            "scheduler": None if self.scheduler is None else self.scheduler.state_dict(),
            "method": self.trainer.state_dict(),
            "instruments": instruments,
            "order": [generator.get_state() for generator in self.order],
            "best": self.best,
            "average": None if self.average is None else self.average.averages,
            "identity": self._identity,
            "progress": self._progress(),
            "probe": None if self._probe is None else self._probe.state_dict(),
        }
        save_state(self.path, state)

    def finish(self) -> None:
        """Put the weights into the network that are the result."""
        if self.average is not None:
            self.average.exchange()
        if self.best is not None:
            self.network.load_state_dict(self.best["network"])
            self._load_preprocessing(self.best)
            logger.info("kept the weights of epoch %d", self.best["epoch"])

    def _load(self, path: Path, nb_epochs: int) -> int:
        state = read_checkpoint(path)
        # What earlier checkpoints do not name was not there.
        defaults = {name: str(value) for name, value in asdict(TrainingOptions()).items()}
        written = {"preprocessing": "[]", **defaults, **state["settings"]}
        for name, now in self.settings.items():
            check_same(path, name, plain_text(written.get(name)), now)
        check_identity(path, state.get("identity", {}), state.get("progress", {}), self._identity, moving="scheduler ")
        epochs, order = int(state["epochs"]), state.get("order")
        if epochs > nb_epochs:
            raise ValueError(f"nb_epochs: got {nb_epochs}, but {path} holds {epochs}, expected at least as many.")
        order = [] if order is None else [order] if isinstance(order, Tensor) else order  # as earlier ones have it
        if len(order) != len(self.order):
            raise ValueError(
                f"resume: {path} was written with {len(order)} random generators of the loader, but this run has "
                f"{len(self.order)}."
            )
        self._check_shapes(path, state)
        owners = (self.trainer, *self.trainer.instruments)
        modules = (self.network, *self.preprocessing)
        snapshot = Snapshot(modules, self.optimizer, self.scheduler, self.order, owners)
        try:
            self._take_up(state, order)
        except BaseException as error:
            self._undo(snapshot)
            if isinstance(error, RuntimeError | ValueError | TypeError | LookupError):
                reason = str(error).strip().split("\n")[0]
                raise ValueError(
                    f"resume: {path} does not fit this run ({reason}), expected another folder."
                ) from error
            raise
        self.trainer.history = state["history"]
        self.best, self.seed = state["best"], state["seed"]
        self._earlier_averages = state.get("average")
        self._identity |= state.get("identity", {})
        if "probe" in state:
            self._unverified = snapshot, state["probe"]
        return epochs

    def _check_shapes(self, path: Path, state: dict[str, Any]) -> None:
        modules = (self.network, *self.preprocessing)
        for holder in (state, *([] if state["best"] is None else [state["best"]])):
            states = [holder["network"], *holder.get("preprocessing", ())]
            check_same(path, "modules with weights", str(len(states)), str(len(modules)))
            for number, (saved, module) in enumerate(zip(states, modules, strict=True)):
                name = "the network" if number == 0 else f"preprocessing {number}"
                check_tensors(path, name, saved, module.state_dict())
        check_optimizer(path, state["optimizer"], self.optimizer)
        if self.scheduler is not None:
            check_scheduler(path, state["scheduler"], self.scheduler.state_dict())
        weights = [weight for group in self.optimizer.param_groups for weight in group["params"]]
        check_averages(path, state.get("average"), weights, wanted=self.options.ema_decay is not None)
        check_same(path, "instruments", str(len(state["instruments"])), str(len(self.trainer.instruments)))

    def _take_up(self, state: dict[str, Any], order: Sequence[Tensor]) -> None:
        self.network.load_state_dict(state["network"])
        self._load_preprocessing(state)
        self.optimizer.load_state_dict(state["optimizer"])
        align_state(self.optimizer)
        if self.scheduler is not None:
            self.scheduler.load_state_dict(_typed_like(state["scheduler"], self.scheduler.state_dict()))
        for generator, saved in zip(self.order, order, strict=True):
            generator.set_state(saved)
        for instrument, kept in zip(self.trainer.instruments, state["instruments"], strict=True):
            instrument.load_state_dict(kept)
        self.trainer.load_state_dict(state["method"])

    def _undo(self, snapshot: Snapshot) -> None:
        snapshot.restore()
        align_state(self.optimizer)

    def _load_preprocessing(self, state: dict[str, Any]) -> None:
        for module, weights in zip(self.preprocessing, state.get("preprocessing", ()), strict=True):
            module.load_state_dict(weights)

    def _settings(self, data: dict[str, int]) -> dict[str, str]:
        """What must be the same for a checkpoint to be continued; nb_epochs may grow."""
        trainer, ignored = self.trainer, {"checkpoint_dir", "resume", "seed"}
        described: dict[str, Any] = {"method": type(trainer).__name__, **trainer.parameters}
        described |= {f.name: asdict(self.options)[f.name] for f in fields(self.options) if f.name not in ignored}
        if self.options.seed is not None:
            described["seed"] = self.options.seed
        described["instruments"] = list(trainer.instruments)
        described["optimizer"] = f"{type(self.optimizer).__name__} {self.optimizer.defaults}"
        described["scheduler"] = type(self.scheduler).__name__
        described["weights"] = {name: tuple(t.shape) for name, t in tensors_of(self.network.state_dict()).items()}
        described["preprocessing"] = self.preprocessing
        return {name: plain_text(value) for name, value in (described | data).items()}

    def same_in_all(self, nb_epochs: int, whole: Batch | None, validation: Batch | None) -> dict[str, str]:
        """What must be the same in all processes; the weights need not, as the first process's count."""
        settings = {**self.settings, "nb_epochs": str(nb_epochs), "resume": str(self.options.resume)}
        for number, group in enumerate(self.optimizer.param_groups):
            shapes = [tuple(weight.shape) for weight in group["params"]]
            settings[f"optimizer, group {number}"] = plain_text({**group, "params": shapes})
        if hasattr(self.scheduler, "state_dict"):
            settings["scheduler, state"] = plain_text(self.scheduler.state_dict())
        names = ("x", "y", "validation_data[0]", "validation_data[1]")
        for name, tensor in zip(names, (*(whole or (None, None)), *(validation or (None, None))), strict=True):
            settings[f"{name}, checksum"] = "none" if tensor is None else str(checksum(tensor))
        return settings


def _copied(weights: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy({**weights, **{name: tensor.detach() for name, tensor in tensors_of(weights).items()}})


def tensors_of(state: dict[str, Any]) -> dict[str, Tensor]:
    """Those of a state dict, which holds other things where modules have an extra state."""
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _typed_like(saved: Any, template: Any) -> Any:
    """``saved`` with the types of ``template``: a file keeps no subclasses of dict, such as a scheduler's Counter."""
    if isinstance(template, dict) and isinstance(saved, dict):
        entries = {key: _typed_like(value, template.get(key)) for key, value in saved.items()}
        return type(template)(entries)
    if isinstance(template, list) and isinstance(saved, list) and len(saved) == len(template):
        return [_typed_like(*pair) for pair in zip(saved, template, strict=True)]
    return saved


def checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.cpu().contiguous().numpy().data)

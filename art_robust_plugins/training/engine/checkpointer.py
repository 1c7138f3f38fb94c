"""The checkpoint of a run: `Checkpointer.save` writes it after an epoch, `Checkpointer.take_up` continues from it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from ...checks import quote_error
from ...files import save_state
from ..memory_format import align_state
from ..options import TrainingOptions
from .batches import find_lost_numbers
from .descriptions import HOOK
from .identity import (
    FORM,
    LATER_PARAMETERS,
    describe_arrays,
    describe_estimator,
    describe_groups,
    describe_held,
    describe_method,
    describe_scheduler,
)
from .plain_texts import plain_text
from .prefetch import Batch
from .probe import OutputProbe
from .resuming import (
    RunBackup,
    check_averages,
    check_identity,
    check_optimizer_state,
    check_same,
    check_scheduler_state,
    check_tensors,
    read_checkpoint,
)
from .run_state import RunState

CHECKPOINT = "training.pt"


class Checkpointer:
    """Saves a run after each epoch, and loads what an earlier run saved; does nothing without ``checkpoint_dir``.

    Args:
        state: of the run.
        settings: see `describe_settings`.

    Raises:
        ValueError: for a scheduler whose state cannot be saved.
    """

    def __init__(self, state: RunState, settings: Mapping[str, str]) -> None:
        self.state, self.settings = state, dict(settings)
        folder, scheduler = state.options.checkpoint_dir, state.scheduler
        self.path = None if folder is None else Path(folder) / CHECKPOINT
        if self.path is not None and scheduler is not None and not hasattr(scheduler, "state_dict"):
            raise ValueError(
                f"scheduler: {type(scheduler).__name__} has no state_dict, which checkpoint_dir needs to resume it."
            )
        self._loader: object = None
        self._identity: dict[str, str] = {}
        self._probe: OutputProbe | None = None
        self._unverified: tuple[RunBackup, dict[str, Any]] | None = None

    @property
    def advice(self) -> str:
        """Advice for the user when another process is lost."""
        if self.path is None:
            return "no checkpoint_dir was given, so that training must begin anew."
        return f"start all of them again with resume=True, to go on from the last epoch in {self.path}."

    def identify(self, whole: Batch | None, loader: object, validation: Batch | None) -> None:
        """Describe what determines the run: the data of ``fit`` or its loader, network, loss, method and optimizer."""
        if self.path is None:
            return
        method, classifier = self.state.method, self.state.method.classifier
        self._probe = OutputProbe(classifier)
        self._identity = {
            "data from": "arrays" if whole is not None else "a loader",
            **(describe_arrays(*whole) if whole is not None else {}),
            **({} if validation is None else describe_arrays(*validation, prefix="validation_data ")),
            "validation data": "none" if validation is None else "given",
            **describe_estimator(classifier),
            **describe_method(method, method.instruments),
            "form": FORM,
        }
        self._loader = None if whole is not None else loader
        self._identity |= self._progress()

    def save(self, epochs: int, *, is_main: bool) -> None:
        """Write the checkpoint of a run of so many epochs; all processes call it, and the main one writes."""
        if self.path is None:
            return
        run = self.state
        # Instruments gather their state from all processes, so every process calls this.
        instruments = [instrument.state_dict() for instrument in run.method.instruments]
        if not is_main:
            return
        state = {
            "settings": self.settings,
            "seed": run.seed,
            "epochs": epochs,
            "history": run.method.history,
            "network": run.network.state_dict(),
            "preprocessing": [module.state_dict() for module in run.preprocessing],
            "optimizer": run.optimizer.state_dict(),
            "scheduler": None if run.scheduler is None else run.scheduler.state_dict(),
            "method": run.method.state_dict(),
            "instruments": instruments,
            "order": [generator.get_state() for generator in run.generators],
            "best": run.best,
            "average": None if run.average is None else run.average.averages,
            "identity": self._identity,
            "probe": None if self._probe is None else self._probe.state_dict(),
            "progress": self._describe_progress(),  # after the probe, whose passes the network's counters count
        }
        save_state(self.path, state)

    def take_up(self, nb_epochs: int) -> int:
        """Start a new run or load the checkpoint; returns the number of epochs that are already done.

        The network's outputs are compared with the checkpoint's only in `verify`, when the instruments are attached.

        Raises:
            ValueError: the checkpoint must not be continued, or does not fit the run; network, optimizer and all other
                state are then as they were.
        """
        path = self.path
        if path is None or not path.exists():
            self.state.method.history = []
            return 0
        if not self.state.options.resume:
            raise ValueError(
                f"checkpoint_dir: {path} holds an earlier run, expected resume=True to continue it or another folder."
            )
        saved = read_checkpoint(path)
        generators = self._check(path, saved, nb_epochs)
        backup = self._back_up()
        try:
            self._load(saved, generators)
        except BaseException as error:
            _restore(backup, self.state)
            if isinstance(error, RuntimeError | ValueError | TypeError | LookupError):
                reason = quote_error(error)
                raise ValueError(
                    f"resume: {path} does not fit this run ({reason}), expected another folder."
                ) from error
            raise
        self.state.method.history = saved["history"]
        self.state.best, self.state.seed = saved["best"], saved["seed"]
        self.state.earlier_averages = saved.get("average")
        self._identity |= saved.get("identity", {})
        if "probe" in saved:
            self._unverified = backup, saved["probe"]
        if lost := find_lost_numbers(self._loader, self.state.generators):
            warnings.warn(
                f"resume: {lost}, whose random numbers no checkpoint holds: this run continues, but not as the one "
                f"that was stopped would have.",
                stacklevel=2,
            )
        return int(saved["epochs"])

    def verify(self) -> None:
        """With the instruments attached, refuse a network whose outputs differ from those of the checkpoint's network.

        Raises:
            ValueError: the outputs differ; all state is then as it was before `take_up`.
        """
        if self._unverified is None or self._probe is None:
            return
        (backup, outputs), self._unverified = self._unverified, None
        if not self._probe.matches(outputs):
            _restore(backup, self.state)
            raise ValueError(
                f"resume: {self.path} was written with a network of other outputs for the same inputs and weights, "
                f"expected the same code and constants."
            )

    def _progress(self, *, quick: bool = False) -> dict[str, str]:
        run = self.state
        held = describe_held(run.method, run.scheduler, self._loader, quick=quick)
        return {**describe_groups(run.method.classifier), **describe_scheduler(run.scheduler), **held}

    def _describe_progress(self) -> dict[str, str]:
        """The entries that may have changed since the run began, without the hooks that instruments have added."""
        now = self._progress(quick=True)
        return {name: text for name, text in now.items() if name in self._identity or HOOK not in name}

    def _check(self, path: Path, saved: dict[str, Any], nb_epochs: int) -> Sequence[Tensor]:
        """Refuse a checkpoint of another run; returns the states of the loader's generators."""
        # Older checkpoints lack what came later: they ran with the defaults.
        later = {**asdict(TrainingOptions()), **LATER_PARAMETERS}
        defaults = {name: str(value) for name, value in later.items()}
        written = {"preprocessing": "[]", **defaults, **saved["settings"]}
        for name, now in self.settings.items():
            check_same(path, name, plain_text(written.get(name)), now)
        groups = describe_groups(self.state.method.classifier)
        check_identity(path, saved.get("identity", {}), saved.get("progress", {}), self._identity, fixed=groups)
        epochs, order = int(saved["epochs"]), saved.get("order")
        if epochs > nb_epochs:
            raise ValueError(f"nb_epochs: got {nb_epochs}, but {path} holds {epochs}, expected at least as many.")
        # Older checkpoints hold a single state, or None, instead of a list.
        generators: list[Tensor] = [] if order is None else [order] if isinstance(order, Tensor) else order
        if len(generators) != len(self.state.generators):
            raise ValueError(
                f"resume: {path} was written with {len(generators)} random generators of the loader, but this run has "
                f"{len(self.state.generators)}."
            )
        self._check_shapes(path, saved)
        return generators

    def _check_shapes(self, path: Path, saved: dict[str, Any]) -> None:
        run = self.state
        modules = (run.network, *run.preprocessing)
        for holder in (saved, *([] if saved["best"] is None else [saved["best"]])):
            states = [holder["network"], *holder.get("preprocessing", ())]
            check_same(path, "modules with weights", str(len(states)), str(len(modules)))
            for number, (weights, module) in enumerate(zip(states, modules, strict=True)):
                name = "the network" if number == 0 else f"preprocessing {number}"
                check_tensors(path, name, weights, module.state_dict())
        check_optimizer_state(path, saved["optimizer"], run.optimizer)
        if run.scheduler is not None:
            check_scheduler_state(path, saved["scheduler"], run.scheduler.state_dict())
        trained = [weight for group in run.optimizer.param_groups for weight in group["params"]]
        check_averages(path, saved.get("average"), trained, wanted=run.options.ema_decay is not None)
        check_same(path, "instruments", str(len(saved["instruments"])), str(len(run.method.instruments)))

    def _back_up(self) -> RunBackup:
        run = self.state
        owners = (run.method, *run.method.instruments)
        return RunBackup((run.network, *run.preprocessing), run.optimizer, run.scheduler, run.generators, owners)

    def _load(self, saved: dict[str, Any], generators: Sequence[Tensor]) -> None:
        run = self.state
        run.network.load_state_dict(saved["network"])
        run.load_preprocessing(saved)
        run.optimizer.load_state_dict(saved["optimizer"])
        align_state(run.optimizer)
        if run.scheduler is not None:
            run.scheduler.load_state_dict(_convert_types(saved["scheduler"], run.scheduler.state_dict()))
        for generator, state in zip(run.generators, generators, strict=True):
            generator.set_state(state)
        for instrument, state in zip(run.method.instruments, saved["instruments"], strict=True):
            instrument.load_state_dict(state)
        run.method.load_state_dict(saved["method"])


def _restore(backup: RunBackup, state: RunState) -> None:
    backup.restore()
    align_state(state.optimizer)


def _convert_types(saved: Any, template: Any) -> Any:
    """``saved`` with the types of ``template``: a file keeps no subclasses of dict, such as a scheduler's Counter."""
    if isinstance(template, dict) and isinstance(saved, dict):
        entries = {key: _convert_types(value, template.get(key)) for key, value in saved.items()}
        return type(template)(entries)
    if isinstance(template, list) and isinstance(saved, list) and len(saved) == len(template):
        return [_convert_types(*pair) for pair in zip(saved, template, strict=True)]
    return saved

"""Resuming: a checkpoint is read, compared and checked as a whole before it is loaded; a failure is undone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...checks import is_number
from ...files import load_state
from ...fingerprints import excerpts_at_difference
from .descriptions import HOOK
from .plain_texts import CODE

_ENTRIES: dict[str, Any] = {
    "settings": dict,
    "seed": int,
    "epochs": int,
    "history": list,
    "network": dict,
    "optimizer": dict,
    "scheduler": (dict, type(None)),
    "method": dict,
    "instruments": list,
    "best": (dict, type(None)),
}
_LATER_ENTRIES: dict[str, Any] = {  # which older checkpoints lack
    "preprocessing": list,
    "order": (list, Tensor, type(None)),
    "average": (list, type(None)),
    "identity": dict,
    "progress": dict,
    "probe": dict,
}
# torch's optimizers keep these in their parameter's shape; other entries may have any shape.
_SHAPED_AS_PARAMETER = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg", "sum")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of the training loop, on the CPU.

    Raises:
        ValueError: the file is damaged, or is no checkpoint.
    """
    state = load_state(path)
    if not isinstance(state, dict) or any(
        not isinstance(state.get(name, ...), kind) for name, kind in _ENTRIES.items()
    ):
        raise ValueError(f"checkpoint_dir: {path} is not a checkpoint of this loop, expected another folder.")
    for name, kind in _LATER_ENTRIES.items():
        if name in state and not isinstance(state[name], kind):
            raise _damage_error(path, name)
    for name in ("preprocessing", "instruments", "history"):
        if not all(isinstance(entry, dict) for entry in state.get(name, ())):
            raise _damage_error(path, name)
    best = state["best"]
    if best is not None and not (
        {"epoch", "measure"} <= best.keys()
        and isinstance(best.get("network"), dict)
        and isinstance(best.get("preprocessing", []), list)
    ):
        raise _damage_error(path, "best")
    probe = state.get("probe")
    if probe is not None and not (isinstance(probe.get("outputs"), Tensor) and isinstance(probe.get("device"), str)):
        raise _damage_error(path, "probe")
    return state


def _damage_error(path: Path, name: str) -> ValueError:
    return ValueError(f"checkpoint_dir: {path} has a damaged entry {name!r}, expected another folder.")


def check_same(path: Path, name: str, written: str, now: str, *others: str) -> None:
    """Refuse to resume if ``now`` is neither ``written``, the checkpoint's text, nor one of ``others``.

    Raises:
        ValueError: shows both texts; of long ones, the part around the first difference.
    """
    if name.startswith(CODE) and ":" in written and ":" in now:
        versions = [text.partition(":")[0] for text in (written, now)]
        if versions[0] != versions[1]:  # another Python compiles the same code to other instructions
            return
    if now not in (written, *others):
        then, here = excerpts_at_difference(" ".join(written.split()), " ".join(now.split()), width=160)
        raise ValueError(f"resume: {path} was written with {name} {then or 'none'}, but this run has {here or 'none'}.")


def check_identity(
    path: Path,
    written: Mapping[str, str],
    progress: Mapping[str, str],
    now: Mapping[str, str],
    fixed: Mapping[str, str],
) -> None:
    """Refuse to resume a run whose data, network, method or settings are different.

    Entries that changed between the start of the run and its checkpoint, such as counters, are progress and are not
    compared. Entries in ``fixed``, such as learning rates, may have their value at the start or in the checkpoint.

    Args:
        path: the checkpoint.
        written: the identity of the run when it began.
        progress: the entries that may change, as they were when the checkpoint was written.
        now: the identity of this run.
        fixed: the entries that only training itself changes.
    """
    same_form = written.get("form") == now.get("form")
    for name in (*now, *(written.keys() - now.keys())):
        if name == "form" or (not same_form and (name not in written or name not in now)):
            continue
        then, here = str(written.get(name, "none")), now.get(name, "none")
        # An entry that was added while the run trained counts as changed.
        moved = str(progress.get(name, then if name in written or HOOK in name else "none"))
        if name in fixed:
            check_same(path, name, then, here, moved)
        elif moved == then:
            check_same(path, name, then, here)


def check_tensors(path: Path, name: str, saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse a saved state dict whose names or shapes are not those of ``own``."""
    check_same(path, f"entries of {name}", ", ".join(sorted(saved)), ", ".join(sorted(own)))
    for entry, tensor in own.items():
        check_same(path, f"shape of {name}.{entry}", _shape(saved[entry]), _shape(tensor))


def check_optimizer_state(path: Path, saved: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Refuse the saved state of an optimizer with other groups, or for parameters of other shapes."""
    groups = saved.get("param_groups")
    if not isinstance(groups, list) or not isinstance(saved.get("state"), dict):
        raise _damage_error(path, "optimizer")
    if not all(isinstance(group, dict) and isinstance(group.get("params"), list) for group in groups):
        raise _damage_error(path, "optimizer")
    sizes = [str([len(group["params"]) for group in each]) for each in (groups, optimizer.param_groups)]
    check_same(path, "sizes of the optimizer's groups", *sizes)
    numbers = [number for group in groups for number in group["params"]]
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, weight in zip(numbers, weights, strict=True):
        kept = saved["state"].get(number, {})
        for name in _SHAPED_AS_PARAMETER:
            if isinstance(kept.get(name), Tensor):
                check_same(path, f"shape of {name} of parameter {number}", _shape(kept[name]), _shape(weight))


def check_scheduler_state(path: Path, saved: Mapping[str, Any] | None, own: Mapping[str, Any]) -> None:
    """Refuse the saved state of a scheduler with entries of another type, which would fail later."""
    for name, value in (saved or {}).items():
        if value is not None and own.get(name) is not None:
            check_same(path, f"kind of the scheduler's {name}", _kind(value), _kind(own[name]))


def _kind(value: Any) -> str:
    if is_number(value):
        return "number"
    return next((kind.__name__ for kind in (dict, list, tuple) if isinstance(value, kind)), type(value).__name__)


def check_averages(path: Path, saved: Sequence[Any] | None, weights: Sequence[Tensor], wanted: bool) -> None:
    """Refuse averages of the weights that are missing, or of other shapes."""
    then = "none" if saved is None else ", ".join(map(_shape, saved))
    check_same(path, "shapes of the averaged weights", then, ", ".join(map(_shape, weights)) if wanted else "none")


def _shape(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else "no tensor"


class RunBackup:
    """The state of network, optimizer, scheduler, method and instruments before a checkpoint is loaded."""

    def __init__(
        self,
        modules: Sequence[nn.Module],
        optimizer: Optimizer,
        scheduler: Any,
        generators: Sequence[torch.Generator],
        others: Sequence[Any],
    ) -> None:
        self._restore: list[Callable[[], object]] = []
        for owner in (*modules, optimizer, *([] if scheduler is None else [scheduler]), *others):
            self._restore.append(partial(owner.load_state_dict, copy.deepcopy(owner.state_dict())))
        self._restore += [partial(generator.set_state, generator.get_state()) for generator in generators]

    def restore(self) -> None:
        """Restore all of it."""
        for restore in self._restore:
            restore()

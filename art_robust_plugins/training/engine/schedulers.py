"""Schedulers that a user gives to ``fit``: their optimizer, their length, and the metric that they monitor."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau, SequentialLR

from ...checks import is_integer

_DEPTH = 8


def check_scheduler(
    scheduler: Any, optimizer: Optimizer, *, per_step: bool, calls: int | None, validated: bool, resumed: bool = False
) -> None:
    """Refuse a scheduler that would fail, or do nothing, after the first steps.

    Args:
        scheduler: the argument of ``fit``; None for none.
        optimizer: the classifier's optimizer.
        per_step: whether the scheduler is called after each step rather than after each epoch.
        calls: the number of calls in the training; None if it is not known.
        validated: whether there are validation data.
        resumed: whether its state will be that of a checkpoint.

    Raises:
        ValueError: no object with a method ``step`` that takes no argument; a scheduler over another optimizer; one
            that ends before the training does; `ReduceLROnPlateau` per step, within another scheduler, or with mode
            ``"max"`` and nothing to be measured.
    """
    if scheduler is None:
        return
    kind = type(scheduler).__name__
    _check_kind(scheduler)
    plateau = isinstance(scheduler, ReduceLROnPlateau)
    if plateau and per_step:
        raise ValueError("scheduler: got ReduceLROnPlateau per step, expected scheduler_interval='epoch' for it.")
    if plateau and scheduler.mode == "max" and not validated:
        raise ValueError(
            "scheduler: got ReduceLROnPlateau with mode 'max', which monitors validation accuracy, without "
            "validation_data, expected these, or mode 'min' for the training loss."
        )
    if not plateau:
        _check_arguments(scheduler)
    for each in _walk_schedulers(scheduler):
        name = type(each).__name__
        if each is not scheduler and isinstance(each, ReduceLROnPlateau):
            raise ValueError(f"scheduler: got {name} within {kind}, which gives it no metric, expected it alone.")
        for own in (getattr(each, "optimizer", None), getattr(each, "_optimizer", None)):
            if isinstance(own, Optimizer) and own is not optimizer:
                raise ValueError(
                    f"scheduler: got {name} over another {type(own).__name__}, expected one over the classifier's "
                    f"optimizer, whose learning rate it would not change."
                )
    if not isinstance(scheduler, LRScheduler):
        _check_wrapper(scheduler, optimizer)
    if calls is not None:
        _check_length(scheduler, calls, resumed)


def step_scheduler(scheduler: Any, record: Mapping[str, float]) -> None:
    """Step after the epoch of ``record``; `read_metric` gives the metric that a plateau monitors."""
    if isinstance(scheduler, ReduceLROnPlateau):
        scheduler.step(read_metric(scheduler, record))
    else:
        scheduler.step()


def read_metric(scheduler: ReduceLROnPlateau, record: Mapping[str, float]) -> float:
    """The metric of an epoch: with mode ``"max"`` robust validation accuracy, else clean one; or the training loss."""
    if scheduler.mode == "max":
        return record.get("validation_robust_accuracy", record["validation_accuracy"])
    return record["loss"]


def _check_kind(scheduler: Any) -> None:
    kind = type(scheduler).__name__
    if isinstance(scheduler, type):
        raise ValueError(
            f"scheduler: got the class {scheduler.__name__}, expected an object of it, over the classifier's optimizer."
        )
    if isinstance(scheduler, Optimizer):
        raise ValueError(f"scheduler: got the optimizer {kind}, expected a scheduler over it, as StepLR(optimizer, 1).")
    if not callable(getattr(scheduler, "step", None)):
        raise ValueError(f"scheduler: got {kind}, expected an object with a method step().")


def _check_arguments(scheduler: Any) -> None:
    try:
        parameters = inspect.signature(scheduler.step).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature
        return
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    needed = [each.name for each in parameters if each.default is each.empty and each.kind not in variable]
    if needed:
        raise ValueError(
            f"scheduler: step() of {type(scheduler).__name__} needs {', '.join(needed)}, expected one without "
            f"arguments, or a ReduceLROnPlateau."
        )


def _check_wrapper(scheduler: Any, optimizer: Optimizer) -> None:
    """Refuse an object around schedulers that gives a plateau no metric, or moves another optimizer's rates alone."""
    kind, held = type(scheduler).__name__, list(_walk_attributes(scheduler, _DEPTH))
    optimizers = [each for each in held if isinstance(each, Optimizer)]
    if optimizers and not any(each is optimizer for each in optimizers):
        raise ValueError(
            f"scheduler: got {kind} around another {type(optimizers[0]).__name__}, expected one over the classifier's "
            f"optimizer, whose learning rate it would not change."
        )
    plateau = next((each for each in held if isinstance(each, ReduceLROnPlateau)), None)
    if plateau is not None and _hands_on_arguments(scheduler):
        raise ValueError(
            f"scheduler: got ReduceLROnPlateau within {kind}, whose step() hands on arguments and is given none, "
            f"expected the ReduceLROnPlateau alone."
        )


def _hands_on_arguments(scheduler: Any) -> bool:
    try:
        parameters = inspect.signature(scheduler.step).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature
        return False
    return any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)


def _walk_attributes(owner: Any, depth: int) -> Iterator[Any]:
    """Yields the schedulers and optimizers in an object's attributes, and in those of the objects in them."""
    values = owner.values() if isinstance(owner, Mapping) else owner if isinstance(owner, list | tuple) else None
    for value in getattr(owner, "__dict__", {}).values() if values is None else values:
        if isinstance(value, Optimizer):
            yield value
        elif isinstance(value, LRScheduler):
            yield from (value, value.optimizer)
        elif depth and (isinstance(value, Mapping | list | tuple) or callable(getattr(value, "step", None))):
            yield from _walk_attributes(value, depth - 1)


def _walk_schedulers(scheduler: Any) -> Iterator[Any]:
    """Yields a scheduler and the schedulers that it drives."""
    yield scheduler
    for inner in getattr(scheduler, "_schedulers", ()):
        yield from _walk_schedulers(inner)


def _check_length(scheduler: Any, calls: int, resumed: bool) -> None:
    """Refuse one of a given number of steps, such as ``OneCycleLR``, that training would overstep."""
    inner = list(getattr(scheduler, "_schedulers", ()))
    if isinstance(scheduler, SequentialLR):
        last = calls + (0 if resumed else scheduler.last_epoch)
        # At a milestone the next one begins, which is no step of it.
        ends = [min(milestone - 1, last) for milestone in scheduler._milestones]
        for each, start, end in zip(inner, [0, *scheduler._milestones], [*ends, last], strict=True):
            _check_length(each, end - start, resumed=True)
        return
    for each in inner:
        _check_length(each, calls, resumed)
    total = getattr(scheduler, "total_steps", None)
    if total is None or not is_integer(total):
        return
    done = 0 if resumed else getattr(scheduler, "last_epoch", 0)
    if calls > total - done:
        raise ValueError(
            f"scheduler: got {type(scheduler).__name__} with {total - done} of {total} steps to go, expected at least "
            f"the {calls} of this training."
        )

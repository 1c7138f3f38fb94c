"""Checks of a saved classifier's record, on saving and on loading: types and ranges of its entries."""

from __future__ import annotations

import inspect
import math
from typing import Any

import numpy as np
import torch
from torch import nn

from ..bridge.saved_formats import DEFENCES, ESTIMATORS, PARTS
from ..files import Entry

_ENTRIES = (
    *("format", "estimator", "input_shape", "nb_classes", "channels_first", "clip_values", "preprocessing"),
    *("preprocessing_defences", "use_amp", "opt_level", "loss_scale", "loss", "optimizer", "model", "extra"),
    *("versions", "weights_sha256"),
)
_FEATURES = 2**28
"""The largest number of values of one input; a volume of 512 pixels a side has half as many."""
_MANY = 1_000_000
_SCHEDULED = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum")
"""Entries that torch's schedulers add to the groups of an optimizer."""
_REDUCTIONS = ("none", "mean", "sum")


def check_record(record: dict[str, Any], place: str) -> None:
    """Refuse a record with entries that no classifier has; the sentence begins with ``place``.

    Raises:
        ValueError: the sentence names the entry.
    """
    entry = Entry(record, f"{place}:")
    entry.table(_ENTRIES)
    if (estimator := entry.find("estimator")) is not None:
        estimator.text(ESTIMATORS)
    shape = [size.whole(1) for size in entry["input_shape"].list_of(8)]
    if not shape or math.prod(shape) > _FEATURES:
        entry["input_shape"].refuse(f"positive whole numbers whose product is at most {_FEATURES}")
    classes = entry["nb_classes"].whole(2, 2**31)
    for name in ("channels_first", "use_amp"):
        entry[name].flag()
    entry["opt_level"].text(("O0", "O1", "O2", "O3"))
    if (scale := entry["loss_scale"]).value not in (None, "dynamic"):
        scale.number(0)
    if (clip_values := entry["clip_values"]).value is not None:
        _check_range(clip_values, tuple(shape))
    if (preprocessing := entry["preprocessing"]).value is not None:
        _check_standardisation(preprocessing, tuple(shape))
    _check_loss(entry["loss"], classes)
    if entry["optimizer"].value is not None:
        _check_optimizer(entry["optimizer"])
    _check_modules(entry)
    entry["extra"].table()
    for _, version in entry["versions"].items():
        version.text()


def _check_modules(entry: Entry) -> None:
    for defence in entry["preprocessing_defences"].list_of(100):
        if not isinstance(defence.value, str):
            defence.table(("class", "settings"))
            kind = defence["class"].text(DEFENCES)
            DEFENCES[kind].check_settings(defence["settings"])
    model = entry["model"]
    model.table(("class", "recipe", *PARTS))
    model["class"].text()
    if (recipe := model.find("recipe")) is not None:
        _check_recipe(recipe)
    for key, part in PARTS.items():
        if (described := model.find(key)) is not None:
            part.check(described)


def _numbers(entry: Entry, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """A number, or nested lists of them that broadcast against ``shape``, in float32 as ART takes it."""
    try:
        values = np.asarray(entry.value)
    except ValueError:
        entry.refuse("a number, or lists of equal length of numbers")
    if values.dtype.kind not in "iuf":
        entry.refuse("a number, or lists of equal length of numbers")
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    # ART applies values with a single axis along the channels, wherever that axis is.
    single = values.ndim == 1 and len(values) in shape
    try:
        fits = single or np.broadcast_shapes(values.shape, (1, *shape)) == (1, *shape)
    except ValueError:
        fits = False
    if not fits or not np.isfinite(values).all():
        entry.refuse(f"finite numbers that broadcast against {shape}")
    return values


def _check_range(entry: Entry, shape: tuple[int, ...]) -> None:
    low, high = (_numbers(each, shape) for each in entry.list_of(2, length=2))
    if low.shape != high.shape or not (low < high).all():
        entry.refuse("a low and a high end, the former below the latter")


def _check_standardisation(entry: Entry, shape: tuple[int, ...]) -> None:
    mean, std = entry.list_of(2, length=2)
    _numbers(mean, shape)
    if (_numbers(std, shape) < np.finfo(np.float32).tiny).any():  # division by a smaller one overflows
        std.refuse("a positive standard deviation")


def _check_loss(entry: Entry, classes: int) -> None:
    entry.table(("class", "arguments"))
    name = entry["class"].text()
    arguments = entry["arguments"]
    if arguments.value is None:
        return
    kind: Any = getattr(nn, name, None)
    if not is_loss(kind):
        raise ValueError(
            f"{entry.place}.class: got the class {name!r}, expected one of torch.nn in torch {torch.__version__} that "
            f"is a loss."
        )
    arguments.table(list(inspect.signature(kind).parameters))
    for key, value in arguments.items():
        if key == "reduction":
            value.text(_REDUCTIONS)
        elif key == "label_smoothing":
            value.share()
        elif key in ("full", "log_input", "zero_infinity", "log_target", "swap", "size_average", "reduce"):
            value.flag()
        elif key in ("ignore_index", "blank", "p") and not isinstance(value.value, float):
            value.whole()
        elif isinstance(value.value, dict):
            value.table(("tensor",))
            weights = _numbers(value["tensor"], (classes,))
            if (weights < 0).any():
                value["tensor"].refuse("weights that are not negative")
        else:
            value.number()


def is_loss(kind: Any) -> bool:
    """Whether ``kind`` is one of torch's own loss classes, so that making it runs no other code."""
    return isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == nn.modules.loss.__name__


def _check_optimizer(entry: Entry) -> None:
    entry.table(("class", "groups"))
    name = entry["class"].text()
    kind: Any = getattr(torch.optim, name, None)
    base: Any = torch.optim.Optimizer
    if not isinstance(kind, type) or not issubclass(kind, base) or kind is base:
        raise ValueError(
            f"{entry.place}.class: got the class {name!r}, expected one of torch.optim in torch {torch.__version__}."
        )
    make: Any = kind
    groups = entry["groups"].list_of(_MANY)
    if not groups:
        entry["groups"].refuse("at least one")
    known = make([torch.zeros(1, 1, device="cpu", requires_grad=True)]).param_groups[0]
    accepted = set(inspect.signature(kind).parameters)
    for group in groups:
        group.table(("parameters", "settings"))
        group["parameters"].texts(_MANY)
        settings = group["settings"]
        settings.table([*known, *_SCHEDULED, "name"])
        for key, value in settings.items():
            if key == "name":
                value.text()
            else:
                _check_like(value, known.get(key, 0.0))
        given = {key: _to_tuple(value) for key, value in settings.table().items() if key in accepted}
        # torch checks these against the device of the parameters when it makes the optimizer.
        given = {key: value for key, value in given.items() if key not in ("fused", "foreach", "capturable")}
        try:
            make([torch.zeros(1, 1, device="cpu", requires_grad=True)], **given)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(f"{settings.place}: got {given}, which torch refuses: {error}.") from error


def _check_like(entry: Entry, default: Any) -> None:
    """Refuse an entry that is not of the type of the optimizer's own default."""
    value = entry.value
    if default is None:
        if not (value is None or isinstance(value, bool | str)):
            entry.number()
    elif isinstance(default, bool):
        if value is not None:
            entry.flag()
    elif isinstance(default, tuple | list):
        for each in entry.list_of(len(default), length=len(default)):
            if each.value is not None:
                each.number()
    elif isinstance(default, str):
        entry.text()
    elif value is not None:
        entry.number()


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _check_recipe(entry: Entry) -> None:
    entry["name"].text()
    for size in entry["input_shape"].list_of(3, length=3):
        size.whole(1, 2**31)
    entry["nb_classes"].whole(2, 2**31)
    for key, value in entry.items():
        if key not in ("name", "input_shape", "nb_classes") and not isinstance(value.value, bool | str):
            value.number(-(2**31), 2**31)

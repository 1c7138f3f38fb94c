"""Checks of a saved report: kinds and ranges of its entries, and totals that agree with its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from ..files import Entry
from ..threat import Norm, ThreatModel
from .flags import SEVERITIES
from .libraries import SUITES, Backend
from .results import Constraint, PointDetails

Arrays = Mapping[str, NDArray[Any]]

_MOST = 1000
"""The largest number of attacks, flags, or radii of a curve."""
_EXAMPLES = 64
_LARGEST = float(np.finfo(np.float32).max)
"""The largest radius, value of an image, and number of seconds: figures cannot have much longer axes."""
_COUNT = 2**63 - 1
"""The largest count."""
_ENTRIES = ("format", "clean_accuracy", "robust_accuracy", "attacks", "flags", "settings", "curve", "arrays_sha256")
_ATTACK = (
    "name",
    "summary",
    "robust_accuracy",
    "seconds",
    "forward_calls",
    "backward_calls",
    "bounded",
    "cumulative",
    "parameters",
    "constraint",
)


def check_report(record: dict[str, Any], arrays: Arrays, place: str) -> None:
    """Refuse a report with an entry that no evaluation gives, or a total that is not that of the arrays.

    Raises:
        ValueError: the sentence names the entry.
    """
    report = Entry(record, f"{place}:")
    report.table(_ENTRIES)
    settings = report["settings"]
    points = settings["points"].whole(1)
    attacks = report["attacks"].list_of(_MOST)
    if not attacks:
        report["attacks"].refuse("at least one")
    _check_settings(settings, attacks)
    _check_arrays(arrays, settings, len(attacks), place)
    report["clean_accuracy"].equal(float(arrays["correct"].mean()), "the share of points that are classified correctly")
    report["robust_accuracy"].equal(float(arrays["robust"].mean()), "the share of points that no attack broke")
    for attack, robust in zip(attacks, arrays["attacks"], strict=True):
        _check_attack(attack)
        attack["robust_accuracy"].equal(float(robust.mean()), "the share of points that it left")
    _check_verdicts(arrays, attacks, place)
    for flag in report["flags"].list_of(_MOST):
        flag.table(("name", "severity", "evidence", "advice"))
        flag["severity"].text(SEVERITIES)
        for name in ("name", "evidence", "advice"):
            flag[name].text()
    curve = report["curve"].list_of(_MOST)
    if not curve:
        report["curve"].refuse("at least one pair of eps and accuracy")
    for pair in curve:
        eps, accuracy = pair.list_of(2, length=2)
        eps.number(0, _LARGEST)
        accuracy.share()
    _check_examples(arrays, settings, points, place)
    _check_details(arrays, settings, len(attacks), place)


def _check_attack(attack: Entry) -> None:
    attack.table(_ATTACK)
    for name in ("name", "summary"):
        attack[name].text()
    attack["seconds"].number(0, _LARGEST)
    for name in ("forward_calls", "backward_calls"):
        attack[name].whole(0, _COUNT)
    for name in ("bounded", "cumulative"):
        attack[name].flag()
    attack["parameters"].table()
    constraint = attack.find("constraint")
    if constraint is not None and attack["bounded"].value != (constraint.text(get_args(Constraint)) == "ball"):
        attack["bounded"].refuse(f"what the constraint {constraint.value!r} says")


def _check_input_range(settings: Entry) -> None:
    clip_values = settings["clip_values"].list_of(2, length=2)
    low, high = (np.asarray(_numbers(each)) for each in clip_values)
    if low.shape != high.shape or not (low < high).all():
        settings["clip_values"].refuse("a low and a high end, the former below the latter")
    if (by_feature := settings.find("clip_values_by_feature")) is not None:
        by_feature.text()
    if (straight := settings.find("straight_through")) is not None:
        straight.texts()


def _check_settings(settings: Entry, attacks: list[Entry]) -> None:
    _check_input_range(settings)
    threat = settings["threat"]
    model = ThreatModel(threat["norm"].text(get_args(Norm)), threat["eps"].number(5e-324, _LARGEST))
    threat["text"].text((str(model), f"{model.norm} {model.eps:g}"))
    names = [attack["name"].text() for attack in attacks]
    if settings["attacks"].texts() != names or len(set(names)) < len(names):
        settings["attacks"].refuse(f"the names of the attacks, {', '.join(map(repr, names))}, each once")
    if settings["autoattack"].flag() and not {attack.name for attack in SUITES["standard"]} <= set(names):
        settings["autoattack"].refuse("false, as not all of its stages are among the attacks")
    for name in ("fast", "channels_first"):
        if (flag := settings.find(name)) is not None:
            flag.flag()
    settings["backend"].text(get_args(Backend))
    settings["classes"].whole(2, _COUNT)
    settings["seed"].whole(0, 2**32 - 1)
    for name in ("batch_size", "processes", "verdict_passes"):
        settings[name].whole(1, _COUNT)
    if settings["physical_batch_size"].value is not None:
        settings["physical_batch_size"].whole(1, _COUNT)
    settings["tolerance"].number(0, _LARGEST)
    for name in ("device", "dtype", "network", "network_sha256", "date"):
        settings[name].text()
    for name in ("preprocessing", "could_not_run", "not_run"):
        settings[name].texts()
    for name in ("attack_library", "versions"):
        for _, version in settings[name].items():
            version.text()
    _check_costs(settings)


def _check_costs(settings: Entry) -> None:
    diagnostics = settings["diagnostics"]
    diagnostics["seconds"].number(0, _LARGEST)
    for name in ("points", "forward_calls", "backward_calls"):
        diagnostics[name].whole(0, _COUNT)
    if (certificate := settings.find("certificate")) is not None:
        certificate["method"].text()
        certificate["largest constant of a difference of logits (L2)"].number(0)
        certificate["seconds"].number(0, _LARGEST)
        for name in ("points not attacked", "certified points attacked"):
            if (count := certificate.find(name)) is not None:
                count.whole(0, settings["points"].value)
    if (rounded := settings.find("eight_bit")) is not None:
        rounded.table(("accuracy", "accuracy_within_eps", "broken", "misclassified", "within_eps", "farthest"))
        for name in ("accuracy", "accuracy_within_eps"):
            rounded[name].share()
        for name in ("broken", "misclassified", "within_eps"):
            rounded[name].whole(0, settings["points"].value)
        rounded["farthest"].number(0, _LARGEST)
    if (reused := settings.find("reused")) is not None:
        reused["eps"].number(0, _LARGEST)
        reused["points"].whole(0, settings["points"].value)


def _numbers(entry: Entry) -> Any:
    """A number, or nested lists of numbers of equal length."""
    if isinstance(entry.value, list):
        inside = [_numbers(each) for each in entry.list_of(2**28)]
        if not inside or len({np.shape(each) for each in inside}) > 1:
            entry.refuse("lists of equal length of numbers")
        return inside
    return entry.number(-_LARGEST, _LARGEST)


def _check_arrays(arrays: Arrays, settings: Entry, attacks: int, place: str) -> None:
    points = settings["points"].value
    shape = [size.whole(1) for size in settings["input_shape"].list_of(8)]
    wanted: dict[str, tuple[str, list[int]]] = {
        "robust": ("bool", [points]),
        "correct": ("bool", [points]),
        "labels": ("int64", [points]),
        "adversarial": ("float32", [points, *shape]),
        "attacks": ("bool", [attacks, points]),
        **({"radii": ("float64", [points])} if "radii" in arrays else {}),
    }
    for name, (kind, sizes) in wanted.items():
        if name not in arrays:
            raise ValueError(f"{place}: {name}: got no such array, expected {kind} {sizes}.")
        found = arrays[name]
        if found.dtype != kind or list(found.shape) != sizes:
            raise ValueError(f"{place}: {name}: got {found.dtype} {list(found.shape)}, expected {kind} {sizes}.")
    _check_range(arrays["labels"], 0, settings["classes"].value - 1, f"{place}: labels")
    if not np.isfinite(arrays["adversarial"]).all():
        raise ValueError(f"{place}: adversarial: got NaN or infinity, expected images.")
    if "radii" in arrays:
        if settings.find("certificate") is None:
            settings["certificate"].refuse("a certificate, of which there are radii")
        if not (arrays["radii"] >= -1).all():
            raise ValueError(f"{place}: radii: got NaN or numbers below -1, expected radii, -1 where there is none.")


def _check_verdicts(arrays: Arrays, attacks: list[Entry], place: str) -> None:
    """A point that is robust was correct, and left by every attack that counts images within eps."""
    correct, robust = arrays["correct"], arrays["robust"]
    counted = [
        verdicts
        for attack, verdicts in zip(attacks, arrays["attacks"], strict=True)
        if attack.value.get("constraint", "ball") != "none"
    ]
    if (arrays["attacks"] & ~correct).any():
        raise ValueError(f"{place}: attacks: got points that are left but never were correct, expected none.")
    left = correct.copy()
    for verdicts in counted:
        left &= verdicts
    # An image within eps that an attack with its own measure found breaks a point too, and is in this array only.
    if (robust & ~left).any() or (len(counted) == len(attacks) and (left & ~robust).any()):
        raise ValueError(f"{place}: robust: got other points than the attacks left, expected these.")


def _check_examples(arrays: Arrays, settings: Entry, points: int, place: str) -> None:
    found = {
        name: arrays.get(f"examples.{name}") for name in ("indices", "labels", "predictions", "clean", "adversarial")
    }
    for name, values in found.items():
        if values is None or values.ndim < 1 or len(values) > _EXAMPLES:
            raise ValueError(f"{place}: examples.{name}: got no array of at most {_EXAMPLES}, expected one.")
    indices, labels, predictions, clean, adversarial = (values for values in found.values() if values is not None)
    for name, values in (("indices", indices), ("labels", labels), ("predictions", predictions)):
        if values.dtype != np.int64 or values.shape != (len(indices),):
            raise ValueError(
                f"{place}: examples.{name}: got {values.dtype} {values.shape}, expected as many as indices."
            )
    _check_range(indices, 0, points - 1, f"{place}: examples.indices")
    _check_range(predictions, -1, settings["classes"].value - 1, f"{place}: examples.predictions")
    if (arrays["labels"][indices] != labels).any():
        raise ValueError(f"{place}: examples.labels: got other labels than those of the points, expected the same.")
    size = int(np.prod(arrays["adversarial"].shape[1:]))
    for name, values in (("clean", clean), ("adversarial", adversarial)):
        fits = values.shape == clean.shape and len(values) == len(indices) and values.size == size * len(indices)
        if values.dtype != np.float32 or not fits or not np.isfinite(values).all():
            raise ValueError(
                f"{place}: examples.{name}: got {values.dtype} {values.shape}, expected finite float32 images of as "
                f"many points as there are indices."
            )


def _check_details(arrays: Arrays, settings: Entry, attacks: int, place: str) -> None:
    """Reports of earlier versions have none; of others, all or none are there."""
    names = [field.name for field in fields(PointDetails)]
    if not any(f"points.{name}" in arrays for name in names):
        return
    settings["outputs"].text(("logits", "probabilities"))
    settings["points_sha256"].text()
    broken, shape = arrays["correct"] & ~arrays["robust"], list(arrays["adversarial"].shape)
    outputs = ("float32", [shape[0], settings["classes"].value])
    wanted = {
        "clean": ("float32", [int(broken.sum()), *shape[1:]]),
        "outputs": outputs,
        "attacked_outputs": outputs,
        "breakers": ("int64", shape[:1]),
    }
    for name, (kind, sizes) in wanted.items():
        found = arrays.get(f"points.{name}")
        if found is None or found.dtype != kind or list(found.shape) != sizes:
            got = "no such array" if found is None else f"{found.dtype} {list(found.shape)}"
            raise ValueError(f"{place}: points.{name}: got {got}, expected {kind} {sizes}.")
    if not np.isfinite(arrays["points.clean"]).all():
        raise ValueError(f"{place}: points.clean: got NaN or infinity, expected images.")
    breakers = arrays["points.breakers"]
    _check_range(breakers, -1, attacks - 1, f"{place}: points.breakers")
    if ((breakers >= 0) != broken).any():
        raise ValueError(f"{place}: points.breakers: got other points than were broken, expected these.")


def _check_range(values: NDArray[Any], low: int, high: int, place: str) -> None:
    if len(values) and not (low <= values.min() and values.max() <= high):
        raise ValueError(f"{place}: got {values.min()} to {values.max()}, expected {low} to {high}.")

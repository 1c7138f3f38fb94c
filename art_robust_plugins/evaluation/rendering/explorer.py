"""The points of reports as data of a page, which ``templates/explorer.js`` filters and shows one by one.

Numbers stand in the page as base64 of small types: 10,000 points are a few hundred kB.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...escapes import printable
from ...threat import ThreatModel
from ..results import EvaluationResults
from .labels import is_swept
from .pixels import encode_png, has_channels_first, holds_images, round_to_bytes, scale_to_unit

SHOWN = 200
"""The most points whose images, or largest changes, are in a page."""
SHOWN_BYTES = 1_500_000
"""The most bytes of these images, as they stand in the page."""
CLASSES = 5
"""The number of classes whose probabilities the page has for each point."""
PROBABILITIES = 20_000
"""A page has probabilities if points times runs are at most this."""
CHANGES = 10
"""The number of a point's largest changes in the page, for data that are no images."""
LEVELS = 10_000
"""A probability is in the page as a whole number of these."""
UNKNOWN = -2
"""A class or an attack that the report does not tell; -1 is none."""
AT_ONCE = 64
"""Images whose distance is computed at once: in float64, with their differences, they are several times as large."""
MISCLASSIFIED, BROKEN, LEFT = 0, 1, 2
POINT_FLAGS = {
    "certified-yet-broken": "Its certified radius is at least eps, but an image within eps broke it.",
    "no-decision": "The network's outputs are NaN, or the same for all classes.",
    "smaller-eps": "It was broken within a smaller eps of the sweep, and not attacked again.",
}

Data = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """The page's content for single points: their numbers, and the entries by point and run."""

    points: list[int]
    entries: list[list[Data | None]]
    common: list[str | None]


def explorer_data(
    reports: Mapping[str, EvaluationResults], *, shown: int = SHOWN, shown_bytes: int = SHOWN_BYTES
) -> Data:
    """The points of one report, or of several, as JSON data.

    Args:
        reports: by name; all of the same points (`have_same_points`).
        shown: the most points whose images, or largest changes, are included; broken ones come first.
        shown_bytes: the most bytes of these.
    """
    first = next(iter(reports.values()))
    probabilities = len(first.labels) * len(reports) <= PROBABILITIES
    details = _show_points(list(reports.values()), shown, shown_bytes)
    images = holds_images(first)
    return {
        "count": len(first.labels),
        "labels": pack(first.labels),
        "runs": [_describe_run(name, report, probabilities) for name, report in reports.items()],
        "flags": POINT_FLAGS,
        "levels": LEVELS,
        "shape": list(first.settings["input_shape"]),
        "images": images,
        "shown": {"points": details.points, "entries": details.entries, "clean": details.common},
        "note": " ".join(_write_notes(first, len(details.points), probabilities, shown, shown_bytes)),
    }


def pack(values: NDArray[Any]) -> Data:
    """Numbers as base64 of the smallest little-endian type that holds them; others than whole ones as float32."""
    if values.dtype.kind == "f":
        kind = "f4"
    else:
        low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
        kinds = ("i1", "i2", "i4") if low < 0 else ("u1", "u2", "u4")
        kind = next(kind for kind in kinds if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
    return {"type": kind, "data": base64.b64encode(values.astype(f"<{kind}").tobytes()).decode()}


def distances(report: EvaluationResults) -> NDArray[np.float64] | None:
    """The distance of each point to its attacked image in the threat's norm, 0 where none broke it, [N]."""
    if report.details is None:
        return None
    found, broken = np.zeros(len(report.labels)), np.flatnonzero(report.broken)
    threat = ThreatModel(report.settings["threat"]["norm"], report.settings["threat"]["eps"])
    for start in range(0, len(broken), AT_ONCE):
        some, own = broken[start : start + AT_ONCE], slice(start, start + AT_ONCE)
        attacked, clean = (
            np.asarray(each, np.float64) for each in (report.adversarial[some], report.details.clean[own])
        )
        found[some] = threat.distance(torch.from_numpy(attacked), torch.from_numpy(clean)).numpy()
    return found


def breakers(report: EvaluationResults) -> NDArray[np.int64]:
    """The attack that broke each point as its place in the report, -1 for none, [N]; `UNKNOWN` where nothing tells."""
    if report.details is not None:
        return report.details.breakers
    found = np.full(len(report.labels), -1)
    found[report.broken] = UNKNOWN
    if is_swept(report):
        return found
    # An attack with its own measure may have fooled a point by an image outside of the ball.
    within = [index for index, result in enumerate(report.attacks) if result.constraint != "none"]
    for index in reversed(within):
        found[report.broken & ~report.attacks[index].robust] = index
    return found


def _describe_run(name: str, report: EvaluationResults, whole: bool) -> Data:
    """One report's columns; without the larger ones unless ``whole``.

    A point's mark has its verdict in the two lowest bits, then whether it is certified, then each of `POINT_FLAGS`.
    """
    eps = report.settings["threat"]["eps"]
    proven = None if report.radii is None else report.radii >= eps
    clean, attacked = _predict(report)
    far = distances(report) if whole or is_swept(report) else None
    flags = [
        report.broken & (False if proven is None else proven),
        (clean == -1) | (attacked == -1),
        report.broken & (False if far is None or not is_swept(report) else far <= report.settings["reused"]["eps"]),
    ]
    verdicts = np.where(report.robust, LEFT, np.where(report.correct, BROKEN, MISCLASSIFIED))
    bits = [np.zeros(len(verdicts), bool) if proven is None else proven, *flags]
    marks = verdicts + np.sum([held.astype(np.int64) << bit for bit, held in enumerate(bits, 2)], axis=0)
    return {
        "name": printable(name),
        "threat": printable(str(report.settings["threat"]["text"])),
        "norm": report.settings["threat"]["norm"],
        "eps": eps,
        "attacks": [printable(result.name) for result in report.attacks],
        "marks": pack(marks),
        "certifies": proven is not None,
        "clean": pack(clean),
        "attacked": pack(attacked),
        "breakers": pack(breakers(report)),
        "distances": pack(far) if whole and far is not None else None,
        "radii": pack(report.radii) if whole and report.radii is not None else None,
        "probabilities": _pack_probabilities(report) if whole and report.details is not None else None,
    }


def _predict(report: EvaluationResults) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The classes of the clean and of the attacked images, [N] each, as far as the report tells them."""
    if report.details is not None:
        return classify(report.details.outputs), classify(report.details.attacked_outputs)
    clean = np.where(report.correct, report.labels, UNKNOWN)
    attacked = np.where(report.robust, report.labels, UNKNOWN)
    attacked[report.examples.indices] = report.examples.predictions
    return clean, attacked


def classify(outputs: NDArray[np.float32]) -> NDArray[np.int64]:
    """The class of each row of outputs [N, classes], or -1 where one is NaN or all are the same."""
    none = np.isnan(outputs).any(axis=1) | ((outputs == outputs[:, :1]).all(axis=1) & (outputs.shape[1] > 1))
    return np.where(none, -1, np.argmax(outputs, axis=1))


def to_probabilities(outputs: NDArray[np.float32], kind: str) -> NDArray[np.float64]:
    """Outputs [N, classes] of this kind as probabilities; NaN where the outputs are not finite."""
    values = outputs.astype(np.float64)
    if kind == "probabilities":
        return values
    with np.errstate(invalid="ignore"):
        raised = np.exp(values - values.max(axis=1, keepdims=True))
        return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _pack_probabilities(report: EvaluationResults) -> Data:
    """Pack, for each point, the probabilities of its label and of the classes that are likeliest before or after."""
    assert report.details is not None
    kind = report.settings["outputs"]
    before = to_probabilities(report.details.outputs, kind)
    after = to_probabilities(report.details.attacked_outputs, kind)
    rank = np.nan_to_num(np.maximum(before, after), nan=0.0)
    rank[np.arange(len(rank)), report.labels] = np.inf
    count = min(CLASSES, rank.shape[1])
    classes = np.argsort(-rank, axis=1, kind="stable")[:, :count]
    shown = {"classes": pack(classes), "count": count}
    for name, values in (("before", before), ("after", after)):
        picked = np.take_along_axis(values, classes, axis=1)
        # -1 is a probability that the outputs do not give.
        levels = np.where(np.isfinite(picked), np.clip(np.nan_to_num(picked), 0, 1) * LEVELS, -1)
        shown[name] = pack(np.rint(levels).astype(np.int64))
    return shown


def _show_points(reports: list[EvaluationResults], shown: int, shown_bytes: int) -> Shown:
    """Points in the order of interest, as many as the limits let in."""
    points: list[int] = []
    entries: list[list[Data | None]] = []
    common: list[str | None] = []
    size = 0
    describe = _picture if holds_images(reports[0]) else _list_changes
    for point in _order_points(reports)[:shown]:
        clean = next((values for report in reports if (values := find_clean(report, point)) is not None), None)
        entry = [describe(report, point) for report in reports]
        picture = _encode(reports[0], clean) if clean is not None and describe is _picture else None
        size += len(picture or "") + sum(len(str(each)) for each in entry)
        if size > shown_bytes:
            break
        points.append(point)
        entries.append(entry)
        common.append(picture)
    return Shown(points, entries, common)


def _order_points(reports: list[EvaluationResults]) -> list[int]:
    """Order the points: first those that some network lost, then those that some misclassified, then the others."""
    broken = np.any([report.broken for report in reports], axis=0)
    wrong = np.any([~report.correct for report in reports], axis=0)
    return [int(point) for point in np.argsort(np.where(broken, 0, np.where(wrong, 1, 2)), kind="stable")]


def find_clean(report: EvaluationResults, point: int) -> NDArray[Any] | None:
    """A point before any attack, in the estimator's range; None where a report of an earlier version lacks it."""
    if not report.broken[point]:
        return np.asarray(report.adversarial[point])
    if report.details is None:
        return None
    return np.asarray(report.details.clean[int(report.broken[:point].sum())])


def _picture(report: EvaluationResults, point: int) -> Data | None:
    """The attacked image and the change, amplified; None for a point that was not broken."""
    if not report.broken[point]:
        return None
    attacked, clean = report.adversarial[point], find_clean(report, point)
    found = {"attacked": _encode(report, attacked)}
    if clean is None:
        return found
    change = scale_to_unit(report, attacked) - scale_to_unit(report, clean)
    amplified = 0.5 / max(float(np.abs(change).max()), 1e-12)
    png = encode_png(round_to_bytes(0.5 + amplified * change), has_channels_first(report))
    return {**found, "change": base64.b64encode(png).decode(), "amplified": float(f"{amplified:.2g}")}


def _encode(report: EvaluationResults, image: NDArray[Any]) -> str:
    levels = round_to_bytes(scale_to_unit(report, image))
    return base64.b64encode(encode_png(levels, has_channels_first(report))).decode()


def _list_changes(report: EvaluationResults, point: int) -> Data | None:
    """The features that changed most, with their values before and after; None for a point that was not broken."""
    clean = find_clean(report, point)
    if not report.broken[point] or clean is None:
        return None
    before, after = clean.ravel().astype(np.float64), report.adversarial[point].ravel().astype(np.float64)
    change = after - before
    largest = np.argsort(-np.abs(change), kind="stable")[:CHANGES]
    rows = [[int(at), *(float(f"{values[at]:.5g}") for values in (before, after, change))] for at in largest]
    return {"changes": rows, "changed": int((change != 0).sum())}


def _write_notes(
    report: EvaluationResults, held: int, probabilities: bool, shown: int, shown_bytes: int
) -> Iterator[str]:
    """Yield sentences that say what the page contains, and what it leaves out."""
    images = holds_images(report)
    what = "Images" if images else "The largest changes"
    if held == len(report.labels):
        yield f"{what} of all points are in this page."
    else:
        yield (
            f"{what} of {held:,} of the {len(report.labels):,} points are in this page, broken ones first; the others "
            f"are listed without (limits: {shown:,} points, {shown_bytes / 1e6:.1f} MB)."
        )
    if not probabilities:
        yield f"Probabilities, distances and radii are left out: points times networks exceed {PROBABILITIES:,}."
    if images and report.settings.get("clip_values_by_feature"):
        yield "Features have ranges of their own; colours are drawn by the lowest and the highest value of all."

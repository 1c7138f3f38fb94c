"""The curves of a comparison: accuracy against eps, and the epochs of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from markupsafe import Markup

from ..ranking import Reports
from ..results import EvaluationResults
from .labels import count_networks
from .svg import Axis, Line, choose_marks, choose_ticks, draw_bars, draw_lines, shorten

History = Sequence[Mapping[str, Any]]
"""The records of a training's epochs, as a trainer's ``history``: "epoch", "loss", "validation_accuracy", ..."""

_PERCENT = Axis("accuracy, %", 0.0, 100.0, [(value, f"{value}") for value in range(0, 101, 20)])
_STEPS = 60
_NARROWEST = 0.1
"""The smallest distance of two ticks, as a share of the axis."""
_METRICS = 8
"""The largest number of figures of training."""


@dataclass(frozen=True)
class Drawn:
    """A figure: what it is called, its drawing, and the numbers of the series in it."""

    name: str
    drawing: Markup
    series: list[int]


def draw_curves(reports: Reports, numbers: Mapping[str, int], name: str = "") -> Drawn:
    """Accuracy against eps of reports in one unit, each with its series' number; dashed: the certified accuracy."""
    axis = _make_eps_axis(reports)
    lines = []
    for label, report in reports.items():
        points = [(eps, 100 * accuracy) for eps, accuracy in report.curve]
        texts = {place: f"{shorten(label)}, eps {eps:.4g}: {value:.1f}%" for place, (eps, value) in enumerate(points)}
        lines.append(Line(numbers[label], points, texts))
        if report.radii is not None:
            lines.append(_make_certified_line(report, label, numbers[label], axis))
    radii = sorted({report.settings["threat"]["eps"] for report in reports.values()})
    rules = [(eps, f"evaluated at {eps:.3g}") for eps in radii] if len(radii) < 3 else [(eps, "") for eps in radii]
    kinds = (
        "accuracy" if all(report.radii is None for report in reports.values()) else "accuracy and certified accuracy"
    )
    grows = f"as eps grows to {axis.high:.4g}, on a logarithmic axis"
    description = f"Lines: {kinds} of {count_networks(reports)} {grows}. {_tell_ends(reports)}"
    return Drawn(name, draw_lines(description, lines, axis, _PERCENT, rules), [numbers[label] for label in reports])


def _tell_ends(reports: Reports) -> str:
    """Some values, for those who do not see the lines."""
    told = [
        f"{shorten(name)}: {report.curve[0][1]:.1%} at 0, {report.curve[-1][1]:.1%} at {report.curve[-1][0]:.4g}"
        for name, report in list(reports.items())[:20]
    ]
    return "; ".join(told) + "."


def _make_eps_axis(reports: Reports) -> Axis:
    given = sorted({eps for report in reports.values() for eps, _ in report.curve if eps > 0})
    threats = [report.settings["threat"]["eps"] for report in reports.values()]
    radii = sorted({*given, *threats})
    smallest = [radii[0]]
    for report in reports.values():
        if report.radii is not None and len(positive := report.radii[report.radii > 0]):
            smallest.append(min(float(np.median(positive)), radii[-1]) / 4)
    high = radii[-1]
    low = max(min(smallest), high * 1e-9, 1e-300)
    wanted = [eps for eps in radii if eps >= low] or [high]
    while wanted[0] / 4 > low:
        wanted.insert(0, wanted[0] / 4)
    whole = Axis("eps", low, high, [], logarithmic=True)
    # Evaluated radii first: where two ticks are too near, one of these stays.
    ticks = {0.0: "0"}
    for eps in sorted(wanted, key=lambda eps: (eps not in threats, -eps)):
        if all(abs(whole.place(eps) - whole.place(other)) >= _NARROWEST for other in ticks):
            ticks[eps] = f"{eps:.2g}" if eps not in threats else f"{eps:.3g}"
    return Axis("eps (logarithmic)", low, high, sorted(ticks.items()), logarithmic=True)


def _make_certified_line(report: EvaluationResults, name: str, number: int, axis: Axis) -> Line:
    marked = sorted({0.0, *(eps for eps, _ in report.curve), *(value for value, _ in axis.ticks)})
    between = np.geomspace(axis.low, axis.high, _STEPS).tolist()
    radii = sorted({*marked, *between})
    points = [(eps, 100 * report.certified_at(eps)) for eps in radii]
    texts = {
        place: f"{shorten(name)}, certified at eps {eps:.4g}: {value:.1f}%"
        for place, (eps, value) in enumerate(points)
        if eps in marked
    }
    return Line(number, points, texts, dashed=True)


def draw_accuracies(report: EvaluationResults) -> Markup:
    """Bars of one report's accuracies: clean, each attack's within the ball, the worst case, certified."""
    bars = [("clean", report.clean_accuracy, "clean")]
    bars += [(result.name, result.robust_accuracy, "bounded") for result in report.attacks if result.bounded]
    bars.append(("worst case", report.robust_accuracy, "worst"))
    if report.certified_accuracy is not None:
        bars.append(("certified", report.certified_accuracy, "certified"))
    return _draw_named_bars("accuracy under each attack within the ball", bars)


def draw_own_measures(report: EvaluationResults) -> Markup:
    """Bars of the attacks that are not bound to the ball."""
    own = [result for result in report.attacks if not result.bounded]
    bars = [(result.name, result.robust_accuracy, "own") for result in own]
    return _draw_named_bars("accuracy under attacks by their own measure", bars)


def _draw_named_bars(what: str, bars: list[tuple[str, float, str]]) -> Markup:
    told = ", ".join(f"{name} {value:.1%}" for name, value, _ in bars)
    return draw_bars(f"Bars: {what}. {told}", bars)


def list_curve_values(reports: Reports) -> tuple[list[str], list[list[str]]]:
    """The values of the curves as a table: a row for each network, and one for its certificates."""
    radii = sorted({eps for report in reports.values() for eps, _ in report.curve})
    rows = []
    for name, report in reports.items():
        found = dict(report.curve)
        rows.append([name, *(f"{found[eps]:.1%}" if eps in found else "" for eps in radii)])
        if report.radii is not None:
            rows.append([f"{name}, certified", *(f"{report.certified_at(eps):.1%}" for eps in radii)])
    return ["eps", *(f"{eps:.4g}" for eps in radii)], rows


def draw_training(histories: Mapping[str, History], numbers: Mapping[str, int]) -> list[Drawn]:
    """A figure for each number that trainings recorded: the loss, then every accuracy."""
    found = {
        name: {metric: _collect(history, metric) for metric in _list_metrics(history)}
        for name, history in histories.items()
        if name in numbers
    }
    names = dict.fromkeys(metric for metrics in found.values() for metric, points in metrics.items() if points)
    figures = []
    for metric in sorted(names, key=lambda metric: (metric != "loss", metric))[:_METRICS]:
        runs = {name: metrics[metric] for name, metrics in found.items() if metrics.get(metric)}
        figures.append(_draw_metric(metric, runs, numbers))
    return figures


def _draw_metric(metric: str, runs: Mapping[str, list[tuple[float, float]]], numbers: Mapping[str, int]) -> Drawn:
    share = metric != "loss" and all(0 <= value <= 1 for points in runs.values() for _, value in points)
    scale, unit = (100.0, "%") if share else (1.0, "")
    name = metric.replace("_", " ")
    lines = []
    for label, points in runs.items():
        scaled = [(epoch, scale * value) for epoch, value in points]
        texts = {
            place: f"{shorten(label)}, epoch {scaled[place][0]:g}: {name} {scaled[place][1]:.4g}{unit}"
            for place in choose_marks(len(scaled))
        }
        lines.append(Line(numbers[label], scaled, texts))
    epochs = [epoch for points in runs.values() for epoch, _ in points]
    x_ticks = [
        (value, text)
        for value, text in choose_ticks(min(epochs), max(epochs), 8)
        if min(epochs) <= value <= max(epochs) and abs(value - round(value)) < 1e-9
    ]
    x = Axis("epoch", min(epochs), max(*epochs, min(epochs) + 1), x_ticks)
    description = f"Lines: {name} of {_count(runs)} over {max(epochs):g} epochs. " + "; ".join(
        f"{shorten(label)}: {scale * points[0][1]:.4g}{unit} to {scale * points[-1][1]:.4g}{unit}"
        for label, points in list(runs.items())[:20]
    )
    y = replace(_PERCENT, label="%") if share else _make_axis("", runs)
    return Drawn(name, draw_lines(f"{description}.", lines, x, y), [numbers[label] for label in runs])


def _make_axis(name: str, runs: Mapping[str, list[tuple[float, float]]]) -> Axis:
    values = [value for points in runs.values() for _, value in points]
    low, high = min(values), max(values)
    ticks = choose_ticks(min(low, 0.0) if low < high / 4 or low < 0 else low, high)
    return Axis(name, ticks[0][0], ticks[-1][0], ticks)


def _list_metrics(history: History) -> list[str]:
    """Names of numbers worth a curve."""
    names = dict.fromkeys(name for epoch in history for name in epoch if isinstance(name, str))
    return [name for name in names if name == "loss" or name.endswith("accuracy")]


def _collect(history: History, metric: str) -> list[tuple[float, float]]:
    """The epochs, from 1, at which a number was recorded, and it; NaN and infinity cannot be drawn."""
    found = []
    for number, epoch in enumerate(history, 1):
        value = epoch.get(metric)
        if (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            and math.isfinite(value)
            and abs(value) < 1e30
        ):
            found.append((float(number), float(value)))
    return found


def _count(items: Mapping[str, object]) -> str:
    return f"{len(items)} network{'s' * (len(items) > 1)}"

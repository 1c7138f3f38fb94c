"""The figures of reports and comparisons, and their pictures."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from io import BytesIO

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ...escapes import drawable
from ..results import EvaluationResults
from .comparison import collect_accuracies, list_compared_rows
from .labels import is_fast, mark

CLEAN, BOUNDED, OWN_MEASURE, WORST, INK = "#8d99ae", "#3a6ea5", "#c9d3df", "#b23a48", "#1f2933"
CERTIFIED = "#3f8f5f"
RUNS = ("#3a6ea5", "#d1802f", "#3f8f5f", "#8a5aa8", "#b23a48", "#5c6b73", "#c2a83e", "#4aa5a5", "#7d5a3c", "#d97aa6")
# A legend's letter, mark and line in inches.
LETTER, HANDLE, LINE = 0.087, 0.5, 0.19


def make_figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches, and its axes."""
    drawing = Figure(figsize=(width, height), layout="constrained")
    axes = drawing.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color("#9aa5b1")
    axes.tick_params(colors=INK, labelsize=9)
    return drawing, axes


def draw_picture(drawing: Figure) -> bytes:
    """A figure as PNG."""
    buffer = BytesIO()
    with warnings.catch_warnings():
        # Names may have letters of any script; matplotlib's own font draws a box for those that it lacks.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        drawing.savefig(buffer, format="png", dpi=170, facecolor="white")
    return buffer.getvalue()


def accuracy_figure(report: EvaluationResults) -> Figure:
    """A bar for each accuracy of a report."""
    bars = [("clean", report.clean_accuracy, CLEAN)]
    for result in report.attacks:
        name = f"{result.name} {mark(result)}".rstrip()
        bars.append((name, result.robust_accuracy, OWN_MEASURE if result.constraint == "none" else BOUNDED))
    bars.append(("worst case", report.robust_accuracy, WORST))
    if report.certified_accuracy is not None:
        bars.append(("certified", report.certified_accuracy, CERTIFIED))
    drawing, axes = make_figure(6.4, 0.7 + 0.3 * len(bars))
    names, values, colours = zip(*bars, strict=True)
    axes.barh(range(len(bars)), [100 * value for value in values], color=colours, height=0.68)
    for row, value in enumerate(values):
        axes.text(100 * value + 1, row, f"{value:.1%}", va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(bars)), [drawable(name) for name in names])
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy, %", fontsize=9, color=INK)
    return drawing


def curve_figure(reports: Mapping[str, EvaluationResults]) -> Figure:
    """Accuracy against eps, a line for each run: under the short attack and, where there are radii, certified."""
    drawing, axes = make_figure(6.4, 3.4)
    for (name, report), (colour, marker) in zip(reports.items(), choose_appearances(len(reports)), strict=True):
        positive = [(eps, 100 * accuracy) for eps, accuracy in report.curve if eps > 0]
        if positive:
            axes.plot(*zip(*positive, strict=True), marker=marker, markersize=4, color=colour, label=drawable(name))
        axes.axhline(100 * report.curve[0][1], color=colour, linestyle=":", linewidth=1)
        if report.radii is not None:
            axes.plot(*certified_curve(report), color=colour, linestyle="--", linewidth=1.3)
    for index, threat in enumerate(sorted({report.settings["threat"]["eps"] for report in reports.values()})):
        axes.axvline(threat, color=WORST, linewidth=1, label="" if index else "eps evaluated")
    axes.set_xscale("log", base=2)
    if any(report.radii is not None for report in reports.values()):
        axes.plot([], [], color=INK, linestyle="--", linewidth=1.3, label="certified")
    radii = {tuple(eps for eps, _ in report.curve if eps > 0) for report in reports.values()}
    if len(radii) == 1 and (ticks := list(radii.pop())):
        while ticks[0] / 4 > axes.get_xlim()[0]:
            ticks.insert(0, ticks[0] / 4)
        axes.set_xticks(ticks)
    axes.xaxis.set_major_formatter(lambda value, position: f"{value:.3g}")
    axes.set_ylim(-3, 104)
    axes.set_xlabel("eps (dotted: clean accuracy of these points)", fontsize=9, color=INK)
    axes.set_ylabel("accuracy, %", fontsize=9, color=INK)
    place_legend(drawing)
    return drawing


def place_legend(drawing: Figure) -> None:
    """A legend over the whole width, in as many columns as its names leave room for; the figure grows by its rows."""
    (axes,) = drawing.axes
    handles, names = axes.get_legend_handles_labels()
    longest = max(len(line) for name in names for line in name.split("\n"))
    width, height = drawing.get_size_inches()
    columns = max(1, min(len(names), 4, int(width / (LETTER * longest + HANDLE))))
    lines = max(name.count("\n") + 1 for name in names) * math.ceil(len(names) / columns)
    drawing.set_size_inches(width, height + LINE * lines)
    drawing.legend(handles, names, frameon=False, fontsize=9, loc="outside upper center", ncols=columns)


def certified_curve(report: EvaluationResults) -> tuple[list[float], list[float]]:
    """eps, from below the smaller of the evaluated one and the median radius, and the certified accuracy in percent."""
    assert report.radii is not None
    threat, positive = report.settings["threat"]["eps"], report.radii[report.radii > 0]
    first = min(threat, float(np.median(positive)) if len(positive) else threat) / 4
    radii = np.geomspace(first, max(8 * threat, 8 * first), 80)
    return radii.tolist(), [100 * report.certified_at(eps) for eps in radii]


def choose_appearances(count: int) -> list[tuple[str, str]]:
    """The colour and the marker of each of ``count`` runs: all colours with one marker, then with the next."""
    pairs = [(colour, marker) for marker in "osD^vP" for colour in RUNS]
    return [pairs[index % len(pairs)] for index in range(count)]


def examples_figure(report: EvaluationResults) -> tuple[Figure, float] | None:
    """Clean images, changes and adversarial images, and how much the changes are amplified; None without any."""
    examples = report.examples
    if len(examples.indices) == 0 or examples.clean.ndim != 4:
        return None
    change = examples.adversarial - examples.clean
    amplified = 0.5 / max(float(np.abs(change).max()), 1e-12)
    columns = len(examples.indices)
    drawing = Figure(figsize=(0.95 * columns + 0.9, 3.2), layout="constrained")
    grid = drawing.subplots(3, columns, squeeze=False)
    rows = {
        "clean": examples.clean,
        f"change\nx {amplified:.2g}": 0.5 + amplified * change,
        "attacked": examples.adversarial,
    }
    for row, (name, images) in enumerate(rows.items()):
        for column, image in enumerate(images):
            axes = grid[row, column]
            # Three channels are colours; any other number is shown as its mean.
            picture = image.transpose(1, 2, 0) if len(image) == 3 else image.mean(axis=0)
            axes.imshow(np.clip(picture, 0, 1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_visible(False)
        grid[row, 0].set_ylabel(name, fontsize=9, color=INK)
    for column, (label, prediction) in enumerate(zip(examples.labels, examples.predictions, strict=True)):
        found = "NaN" if prediction < 0 else prediction
        grid[0, column].set_title(str(label), fontsize=10, color=INK)
        grid[2, column].set_xlabel(str(found), fontsize=10, color=WORST)
    return drawing, amplified


def comparison_figure(reports: Mapping[str, EvaluationResults]) -> Figure:
    """The accuracies of several runs: a row for each, a marker for each run."""
    rows = list_compared_rows(reports)
    drawing, axes = make_figure(6.4, 0.9 + 0.32 * len(rows))
    for (name, report), (colour, marker) in zip(reports.items(), choose_appearances(len(reports)), strict=True):
        values = collect_accuracies(report)
        points = [(100 * values[row], index) for index, row in enumerate(rows) if row in values]
        label = f"{name}\n(fast, NOT standard)" if is_fast(report) else name
        axes.plot(*zip(*points, strict=True), marker, color=colour, label=drawable(label), markersize=7, alpha=0.85)
    axes.set_yticks(range(len(rows)), [drawable(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-3, 103)
    axes.grid(axis="y", color="#e4e7eb")
    axes.set_axisbelow(True)
    axes.set_xlabel("accuracy, %", fontsize=9, color=INK)
    place_legend(drawing)
    return drawing

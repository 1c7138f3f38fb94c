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
from .labels import is_fast

WORST, INK = "#b23a48", "#1f2933"
RUNS = ("#3a6ea5", "#d1802f", "#3f8f5f", "#8a5aa8", "#b23a48", "#5c6b73", "#c2a83e", "#4aa5a5", "#7d5a3c", "#d97aa6")
# A legend's letter, mark and line in inches.
LETTER, HANDLE, LINE = 0.087, 0.5, 0.19


def make_figure(width: float, height: float) -> tuple[Figure, Axes]:
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

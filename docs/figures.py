"""Draw the figures of accuracy against training time, from benchmarks/results/*.json.

    python docs/figures.py [NAME ...]      needs the dependency group "figures"

``local_ball.svg``: AutoAttack accuracy on MNIST, of trainings against adversaries of few and of many steps.
``cifar10.svg``: the same of a recipe on CIFAR-10. ``certified.svg``: certified accuracy on MNIST at L2 1.58. A figure
whose records are not there is left out, with a line that says so. Numbers that were read in papers, not measured
here, have hollow markers or dashed lines, and say so. The pictures are transparent: each colour has a contrast of at
least 3 with white and with the dark pages of GitHub and of the manual.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"

BACKGROUNDS = ("#ffffff", "#0d1117", "#1e2129")
"""White, and the dark pages of GitHub and of the manual."""
INK = "#75787e"
COLOURS = {"blue": "#2f81d6", "orange": "#cf6a17", "green": "#2b9250", "purple": "#a065d4", "red": "#e0475b"}

READ_FASTAT = {
    "PGD-10": (1.0, 50.49, (-7, 3)),
    "NuAT": (0.42, 50.10, (7, 3)),
    "LIET": (0.37, 49.99, (-7, 3)),
    "FGSM-PGI": (0.38, 49.89, (-7, -11)),
    "GAT": (0.41, 49.15, (7, -4)),
    "GradAlign": (0.80, 47.99, (7, 3)),
    "N-FGSM": (0.28, 47.77, (7, 3)),
}
"""The share of PGD-10's time and the AutoAttack accuracy on CIFAR-10 (ResNet-18, 100 epochs, 8/255) that the FastAT
benchmark reports (arXiv 2604.22853), and where the label stands."""
READ_GLORO = 62.8
"""Certified on MNIST at L2 1.58 by GloRo after 300 epochs (Leino, Wang, Fredrikson, arXiv 2102.08452)."""

Records = Mapping[str, Any]


@dataclass(frozen=True)
class Point:
    """A training: its share of images in percent over its time, with the lowest and the highest seed.

    The label ends at the point where ``label_at``, the offset in points, leads to the left, and else begins there.
    """

    label: str
    x: float
    y: float
    low: float
    high: float
    label_at: tuple[int, int] | None = None


@dataclass(frozen=True)
class Series:
    """Points of one kind, joined by a line where ``joined``, hollow where they were ``read``."""

    name: str
    colour: str
    marker: str
    points: list[Point] = field(default_factory=list)
    joined: bool = True
    read: bool = False
    label_at: tuple[int, int] = (7, 3)


@dataclass(frozen=True)
class Picture:
    """The content of a figure; ``lines`` are levels without a time, (text, percent, whether it was read)."""

    title: str
    across: str
    up: str
    series: list[Series]
    lines: list[tuple[str, float, bool]] = field(default_factory=list)
    logarithmic: bool = False


def make_point(label: str, x: float, shares: Iterable[float], label_at: tuple[int, int] | None = None) -> Point:
    """A point of the mean of some shares, and of their ends."""
    values = [100 * share for share in shares]
    return Point(label, x, statistics.mean(values), min(values), max(values), label_at)


def sort_by_family(points: Mapping[str, Callable[[str], Point]]) -> list[Series]:
    """Series of PGD-k, TRADES-k and local balls of k steps, by the rows' names; other local balls are variants."""
    families = {
        r"PGD-(\d+)": Series("PGD-k", COLOURS["orange"], "s", label_at=(7, -11)),
        r"TRADES-(\d+)": Series("TRADES-k", COLOURS["green"], "^", label_at=(6, -13)),
        r"local ball, (\d+) steps?": Series("local ball, k steps", COLOURS["blue"], "o", label_at=(7, -11)),
        r"local ball, (\d+) steps? from previous, smoothness of logits": Series(
            "local ball, preset previous, k steps", COLOURS["red"], "v", label_at=(-6, 5)
        ),
        r"local ball(?:, (.*))?": Series("local ball, variants", COLOURS["purple"], "D", joined=False),
    }
    for name, make in points.items():
        for pattern, series in families.items():
            found = re.fullmatch(pattern, name)
            if found is not None:
                series.points.append(make(found[1] if series.joined else ""))
                break
    return [series for series in families.values() if series.points]


def trace_local_ball(records: Records) -> Picture | None:
    """AutoAttack accuracy on MNIST over the time of an epoch, relative to TRADES-10."""
    if "local_ball_mnist" not in records:
        return None
    results = records["local_ball_mnist"]["results"]
    beside, measured = results["seconds"]["TRADES-10"], {network["row"] for network in results["networks"]}

    def place(name: str) -> Callable[[str], Point]:
        ratio = statistics.median(own / other for own, other in zip(results["seconds"][name], beside, strict=True))
        return lambda label: make_point(label, ratio, (n["robust"] for n in results["networks"] if n["row"] == name))

    return Picture(
        "MNIST, Linf 0.3: training against adversaries of k steps",
        "training time / TRADES-10's",
        "AutoAttack accuracy, %",
        sort_by_family({name: place(name) for name in results["seconds"] if name in measured}),
    )


def trace_cifar10(records: Records) -> Picture | None:
    """AutoAttack accuracy on CIFAR-10 over training time, relative to PGD-10, beside what was read."""
    name = next((each for each in ("recipe_cifar10-resnet18", "recipe_cifar10-small") if each in records), None)
    if name is None:
        return None
    runs = [run for run in records[name]["results"] if "diverged" not in run]
    rows: dict[str, list[Any]] = {run["row"]: [r for r in runs if r["row"] == run["row"]] for run in runs}
    beside = statistics.mean(run["training_seconds"] for run in rows["PGD-10"])

    def place(row: str) -> Callable[[str], Point]:
        seconds = statistics.mean(run["training_seconds"] for run in rows[row])
        shares = [run["threats"]["Linf 8/255"]["autoattack"] for run in rows[row]]
        return lambda label: make_point(label, seconds / beside, shares)

    read = [Point(label, x, y, y, y, label_at) for label, (x, y, label_at) in READ_FASTAT.items()]
    anchors = Series("read: ResNet-18, FastAT benchmark", INK, "o", read, joined=False, read=True)
    network = "PreActResNet-18" if name.endswith("resnet18") else "WRN-10-1 (ours)"
    return Picture(
        f"CIFAR-10, Linf 8/255, {network}",
        "training time / PGD-10's",
        "AutoAttack accuracy, %",
        [*sort_by_family({row: place(row) for row in rows}), anchors],
    )


def trace_certified(records: Records) -> Picture | None:
    """Certified accuracy on MNIST at L2 1.58 over training seconds."""
    series, lines = [], []
    if "recipe_mnist-certified" in records:
        runs = [run for run in records["recipe_mnist-certified"]["results"] if "diverged" not in run]
        points = []
        for row in dict.fromkeys(run["row"] for run in runs):
            same = [run for run in runs if run["row"] == row]
            seconds = statistics.mean(run["training_seconds"] for run in same)
            points.append(make_point(row, seconds, [run["certified"]["L2 1.58"] for run in same], (-4, 11)))
        series.append(Series("recipe mnist-certified", COLOURS["blue"], "o", points))
    if "certified_mnist_search" in records:
        runs = [run for run in records["certified_mnist_search"]["results"] if "diverged" not in run]
        points = [make_point("", run["seconds"], [run["certified"]["1.58"]]) for run in runs]
        series.append(Series("choices, on held-out training images", COLOURS["purple"], "D", points, joined=False))
    if "recipe_mnist" in records:
        runs = [run for run in records["recipe_mnist"]["results"] if run["row"].startswith("Lipschitz margin")]
        if runs:
            seconds = statistics.mean(run["training_seconds"] for run in runs)
            point = make_point("2C2F, MinMax, 16 epochs", seconds, [run["certified"]["L2 1.58"] for run in runs])
            series.append(Series("recipe mnist, 10,000 images", COLOURS["orange"], "s", [point]))
    if "lipschitz_mnist" in records:
        runs = [run for run in records["lipschitz_mnist"]["results"] if run["recipe"] == "longer"]
        share = statistics.mean(run["certified 1.58"] for run in runs)
        lines.append(("2C2F, MinMax, 60 epochs (time not recorded)", 100 * share, False))
    if not series:
        return None
    lines.append(("GloRo, 300 epochs (read)", READ_GLORO, True))
    return Picture(
        "MNIST: certified within L2 1.58",
        "training time, seconds (one CPU thread)",
        "certified accuracy, %",
        series,
        lines,
        logarithmic=True,
    )


FIGURES: dict[str, Callable[[Records], Picture | None]] = {
    "local_ball": trace_local_ball,
    "cifar10": trace_cifar10,
    "certified": trace_certified,
}


def find_contrast(colour: str, background: str) -> float:
    """The contrast of two colours such as '#75787e', from 1 to 21 (WCAG 2.2)."""
    first, second = sorted(map(find_luminance, (colour, background)))
    return (second + 0.05) / (first + 0.05)


def find_luminance(colour: str) -> float:
    """The relative luminance of an sRGB colour."""
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def draw(picture: Picture, path: Path) -> None:
    """Write a figure as SVG whose text is text, the same bytes for the same picture."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    settings: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": path.stem,
        "font.family": "sans-serif",
        "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
        "font.size": 10,
        **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    }
    with mpl.rc_context(settings):
        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        axis = figure.subplots()
        axis.patch.set_alpha(0)
        figure.patch.set_alpha(0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(color=INK, alpha=0.25, linewidth=0.6)
        for series in picture.series:
            points = sorted(series.points, key=lambda point: point.x) if series.joined else series.points
            xs, ys = [point.x for point in points], [point.y for point in points]
            below, above = ([abs(getattr(p, end) - p.y) for p in points] for end in ("low", "high"))
            axis.errorbar(
                xs,
                ys,
                yerr=None if series.read else [below, above],
                fmt=f"{series.marker}-" if series.joined else series.marker,
                color=series.colour,
                markerfacecolor="none" if series.read else series.colour,
                markersize=6,
                linewidth=1.4,
                elinewidth=1.2,
                capsize=2.5,
                label=series.name,
            )
            for point in points:
                offset = point.label_at or series.label_at
                axis.annotate(
                    point.label,
                    (point.x, point.y),
                    xytext=offset,
                    textcoords="offset points",
                    ha="right" if offset[0] < 0 else "left",
                    color=series.colour,
                )
        for text, level, read in picture.lines:
            axis.axhline(level, color=INK, linewidth=1.2, linestyle="--" if read else ":")
            axis.annotate(
                text,
                (0.995, level),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                ha="right",
            )
        if picture.logarithmic:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.xaxis.set_minor_formatter(NullFormatter())
        axis.margins(x=0.08, y=0.08)
        axis.set(title=picture.title, xlabel=picture.across, ylabel=picture.up)
        axis.title.set_size(11)
        figure.legend(frameon=False, loc="outside lower center", ncols=2)
        figure.savefig(path, format="svg", transparent=True, metadata={"Date": None})
    # Trailing spaces of matplotlib's paths would make every commit complain.
    path.write_text("\n".join(line.rstrip() for line in path.read_text(encoding="utf-8").splitlines()) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(FIGURES)}")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in FIGURES]
    if unknown:
        parser.error(f"NAME: got {unknown[0]!r}, expected some of {', '.join(FIGURES)}.")
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")}
    for name in args.names or FIGURES:
        picture, path = FIGURES[name](records), DOCS / f"{name}.svg"
        if picture is None:
            print(f"{path.name}: not drawn, its records are not there")
            continue
        draw(picture, path)
        print(f"{path.name}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())

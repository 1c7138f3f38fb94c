"""How reports look: text for a terminal, Markdown, and HTML pages that need no other file."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from .report import AttackResult, EvaluationReport

CLEAN, BOUNDED, OWN_MEASURE, WORST, INK = "#8d99ae", "#3a6ea5", "#c9d3df", "#b23a48", "#1f2933"
CERTIFIED = "#3f8f5f"
RUNS = ("#3a6ea5", "#d1802f", "#3f8f5f", "#8a5aa8", "#b23a48", "#5c6b73", "#c2a83e", "#4aa5a5", "#7d5a3c", "#d97aa6")
# A legend's letter, mark and line in inches.
LETTER, HANDLE, LINE = 0.087, 0.5, 0.19

# --------------------------------------------------------------------------------------------------------------- text


def title(report: EvaluationReport) -> str:
    """AutoAttack is named only where all of its stages ran, and nothing else did."""
    settings = report.settings
    threat = settings["threat"]["text"] + (", in a sweep over eps" if swept(report) else "")
    if fast(report):
        return f"Fast evaluation, NOT the standard one, {threat}"
    if settings["autoattack"] and len(report.attacks) == 4:
        return f"AutoAttack, {threat}"
    return f"Robustness evaluation, {threat}"


def fast(report: EvaluationReport) -> bool:
    """Whether stages of the fast level stand where AutoAttack's would."""
    return bool(report.settings.get("fast")) and not report.settings["autoattack"]


def swept(report: EvaluationReport) -> bool:
    """Whether points that a smaller eps broke were not attacked again."""
    return report.settings.get("reused") is not None


def robust_label(report: EvaluationReport) -> str:
    known = ", with points known from a smaller eps" if swept(report) else ""
    if not any(result.bounded for result in report.attacks):
        return "correct clean, and not broken within eps by any attack (not an adversarial accuracy)"
    if report.settings["autoattack"] and len(report.attacks) == 4:
        return f"robust accuracy, AutoAttack (standard){known}"
    if fast(report):
        return f"robust accuracy, fast level: NOT the standard evaluation{known}"
    return f"robust accuracy, worst case over all attacks{known}"


def worst_case_mark(report: EvaluationReport) -> str:
    """How the worst case is to be read where it is not that of a whole evaluation at one eps."""
    found = [*(["fast, NOT standard"] if fast(report) else []), *(["in a sweep"] if swept(report) else [])]
    return f"({', '.join(found)})" if found else ""


def summary(report: EvaluationReport) -> str:
    """A short table for the terminal."""
    width = max(len(result.name) for result in report.attacks)
    width = max(width, len("worst case"))
    lines = [f"{title(report)}: {report.settings['points']} points, {report.settings['classes']} classes"]
    sure = {name: f"95 % confidence: {interval(report, value)}" for name, value in totals(report).items()}
    lines.append(f"  {'clean':<{width}}  {report.clean_accuracy:7.2%}  {sure['clean']}")
    for result in report.attacks:
        row = f"  {result.name:<{width}}  {result.robust_accuracy:7.2%}  {duration(result.seconds):>9}  {mark(result)}"
        lines.append(row.rstrip())
    lines.append(f"  {'worst case':<{width}}  {report.robust_accuracy:7.2%}  {sure['worst case']}")
    if "certified" in sure:
        lines.append(f"  {'certified':<{width}}  {report.certified_accuracy:7.2%}  {sure['certified']}")
    lines += [f"  known from a smaller eps: {reused_text(report)}"] if swept(report) else []
    lines += [f"  not run: {line}" for line in report.settings["could_not_run"]]
    if fast(report):
        lines += [f"  {line}" for line in report.settings["not_run"] if "fast level" in line]
    lines += [f"  {flag.severity}: {flag.name}: {flag.evidence} {flag.advice}" for flag in report.flags]
    return "\n".join(lines)


def totals(report: EvaluationReport) -> dict[str, float]:
    certified = report.certified_accuracy
    proven = {} if certified is None else {"certified": certified}
    return {"clean": report.clean_accuracy, "worst case": report.robust_accuracy, **proven}


def interval(report: EvaluationReport, accuracy: float) -> str:
    """Wilson's 95 % confidence interval of an accuracy on this many points."""
    n, z = report.settings["points"], 1.96
    middle = accuracy + z * z / (2 * n)
    reach = z * math.sqrt(accuracy * (1 - accuracy) / n + (z / (2 * n)) ** 2)
    low, high = ((middle + sign * reach) / (1 + z * z / n) for sign in (-1, 1))
    return f"{max(low, 0.0):.1%} to {min(high, 1.0):.1%}"


def mark(result: AttackResult) -> str:
    """How the accuracy of an attack that is not bound to the ball is to be read."""
    return {"ball": "", "minimal": "(smallest change)", "none": "(own measure)"}[result.constraint]


def constraint_notes(reports: Iterable[EvaluationReport]) -> list[str]:
    """What the marks mean, one sentence for each that appears."""
    found = {result.constraint for report in reports for result in report.attacks}
    notes = {
        "minimal": "Smallest change: the attack has no eps; its accuracy counts the images that it found within eps.",
        "none": "Own measure: the attack has no eps; its accuracy counts every image that fools the network, the worst "
        "case only those within eps.",
    }
    return [note for constraint, note in notes.items() if constraint in found]


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def attack_rows(report: EvaluationReport) -> list[list[str]]:
    shown = {name: f"{value:.2%} ({interval(report, value)})" for name, value in totals(report).items()}
    rows = [["clean", "no attack", shown["clean"], "", "", ""]]
    for result in report.attacks:
        calls = [f"{result.forward_calls:,}", f"{result.backward_calls:,}"]
        name = [result.name, f"{result.summary} {mark(result)}".rstrip(), f"{result.robust_accuracy:.2%}"]
        rows.append([*name, duration(result.seconds), *calls])
    total = report.attacks
    rows.append(
        [
            "worst case",
            "over all attacks, within the threat model",
            shown["worst case"],
            duration(sum(result.seconds for result in total)),
            f"{sum(result.forward_calls for result in total):,}",
            f"{sum(result.backward_calls for result in total):,}",
        ]
    )
    if "certified" in shown:
        taken = duration(report.settings["certificate"]["seconds"])
        rows.append(["certified", "proven for every image within eps", shown["certified"], taken, "", ""])
    return rows


ATTACK_HEAD = ["attack", "what", "accuracy", "time", "images forward", "images backward"]
CLASS_HEAD = ["label", "points", "clean", "worst case"]
CLASSES_SHOWN = 20


def class_rows(report: EvaluationReport) -> list[list[str]]:
    """Accuracies of each label; of many labels, those with the lowest robust accuracy."""
    found = report.by_class()
    if len(found) > CLASSES_SHOWN:
        found = sorted(found, key=lambda each: (each.robust, each.clean))[:CLASSES_SHOWN]
    return [[str(each.label), str(each.points), f"{each.clean:.1%}", f"{each.robust:.1%}"] for each in found]


def class_note(report: EvaluationReport) -> str:
    count = len(np.unique(report.labels))
    shown = f"The {CLASSES_SHOWN} of {count} labels with the lowest robust accuracy. " if count > CLASSES_SHOWN else ""
    return f"{shown}Each point's verdict under each attack stands in verdicts.csv beside this report."


def setting_rows(report: EvaluationReport) -> list[list[str]]:
    s = report.settings
    diagnostics = s["diagnostics"]
    box = s.get("clip_values_by_feature") or s["clip_values"]
    return [
        ["threat model", f"{s['threat']['norm']}, eps {s['threat']['eps']:.6g} in the range {box}"],
        ["points", f"{s['points']} of shape {tuple(s['input_shape'])}, {s['classes']} classes"],
        ["known from a smaller eps", reused_text(report)],
        ["attack libraries", listed(s["attack_library"]) or "none"],
        ["backend", s["backend"]],
        ["seed, logical batch size", f"{s['seed']}, {s['batch_size']} (physical: {s['physical_batch_size']})"],
        ["processes", f"{s['processes']}; times are sums over them"],
        ["network", f"{s['network']}, weights {s['network_sha256'][:12]}"],
        ["preprocessing", "; ".join(s["preprocessing"]) or "none"],
        ["device, type", f"{s['device']}, {s['dtype']}"],
        ["verdict", f"{s['verdict_passes']} fresh forward pass(es) of the estimator on the final image"],
        [
            "tolerance",
            f"distances (in float64) of up to eps + {s['tolerance']:.2g} are within eps; images that rounding alone "
            "may have put farther out are drawn back, and judged there",
        ],
        ["certificate", certificate_text(report)],
        ["versions", listed(s["versions"])],
        [
            "diagnostics",
            f"{diagnostics['points']} points, {duration(diagnostics['seconds'])}, "
            f"{diagnostics['forward_calls']:,} images forward, {diagnostics['backward_calls']:,} backward",
        ],
        ["date", s["date"]],
    ]


def reused_text(report: EvaluationReport) -> str:
    known = report.settings.get("reused")
    if known is None:
        return "nothing"
    return f"{known['points']} points broken within {known['eps']:.6g}, not attacked again"


def certificate_text(report: EvaluationReport) -> str:
    told = report.settings.get("certificate")
    if told is None:
        return "none"
    name = "largest constant of a difference of logits (L2)"
    loose = {"L2": "", "Linf": "; from the L2 ball around the Linf ball, which is loose", "L1": ""}
    norm = report.settings["threat"]["norm"]
    return f"{told['method']}; median radius {median_radius(report)}; {name} {told[name]:.4g}{loose[norm]}"


def median_radius(report: EvaluationReport) -> str:
    """Of all points, those that are misclassified with 0."""
    if report.radii is None:
        return "not certified"
    return f"{report.settings['threat']['norm']} {np.median(report.radii.clip(0)):.2g}"


def listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown(report: EvaluationReport) -> str:
    flags = [f"- **{f.severity}: {f.name}.** {f.evidence} {f.advice}" for f in report.flags]
    parts = [
        f"# {title(report)}",
        f"Clean accuracy **{report.clean_accuracy:.2%}**, {robust_label(report)} **{report.robust_accuracy:.2%}**, on "
        f"{report.settings['points']} points.",
        "## Flags",
        "\n".join(flags) or "None of the checks found a sign of masked gradients or of a broken evaluation.",
        "## Attacks",
        markdown_table(ATTACK_HEAD, attack_rows(report)),
        " ".join(attack_notes(report)),
        "## Accuracy per class",
        class_note(report),
        markdown_table(CLASS_HEAD, class_rows(report)),
        "## Settings",
        markdown_table(["setting", "value"], setting_rows(report)),
        "## What was not run",
        "\n".join(f"- {line}" for line in report.settings["not_run"]) or "Nothing was left out.",
        "## Accuracy against eps",
        curve_note([report]),
        markdown_table(*curve_rows(report)),
        "## Attack parameters",
        markdown_table(["attack", "parameters"], parameter_rows(report)),
    ]
    return "\n\n".join(parts) + "\n"


def curve_rows(report: EvaluationReport) -> tuple[list[str], list[list[str]]]:
    rows = [[f"{eps:.4g}", f"{accuracy:.1%}"] for eps, accuracy in report.curve]
    if report.radii is None:
        return ["eps", "accuracy"], rows
    proven = [[f"{report.certified_at(eps):.1%}"] for eps, _ in report.curve]
    return ["eps", "accuracy", "certified"], [row + more for row, more in zip(rows, proven, strict=True)]


def curve_note(reports: Sequence[EvaluationReport]) -> str:
    counts = sorted({report.settings["diagnostics"]["points"] for report in reports})
    points = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    note = (
        f"A short attack of our own, 10 steps on logit differences, on the first {points} points, up to the ball that "
        f"holds every image. It shows whether accuracy falls as eps grows; it is not counted in the accuracies above."
    )
    if any(len(report.curve) == 1 for report in reports):
        note += " Without gradients that reach the input it cannot run."
    if any(report.radii is not None for report in reports):
        note += " Dashed: the certified accuracy of all points, which no attack can bring down."
    return note


def parameter_rows(report: EvaluationReport) -> list[list[str]]:
    return [[result.name, json.dumps(result.parameters)[1:-1] or "none"] for result in report.attacks]


# ------------------------------------------------------------------------------------------------------------ figures


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    drawing = Figure(figsize=(width, height), layout="constrained")
    axes = drawing.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color("#9aa5b1")
    axes.tick_params(colors=INK, labelsize=9)
    return drawing, axes


def image_tag(drawing: Figure, description: str) -> str:
    buffer = BytesIO()
    drawing.savefig(buffer, format="png", dpi=170, facecolor="white")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(description)}" src="data:image/png;base64,{data}">'


def accuracy_figure(report: EvaluationReport) -> Figure:
    bars = [("clean", report.clean_accuracy, CLEAN)]
    for result in report.attacks:
        name = f"{result.name} {mark(result)}".rstrip()
        bars.append((name, result.robust_accuracy, OWN_MEASURE if result.constraint == "none" else BOUNDED))
    bars.append(("worst case", report.robust_accuracy, WORST))
    if report.certified_accuracy is not None:
        bars.append(("certified", report.certified_accuracy, CERTIFIED))
    drawing, axes = figure(6.4, 0.7 + 0.3 * len(bars))
    names, values, colours = zip(*bars, strict=True)
    axes.barh(range(len(bars)), [100 * value for value in values], color=colours, height=0.68)
    for row, value in enumerate(values):
        axes.text(100 * value + 1, row, f"{value:.1%}", va="center", fontsize=9, color=INK)
    axes.set_yticks(range(len(bars)), names)
    axes.set_ylim(len(bars) - 0.4, -0.6)
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy, %", fontsize=9, color=INK)
    return drawing


def curve_figure(reports: Mapping[str, EvaluationReport]) -> Figure:
    drawing, axes = figure(6.4, 3.4)
    for (name, report), (colour, marker) in zip(reports.items(), appearances(len(reports)), strict=True):
        positive = [(eps, 100 * accuracy) for eps, accuracy in report.curve if eps > 0]
        if positive:
            axes.plot(*zip(*positive, strict=True), marker=marker, markersize=4, color=colour, label=name)
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
    legend_above(drawing)
    return drawing


def legend_above(drawing: Figure) -> None:
    """A legend over the whole width, in as many columns as its names leave room for; the figure grows by its rows."""
    (axes,) = drawing.axes
    handles, names = axes.get_legend_handles_labels()
    names = [shortened(name) for name in names]
    longest = max(len(line) for name in names for line in name.split("\n"))
    width, height = drawing.get_size_inches()
    columns = max(1, min(len(names), 4, int(width / (LETTER * longest + HANDLE))))
    lines = max(name.count("\n") + 1 for name in names) * math.ceil(len(names) / columns)
    drawing.set_size_inches(width, height + LINE * lines)
    drawing.legend(handles, names, frameon=False, fontsize=9, loc="outside upper center", ncols=columns)


def shortened(name: str, letters: int = 60) -> str:
    """Each line of a name without its middle where it is longer: what tells runs apart is often at the ends."""
    half = letters // 2 - 1
    return "\n".join(line if len(line) <= letters else f"{line[:half]}…{line[-half:]}" for line in name.split("\n"))


def certified_curve(report: EvaluationReport) -> tuple[list[float], list[float]]:
    """eps, from below the smaller of the evaluated one and the median radius, and the certified accuracy in percent."""
    assert report.radii is not None
    threat, positive = report.settings["threat"]["eps"], report.radii[report.radii > 0]
    first = min(threat, float(np.median(positive)) if len(positive) else threat) / 4
    radii = np.geomspace(first, max(8 * threat, 8 * first), 80)
    return radii.tolist(), [100 * report.certified_at(eps) for eps in radii]


def appearances(count: int) -> list[tuple[str, str]]:
    """The colour and the marker of each of ``count`` runs: all colours with one marker, then with the next."""
    pairs = [(colour, marker) for marker in "osD^vP" for colour in RUNS]
    return [pairs[index % len(pairs)] for index in range(count)]


def examples_figure(report: EvaluationReport) -> tuple[Figure, float] | None:
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


def comparison_figure(reports: Mapping[str, EvaluationReport]) -> Figure:
    rows = compared_rows(reports)
    drawing, axes = figure(6.4, 0.9 + 0.32 * len(rows))
    for (name, report), (colour, marker) in zip(reports.items(), appearances(len(reports)), strict=True):
        values = accuracies(report)
        points = [(100 * values[row], index) for index, row in enumerate(rows) if row in values]
        label = f"{name}\n(fast, NOT standard)" if fast(report) else name
        axes.plot(*zip(*points, strict=True), marker, color=colour, label=label, markersize=7, alpha=0.85)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-3, 103)
    axes.grid(axis="y", color="#e4e7eb")
    axes.set_axisbelow(True)
    axes.set_xlabel("accuracy, %", fontsize=9, color=INK)
    legend_above(drawing)
    return drawing


# --------------------------------------------------------------------------------------------------------------- HTML

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 56rem; padding: 1.5rem 1rem 3rem; color: #1f2933; background: #fff;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans", sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
p { margin: .4rem 0; }
.quiet { color: #52606d; font-size: .92rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.2rem 0; }
.number { border: 1px solid #d9e2ec; border-radius: .5rem; padding: .7rem .9rem; }
.number b { display: block; font-size: 1.7rem; line-height: 1.2; font-variant-numeric: tabular-nums; }
.number span { color: #52606d; font-size: .85rem; }
.flag { border-left: 5px solid #9aa5b1; background: #f5f7fa; padding: .55rem .8rem; margin: .5rem 0;
  border-radius: .25rem; }
.flag.severe { border-color: #b23a48; background: #fbeeee; }
.flag.warning { border-color: #d1802f; background: #fdf5ea; }
.flag.fine { border-color: #3f8f5f; background: #eef7f1; }
.flag b { margin-right: .3rem; }
.scroll { overflow-x: auto; }
.wide table { min-width: 42rem; }
.wide td:first-child { white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .35rem .6rem .35rem 0; border-bottom: 1px solid #e4e7eb; vertical-align: top; }
th { font-weight: 600; color: #52606d; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.strong td { font-weight: 600; }
td.code { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: .8rem; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; }
ul { padding-left: 1.2rem; margin: .4rem 0; }
@media print { body { max-width: none; padding: 0; font-size: 11pt; } h2 { break-after: avoid; }
  .flag, .number, img, tr { break-inside: avoid; } .scroll { overflow: visible; } .wide table { min-width: 0; }
  table { font-size: 8.5pt; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def html(report: EvaluationReport) -> str:
    settings = report.settings
    numbers = [
        (f"{report.clean_accuracy:.1%}", "clean accuracy"),
        (f"{report.robust_accuracy:.1%}", robust_label(report)),
        (str(round(report.robust_accuracy * settings["points"])) + f" of {settings['points']}", "points left standing"),
    ]
    if report.certified_accuracy is not None:
        numbers.append((f"{report.certified_accuracy:.1%}", "certified accuracy, proven within eps"))
    if report.autoattack_accuracy is not None and len(report.attacks) > 4:
        numbers.insert(1, (f"{report.autoattack_accuracy:.1%}", "robust accuracy, AutoAttack (standard)"))
    library = listed(settings["attack_library"]) or "no library"
    body = [
        f"<h1>{escape(title(report))}</h1>",
        f'<p class="quiet">{escape(settings["network"])}, {settings["points"]} points, {settings["classes"]} classes, '
        f"seed {settings['seed']}, logical batch size {settings['batch_size']}, {escape(library)}, "
        f"{escape(settings['date'])}</p>",
        '<div class="numbers">' + "".join(f"<div class=number><b>{n}</b><span>{t}</span></div>" for n, t in numbers),
        "</div>",
        flags_html(report),
        "<h2>Accuracy per attack</h2>",
        image_tag(accuracy_figure(report), "Bars: accuracy under each attack"),
        f'<p class="quiet">{escape(" ".join(attack_notes(report)))}</p>',
        '<div class="scroll wide">'
        + table(ATTACK_HEAD, attack_rows(report), numeric=(2, 3, 4, 5), strong=("worst case", "certified"))
        + "</div>",
        "<h2>Accuracy per class</h2>",
        f'<p class="quiet">{escape(class_note(report))}</p>',
        '<div class="scroll">' + table(CLASS_HEAD, class_rows(report), numeric=(1, 2, 3)) + "</div>",
        "<h2>What was not run</h2>",
        items(settings["not_run"]) or "<p>Nothing was left out.</p>",
        "<h2>Accuracy against eps</h2>",
        image_tag(curve_figure({"accuracy": report}), "Line: accuracy as eps grows"),
        f'<p class="quiet">{escape(curve_note([report]))}</p>',
        "<h2>Images</h2>",
        examples_html(report),
        "<h2>Settings</h2>",
        '<div class="scroll">' + table(["setting", "value"], setting_rows(report)) + "</div>",
        "<h2>Attack parameters</h2>",
        '<div class="scroll">' + table(["attack", "parameters"], parameter_rows(report), code=(1,)) + "</div>",
    ]
    return document(title(report), body)


def attack_notes(report: EvaluationReport) -> list[str]:
    notes = ["In brackets: 95 % confidence intervals (Wilson)."]
    if any(result.cumulative for result in report.attacks):
        notes.append("The stages of a suite act one after another, each on the points that those before it left.")
    return notes + constraint_notes([report])


def examples_html(report: EvaluationReport) -> str:
    drawn = examples_figure(report)
    if drawn is None:
        reason = "no attack broke a point" if len(report.examples.indices) == 0 else "the inputs are not images"
        return f"<p>None to show: {reason}.</p>"
    drawing, amplified = drawn
    return (
        image_tag(drawing, "Clean images, their changes, and the attacked images")
        + f'<p class="quiet">The first points that were broken. Above: the label; below: what the network says. '
        f"Changes are amplified {amplified:.2g} times; grey is no change.</p>"
    )


def flags_html(report: EvaluationReport) -> str:
    if not report.flags:
        return '<p class="flag fine">None of the checks found a sign of masked gradients or of a broken evaluation.</p>'
    return "".join(
        f'<div class="flag {f.severity}"><b>{f.severity}: {escape(f.name)}.</b> '
        f"{escape(f.evidence)} {escape(f.advice)}</div>"
        for f in report.flags
    )


def items(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>" if lines else ""


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    numeric: Sequence[int] = (),
    code: Sequence[int] = (),
    strong: Sequence[str] = (),
) -> str:
    """An HTML table; rows whose first cell is in ``strong`` stand out."""

    def cells(tag: str, row: Sequence[str]) -> str:
        kinds = [' class="n"' if i in numeric else ' class="code"' if i in code else "" for i in range(len(row))]
        return "".join(f"<{tag}{kind}>{escape(str(cell))}</{tag}>" for kind, cell in zip(kinds, row, strict=True))

    lines = [f"<tr{' class=strong' if row[0] in strong else ''}>{cells('td', row)}</tr>" for row in rows]
    return f"<table><thead><tr>{cells('th', head)}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def document(name: str, body: Sequence[str]) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(name)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


# --------------------------------------------------------------------------------------------------------- comparison


def accuracies(report: EvaluationReport) -> dict[str, float]:
    """Clean accuracy, AutoAttack's where all of it ran, the worst case, the certified one, and then each attack's."""
    standard = report.autoattack_accuracy
    whole = {} if standard is None else {"AutoAttack (standard)": standard}
    stages = {f"{result.name} {mark(result)}".rstrip(): result.robust_accuracy for result in report.attacks}
    proven = {} if report.certified_accuracy is None else {"certified": report.certified_accuracy}
    return {"clean": report.clean_accuracy, **whole, "worst case": report.robust_accuracy, **proven, **stages}


def compared_rows(reports: Mapping[str, EvaluationReport]) -> list[str]:
    """The rows of a comparison: what any of the runs has, the totals first."""
    names = dict.fromkeys(name for report in reports.values() for name in accuracies(report))
    totals = [name for name in ("clean", "AutoAttack (standard)", "worst case", "certified") if name in names]
    return [*totals, *(name for name in names if name not in totals)]


def comparison_rows(reports: Mapping[str, EvaluationReport]) -> tuple[list[str], list[list[str]]]:
    """A column for each run; a row for each attack that any of them ran."""
    shown = [accuracies(report) for report in reports.values()]
    rows = [
        ["threat model", *(report.settings["threat"]["text"] for report in reports.values())],
        ["points", *(str(report.settings["points"]) for report in reports.values())],
    ]
    if any(fast(report) for report in reports.values()):
        rows.append(["level", *("fast, NOT standard" if fast(report) else "" for report in reports.values())])
    for name in compared_rows(reports):
        rows.append([name, *(f"{values[name]:.1%}" if name in values else "not run" for values in shown)])
    if any(report.radii is not None for report in reports.values()):
        rows.append(["median certified radius", *map(median_radius, reports.values())])
    flags = [", ".join(flag.name for flag in report.flags) or "none" for report in reports.values()]
    return ["", *reports], [*rows, ["flags", *flags]]


def differences(reports: Mapping[str, EvaluationReport]) -> list[str]:
    """What keeps the runs from being compared number by number."""
    told: dict[str, Callable[[dict[str, Any]], object]] = {
        "threat models": lambda s: s["threat"]["text"] + str(s.get("clip_values_by_feature") or s["clip_values"]),
        "numbers of points": lambda s: s["points"],
        "attacks": lambda s: s["attacks"],
        "seeds or batch sizes": lambda s: (s["seed"], s["batch_size"]),
        "attack libraries": lambda s: s["attack_library"],
        "points known from a smaller eps": lambda s: s.get("reused", {}).get("eps"),
    }
    settings = [report.settings for report in reports.values()]
    return [name for name, of in told.items() if len({json.dumps(of(s)) for s in settings}) > 1]


def difference_note(reports: Mapping[str, EvaluationReport]) -> str:
    found = differences(reports)
    return f"The runs have different {', '.join(found)}: compare them with care." if found else ""


def comparison_markdown(reports: Mapping[str, EvaluationReport]) -> str:
    parts = [
        "# Robustness of " + ", ".join(reports),
        difference_note(reports),
        markdown_table(*comparison_rows(reports)),
        " ".join(constraint_notes(reports.values())),
    ]
    flags = [f"- {n}, **{f.severity}: {f.name}.** {f.evidence} {f.advice}" for n, r in reports.items() for f in r.flags]
    parts += ["## Flags", "\n".join(flags) or "None.", "## Settings"]
    parts.append(markdown_table(*settings_columns(reports)))
    return "\n\n".join(part for part in parts if part) + "\n"


def settings_columns(reports: Mapping[str, EvaluationReport]) -> tuple[list[str], list[list[str]]]:
    columns = [setting_rows(report) for report in reports.values()]
    rows = [[first[0], *(column[index][1] for column in columns)] for index, first in enumerate(columns[0])]
    return ["setting", *reports], rows


def by_units(reports: Mapping[str, EvaluationReport]) -> dict[str, dict[str, EvaluationReport]]:
    """The runs by what their eps means: a radius of another norm or range has no place on the same axis."""
    groups: dict[str, dict[str, EvaluationReport]] = {}
    for name, report in reports.items():
        unit = f"{report.settings['threat']['norm']}, inputs in {report.settings['clip_values']}"
        groups.setdefault(unit, {})[name] = report
    return groups


def comparison_html(reports: Mapping[str, EvaluationReport]) -> str:
    head, rows = comparison_rows(reports)
    note = difference_note(reports)
    flagged: list[Any] = []
    for name, report in reports.items():
        flagged += [f"<h3>{escape(name)}</h3>", flags_html(report)]
    curves: list[str] = []
    units = by_units(reports)
    for unit, runs in units.items():
        curves += [f"<h3>{escape(unit)}</h3>"] if len(units) > 1 else []
        curves.append(image_tag(curve_figure(runs), "Lines: accuracy of each run as eps grows"))
    left_out = list(dict.fromkeys(line for report in reports.values() for line in report.settings["not_run"]))
    body = [
        f"<h1>Robustness of {escape(', '.join(reports))}</h1>",
        f'<p class="flag warning">{escape(note)}</p>' if note else "",
        '<div class="scroll">' + table(head, rows) + "</div>",
        f'<p class="quiet">{escape(" ".join(constraint_notes(reports.values())))}</p>',
        image_tag(comparison_figure(reports), "Dots: accuracy of each run under each attack"),
        "<h2>Flags</h2>",
        *flagged,
        "<h2>Accuracy against eps</h2>",
        *curves,
        f'<p class="quiet">{escape(curve_note(list(reports.values())))}</p>',
        "<h2>What was not run</h2>",
        items(left_out) or "<p>Nothing was left out.</p>",
        "<h2>Settings</h2>",
        '<div class="scroll">' + table(*settings_columns(reports)) + "</div>",
    ]
    return document("Robustness of " + ", ".join(reports), body)

"""The rows of a report's tables, as plain texts."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np

from ..results import AttackResult, EvaluationResults
from .labels import (
    certificate_text,
    collect_totals,
    count,
    duration,
    interval,
    join_versions,
    mark,
    range_text,
    reused_text,
    rounding_text,
)

ATTACK_HEAD = ["attack", "what", "accuracy", "time", "images forward", "images backward"]
OWN_TITLE = "Attacks by their own measure"
CLASS_HEAD = ["label", "points", "clean", "worst case"]
CLASSES_SHOWN = 20


def attack_rows(report: EvaluationResults) -> list[list[str]]:
    """A row for the clean images, each attack within the ball, the worst case and, with radii, the certificate."""
    shown = {name: f"{value:.2%} ({interval(report, value)})" for name, value in collect_totals(report).items()}
    rows = [["clean", "no attack", shown["clean"], "", "", ""]]
    rows += [_describe_attack(result) for result in report.attacks if result.bounded]
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


def own_measure_rows(report: EvaluationResults) -> list[list[str]]:
    """A row for each attack that is not bound to the ball: its accuracy does not belong beside those that are."""
    return [_describe_attack(result) for result in report.attacks if not result.bounded]


def _describe_attack(result: AttackResult) -> list[str]:
    calls = [f"{result.forward_calls:,}", f"{result.backward_calls:,}"]
    name = [result.name, f"{result.summary} {mark(result)}".rstrip(), f"{result.robust_accuracy:.2%}"]
    return [*name, duration(result.seconds), *calls]


def class_rows(report: EvaluationResults) -> list[list[str]]:
    """Accuracies of each label; of many labels, those with the lowest robust accuracy."""
    found = report.by_class()
    if len(found) > CLASSES_SHOWN:
        found = sorted(found, key=lambda each: (each.robust, each.clean))[:CLASSES_SHOWN]
    return [[str(each.label), str(each.points), f"{each.clean:.1%}", f"{each.robust:.1%}"] for each in found]


def class_note(report: EvaluationResults) -> str:
    """The sentence above the table of classes."""
    number = len(np.unique(report.labels))
    shown = (
        f"The {CLASSES_SHOWN} of {number} labels with the lowest robust accuracy. " if number > CLASSES_SHOWN else ""
    )
    return f"{shown}Each point's verdict under each attack stands in verdicts.csv beside this report."


def setting_rows(report: EvaluationResults) -> list[list[str]]:
    """The settings of an evaluation, by name."""
    s = report.settings
    diagnostics = s["diagnostics"]
    return [
        ["threat model", f"{s['threat']['norm']}, eps {s['threat']['eps']:.6g} in the range {range_text(s)}"],
        ["points", f"{s['points']} of shape {tuple(s['input_shape'])}, {s['classes']} classes"],
        ["known from a smaller eps", reused_text(report)],
        ["attack libraries", join_versions(s["attack_library"]) or "none"],
        ["backend", s["backend"]],
        ["seed, logical batch size", f"{s['seed']}, {s['batch_size']} (physical: {s['physical_batch_size']})"],
        ["processes", f"{s['processes']}; times are sums over them"],
        ["architecture", f"{s['network']}, weights {s['network_sha256'][:12]}"],
        ["preprocessing", "; ".join(s["preprocessing"]) or "none"],
        ["device, type", f"{s['device']}, {s['dtype']}"],
        ["verdict", f"{s['verdict_passes']} fresh forward pass(es) of the estimator on the final image"],
        [
            "tolerance",
            f"distances (in float64) of up to eps + {s['tolerance']:.2g} are within eps; images that rounding alone "
            "may have put farther out are drawn back, and judged there",
        ],
        ["certificate", certificate_text(report)],
        ["images of 8 bits", rounding_text(report)],
        ["versions", join_versions(s["versions"])],
        [
            "diagnostics",
            f"{count(diagnostics['points'], 'point')}, {duration(diagnostics['seconds'])}, "
            f"{diagnostics['forward_calls']:,} images forward, {diagnostics['backward_calls']:,} backward",
        ],
        ["date", s["date"].replace("T", " ")],
    ]


def curve_rows(report: EvaluationResults) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table of accuracy against eps."""
    rows = [[f"{eps:.4g}", f"{accuracy:.1%}"] for eps, accuracy in report.curve]
    if report.radii is None:
        return ["eps", "accuracy"], rows
    proven = [[f"{report.certified_at(eps):.1%}"] for eps, _ in report.curve]
    return ["eps", "accuracy", "certified"], [row + more for row, more in zip(rows, proven, strict=True)]


def curve_note(reports: Sequence[EvaluationResults]) -> str:
    """The sentences above the curve of accuracy against eps."""
    counts = sorted({report.settings["diagnostics"]["points"] for report in reports})
    points = count(counts[0], "point") if len(counts) == 1 else f"{counts[0]} to {counts[-1]} points"
    note = (
        f"A short attack of our own, 10 steps on logit differences, on the first {points}, up to the ball that "
        f"holds every image. It shows whether accuracy falls as eps grows; it is not counted in the accuracies above."
    )
    if any(len(report.curve) == 1 for report in reports):
        note += " Without gradients that reach the input it cannot run."
    if any(report.radii is not None for report in reports):
        note += " Dashed: the certified accuracy of all points, which no attack can bring down."
    return note


def parameter_rows(report: EvaluationResults) -> list[list[str]]:
    """The parameters of each attack."""
    return [[result.name, json.dumps(result.parameters)[1:-1] or "none"] for result in report.attacks]

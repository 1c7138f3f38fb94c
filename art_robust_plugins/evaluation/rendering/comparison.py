"""The rows of tables that compare evaluations, and the differences that make a comparison unfair."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..results import EvaluationResults
from .labels import is_fast, mark, median_radius, range_text
from .tables import setting_rows


def collect_accuracies(report: EvaluationResults) -> dict[str, float]:
    """The accuracies by name: clean, AutoAttack (if all of it ran), worst case, certified, then each attack's."""
    standard = report.autoattack_accuracy
    whole = {} if standard is None else {"AutoAttack (standard)": standard}
    stages = {f"{result.name} {mark(result)}".rstrip(): result.robust_accuracy for result in report.attacks}
    proven = {} if report.certified_accuracy is None else {"certified": report.certified_accuracy}
    return {"clean": report.clean_accuracy, **whole, "worst case": report.robust_accuracy, **proven, **stages}


def list_compared_rows(reports: Mapping[str, EvaluationResults]) -> list[str]:
    """The names of a comparison's rows: every accuracy that any run has, the totals first."""
    names = dict.fromkeys(name for report in reports.values() for name in collect_accuracies(report))
    totals = [name for name in ("clean", "AutoAttack (standard)", "worst case", "certified") if name in names]
    return [*totals, *(name for name in names if name not in totals)]


def comparison_rows(reports: Mapping[str, EvaluationResults]) -> tuple[list[str], list[list[str]]]:
    """A column for each run; a row for each attack that any of them ran."""
    shown = [collect_accuracies(report) for report in reports.values()]
    rows = [
        ["threat model", *(report.settings["threat"]["text"] for report in reports.values())],
        ["points", *(str(report.settings["points"]) for report in reports.values())],
    ]
    if any(is_fast(report) for report in reports.values()):
        rows.append(["level", *("fast, NOT standard" if is_fast(report) else "" for report in reports.values())])
    for name in list_compared_rows(reports):
        rows.append([name, *(f"{values[name]:.1%}" if name in values else "not run" for values in shown)])
    if any(report.radii is not None for report in reports.values()):
        rows.append(["median certified radius", *map(median_radius, reports.values())])
    flags = [", ".join(flag.name for flag in report.flags) or "none" for report in reports.values()]
    return ["", *reports], [*rows, ["flags", *flags]]


def list_differences(reports: Mapping[str, EvaluationResults]) -> list[str]:
    """The settings in which the runs differ, so that their numbers cannot be compared one by one."""
    told: dict[str, Callable[[dict[str, Any]], object]] = {
        "threat models": lambda s: s["threat"]["text"] + range_text(s),
        "numbers of points": lambda s: s["points"],
        "attacks": lambda s: s["attacks"],
        "seeds or batch sizes": lambda s: (s["seed"], s["batch_size"]),
        "attack libraries": lambda s: s["attack_library"],
        "points known from a smaller eps": lambda s: s.get("reused", {}).get("eps"),
    }
    settings = [report.settings for report in reports.values()]
    return [name for name, of in told.items() if len({json.dumps(of(s)) for s in settings}) > 1]


def difference_note(reports: Mapping[str, EvaluationResults]) -> str:
    """The settings in which the runs differ, as a sentence; "" for none."""
    found = list_differences(reports)
    return f"The runs have different {', '.join(found)}: compare them with care." if found else ""


def settings_columns(reports: Mapping[str, EvaluationResults]) -> tuple[list[str], list[list[str]]]:
    """The head and the rows of a table of settings, with a column for each run."""
    columns = [setting_rows(report) for report in reports.values()]
    rows = [[first[0], *(column[index][1] for column in columns)] for index, first in enumerate(columns[0])]
    return ["setting", *reports], rows


def group_by_units(reports: Mapping[str, EvaluationResults]) -> dict[str, dict[str, EvaluationResults]]:
    """The runs, grouped by the unit of their eps: radii of other norms or ranges do not share an axis."""
    groups: dict[str, dict[str, EvaluationResults]] = {}
    for name, report in reports.items():
        unit = f"{report.settings['threat']['norm']}, inputs in {report.settings['clip_values']}"
        groups.setdefault(unit, {})[name] = report
    return groups

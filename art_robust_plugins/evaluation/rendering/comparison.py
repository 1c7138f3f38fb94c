"""The tables of pages that compare evaluations, and the differences that make a comparison unfair."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from ..ranking import Reports, rank
from ..results import AttackResult, EvaluationResults
from .labels import count, is_fast, mark, range_text
from .tables import setting_rows

Table = tuple[list[str], list[list[str]]]
"""The head and the rows."""


def name_attack(result: AttackResult) -> str:
    """An attack's name with its mark, where it is not bound to the ball."""
    return f"{result.name} {mark(result)}".rstrip()


def is_stage(result: AttackResult) -> bool:
    """Whether an attack is a stage of a suite, such as AutoAttack's, within the ball."""
    return result.bounded and result.cumulative


def is_single(result: AttackResult) -> bool:
    """Whether an attack within the ball acts on all points."""
    return result.bounded and not result.cumulative


def is_unbounded(result: AttackResult) -> bool:
    """Whether an attack is not bound to the ball."""
    return not result.bounded


def describe_conditions(reports: Reports) -> str:
    """The threat model, the points and the classes, where all reports share them."""
    settings = [report.settings for report in reports.values()]
    told = [
        {f"within {each['threat']['text']}" for each in settings},
        {count(each["points"], "point") for each in settings},
        {f"{each['classes']} classes" for each in settings},
    ]
    dates = sorted(str(each["date"])[:10] for each in settings)
    shared = [next(iter(texts)) for texts in told if len(texts) == 1]
    return ", ".join([*shared, dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"])


def attack_table(reports: Reports, wanted: Callable[[AttackResult], bool]) -> Table | None:
    """A row for each network, by worst case, and a column for each of the wanted attacks; None if none ran."""
    found = {
        name: {name_attack(result): result.robust_accuracy for result in reports[name].attacks if wanted(result)}
        for name in rank(reports)
    }
    attacks = list(dict.fromkeys(attack for accuracies in found.values() for attack in accuracies))
    if not attacks:
        return None
    rows = [
        [name, *(f"{accuracies[attack]:.1%}" if attack in accuracies else "not run" for attack in attacks)]
        for name, accuracies in found.items()
    ]
    return ["network", *attacks], rows


def list_differences(reports: Reports) -> list[str]:
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
    found = [name for name, of in told.items() if len({json.dumps(of(s)) for s in settings}) > 1]
    return [*found, *(["levels"] if len({is_fast(report) for report in reports.values()}) > 1 else [])]


def difference_note(reports: Reports) -> str:
    """The settings in which the runs differ, as a sentence; "" for none."""
    found = list_differences(reports)
    return f"The runs have different {', '.join(found)}: compare them with care." if found else ""


def settings_tables(reports: Reports) -> tuple[Table, Table | None]:
    """The settings that all runs share, and those in which they differ with a row for each run."""
    columns = {name: dict(setting_rows(report)) for name, report in reports.items()}
    first = next(iter(columns.values()))
    shared = {key: value for key, value in first.items() if all(each[key] == value for each in columns.values())}
    others = [key for key in first if key not in shared]
    own = [[name, *(values[key] for key in others)] for name, values in columns.items()]
    same = (["setting", "value"], [[key, value] for key, value in shared.items()])
    return same, (["network", *others], own) if others else None


def group_by_units(reports: Mapping[str, EvaluationResults]) -> dict[str, dict[str, EvaluationResults]]:
    """The runs, grouped by the unit of their eps: radii of other norms or ranges do not share an axis."""
    groups: dict[str, dict[str, EvaluationResults]] = {}
    for name, report in reports.items():
        unit = f"{report.settings['threat']['norm']}, inputs in {report.settings['clip_values']}"
        groups.setdefault(unit, {})[name] = report
    return groups

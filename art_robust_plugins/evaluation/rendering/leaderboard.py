"""The leaderboard of a comparison: a row for each network, by worst case."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from ..flags import Flag
from ..ranking import Groups, Reports, compute_wilson_interval, rank
from ..results import EvaluationResults
from .conclusion import list_tests
from .curves import History
from .labels import duration, is_fast, median_radius, worst_case_mark
from .svg import draw_interval

ASCENDING = ("network", "threat model", "p against the best", "training", "evaluation", "passes", "flags")
"""The columns whose smallest value comes first at the first press."""


@dataclass(frozen=True)
class Cell:
    """A cell: its text, the number that it is sorted by, and what stands below the text.

    Attributes:
        text: what is copied.
        value: None for a cell without a number, which is sorted last.
        note: small, below the text.
        bar: a drawing below the text.
        href: where the text links to.
        flags: badges in place of the text.
    """

    text: str
    value: float | None = None
    note: str = ""
    bar: Markup | None = None
    href: str = ""
    flags: Sequence[Flag] = field(default=())


def make_leaderboard(
    reports: Reports, pages: Mapping[str, str], histories: Mapping[str, History], groups: Groups
) -> tuple[list[str], list[list[Cell]]]:
    """The head and the rows; columns that would be empty for all, or the same for all of them, are left out."""
    tests = list_tests(groups)
    order = rank(reports)
    rows = [
        {
            "network": Cell(name, href=pages.get(name, "")),
            **_describe_conditions(reports[name]),
            **_list_accuracies(reports[name]),
            "p against the best": Cell(tests[name], _read_p(tests[name])),
            "median certified radius": _describe_radius(reports[name]),
            "training": _describe_training(histories.get(name, ())),
            **_describe_costs(reports[name]),
            "flags": _describe_flags(reports[name]),
        }
        for name in order
    ]
    left_out = {
        name
        for name in rows[0]
        if (name in ("threat model", "points", "level") and len({row[name].text for row in rows}) == 1)
        or (name in ("training", "certified", "AutoAttack", "median certified radius") and not _has_numbers(rows, name))
        or (name == "p against the best" and len(rows) == 1)
    }
    head = [name for name in rows[0] if name not in left_out]
    return head, [[row[name] for name in head] for row in rows]


def explain_leaderboard(head: Sequence[str]) -> str:
    """Explain the columns that are there."""
    told = {
        "": "Bars: accuracy from 0 to 100%, with the 95 % confidence interval (Wilson).",
        "AutoAttack": "AutoAttack: the standard version, whole.",
        "worst case": "Worst case: points that withstood every attack within the threat model.",
        "certified": "Certified: proven for every image within eps.",
        "p against the best": "p: McNemar's exact test of the worst cases on the same points, two-sided, not corrected "
        "for the number of networks; the best is the highest worst case without a severe flag.",
        "passes": "Passes: images that went forward or backward through the network during attacks.",
    }
    return " ".join(text for name, text in told.items() if name in ("", *head))


def leaderboard_texts(reports: Reports, groups: Groups) -> tuple[list[str], list[list[str]]]:
    """The leaderboard as plain texts, with intervals in brackets."""
    head, rows = make_leaderboard(reports, {}, {}, groups)
    return head, [[f"{cell.text} ({cell.note})" if cell.bar is not None else cell.text for cell in row] for row in rows]


def _has_numbers(rows: Sequence[Mapping[str, Cell]], name: str) -> bool:
    return any(row[name].value is not None for row in rows)


def _describe_conditions(report: EvaluationResults) -> dict[str, Cell]:
    return {
        "threat model": Cell(report.settings["threat"]["text"], report.settings["threat"]["eps"]),
        "points": Cell(str(report.settings["points"]), len(report.labels)),
        "level": Cell("fast, NOT standard" if is_fast(report) else "", float(is_fast(report))),
    }


def _list_accuracies(report: EvaluationResults) -> dict[str, Cell]:
    worst = _describe_accuracy(report, report.robust_accuracy, worst_case_mark(report))
    return {
        "worst case": worst,
        "AutoAttack": _describe_accuracy(report, report.autoattack_accuracy),
        "clean": _describe_accuracy(report, report.clean_accuracy),
        "certified": _describe_accuracy(report, report.certified_accuracy, missing="not certified"),
    }


def _describe_accuracy(
    report: EvaluationResults, accuracy: float | None, told: str = "", missing: str = "not run"
) -> Cell:
    if accuracy is None:
        return Cell(missing)
    low, high = compute_wilson_interval(accuracy, len(report.labels))
    note = f"{100 * low:.1f} to {100 * high:.1f}%"
    return Cell(f"{accuracy:.1%} {told}".rstrip(), accuracy, note, draw_interval(accuracy, low, high))


def _describe_radius(report: EvaluationResults) -> Cell:
    if report.radii is None:
        return Cell("not certified")
    # A page cannot sort by infinity.
    return Cell(median_radius(report), min(float(np.median(report.radii.clip(0))), sys.float_info.max))


def _describe_training(history: History) -> Cell:
    seconds = [epoch.get("seconds") for epoch in history]
    if not seconds or not all(isinstance(each, int | float) for each in seconds):
        return Cell("unknown")
    total = float(sum(each for each in seconds if each is not None))
    return Cell(duration(total), total, f"{len(seconds)} epoch{'s' * (len(seconds) > 1)}")


def _describe_costs(report: EvaluationResults) -> dict[str, Cell]:
    seconds = sum(result.seconds for result in report.attacks)
    forward = sum(result.forward_calls for result in report.attacks)
    backward = sum(result.backward_calls for result in report.attacks)
    return {
        "evaluation": Cell(duration(seconds), seconds),
        "passes": Cell(f"{forward + backward:,}", forward + backward, f"{backward:,} backward"),
    }


def _describe_flags(report: EvaluationResults) -> Cell:
    weights = {"severe": 1e6, "warning": 1e3, "note": 1.0}
    names = ", ".join(flag.name for flag in report.flags)
    return Cell(names or "none", sum(weights.get(flag.severity, 1.0) for flag in report.flags), flags=report.flags)


def _read_p(text: str) -> float | None:
    if text.startswith("the best"):
        return 2.0
    return None if text == "not comparable" else float(text.rsplit(maxsplit=1)[-1])

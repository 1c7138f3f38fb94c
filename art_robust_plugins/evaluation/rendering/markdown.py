"""Reports and comparisons as Markdown; every text that a report holds is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...escapes import escape_markdown
from ..flags import Flag
from ..ranking import Groups, group_comparable
from ..results import EvaluationResults
from .comparison import attack_table, difference_note, is_single, is_stage, is_unbounded, settings_tables
from .conclusion import conclude
from .labels import attack_notes, count, own_measure_note, robust_label, title
from .leaderboard import explain_leaderboard, leaderboard_texts
from .tables import (
    ATTACK_HEAD,
    CLASS_HEAD,
    OWN_TITLE,
    attack_rows,
    class_note,
    class_rows,
    curve_note,
    curve_rows,
    own_measure_rows,
    parameter_rows,
    setting_rows,
)


def report_markdown(report: EvaluationResults) -> str:
    """One report as Markdown."""
    flags = [f"- {_format_flag(flag)}" for flag in report.flags]
    parts = [
        f"# {escape_markdown(title(report))}",
        f"Clean accuracy **{report.clean_accuracy:.2%}**, {robust_label(report)} **{report.robust_accuracy:.2%}**, on "
        f"{count(report.settings['points'], 'point')}.",
        "## Flags",
        "\n".join(flags) or "None of the checks found a sign of masked gradients or of a broken evaluation.",
        "## Attacks",
        markdown_table(ATTACK_HEAD, attack_rows(report)),
        " ".join(attack_notes(report)),
        *_describe_own_measures(report),
        "## Accuracy per class",
        class_note(report),
        markdown_table(CLASS_HEAD, class_rows(report)),
        "## Settings",
        markdown_table(["setting", "value"], setting_rows(report)),
        "## What was not run",
        "\n".join(f"- {escape_markdown(line)}" for line in report.settings["not_run"]) or "Nothing was left out.",
        "## Accuracy against eps",
        curve_note([report]),
        markdown_table(*curve_rows(report)),
        "## Attack parameters",
        markdown_table(["attack", "parameters"], parameter_rows(report)),
    ]
    return "\n\n".join(parts) + "\n"


def comparison_markdown(reports: Mapping[str, EvaluationResults], groups: Groups | None = None) -> str:
    """Several reports side by side as Markdown; ``groups`` as for `conclude`."""
    groups = group_comparable(reports) if groups is None else groups
    head, rows = leaderboard_texts(reports, groups)
    parts = [
        "# Robustness of " + escape_markdown(", ".join(reports)),
        escape_markdown(conclude(reports, groups)),
        difference_note(reports),
        "## Leaderboard",
        markdown_table(head, rows),
        escape_markdown(explain_leaderboard(head)),
    ]
    tables = {"Stages of AutoAttack": is_stage, "Other attacks within the ball": is_single, OWN_TITLE: is_unbounded}
    for title_of_table, wanted in tables.items():
        if (found := attack_table(reports, wanted)) is not None:
            parts += [f"## {title_of_table}", markdown_table(*found)]
    parts.append(own_measure_note(reports.values()))
    flags = [
        f"- {escape_markdown(name)}, {_format_flag(flag)}" for name, report in reports.items() for flag in report.flags
    ]
    parts += ["## Flags", "\n".join(flags) or "None.", "## Settings"]
    shared, own = settings_tables(reports)
    parts += [markdown_table(*shared), "" if own is None else markdown_table(*own)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _describe_own_measures(report: EvaluationResults) -> list[str]:
    rows = own_measure_rows(report)
    return [f"## {OWN_TITLE}", own_measure_note([report]), markdown_table(ATTACK_HEAD, rows)] if rows else []


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose cells are escaped."""
    lines = [head, *rows]
    first, *rest = [f"| {' | '.join(escape_markdown(str(cell)) for cell in line)} |" for line in lines]
    return "\n".join([first, f"| {' | '.join(['---'] * len(head))} |", *rest])


def _format_flag(flag: Flag) -> str:
    told = escape_markdown(f"{flag.evidence} {flag.advice}")
    return f"**{escape_markdown(flag.severity)}: {escape_markdown(flag.name)}.** {told}"

"""A report as a short table for the terminal."""

from __future__ import annotations

from ...escapes import printable
from ..results import AttackResult, EvaluationResults
from .labels import (
    collect_totals,
    count,
    duration,
    interval,
    is_fast,
    is_swept,
    mark,
    reused_text,
    rounding_text,
    title,
)


def headline(report: EvaluationResults) -> str:
    """A report in one line."""
    told = [
        count(report.settings["points"], "point"),
        *(f"{k} {value:.2%}" for k, value in collect_totals(report).items()),
    ]
    told += [count(len(report.flags), "flag")] if report.flags else []
    return printable(f"{title(report)}: {', '.join(told)}")


def summary(report: EvaluationResults) -> str:
    """A short table for the terminal."""
    width = max(len(result.name) for result in report.attacks)
    width = max(width, len("worst case"))
    lines = [f"{title(report)}: {count(report.settings['points'], 'point')}, {report.settings['classes']} classes"]
    sure = {name: f"95 % confidence: {interval(report, value)}" for name, value in collect_totals(report).items()}
    lines.append(f"  {'clean':<{width}}  {report.clean_accuracy:7.2%}  {sure['clean']}")
    rows = {result: f"  {result.name:<{width}}  {_describe_attack(result)}".rstrip() for result in report.attacks}
    lines += [row for result, row in rows.items() if result.bounded]
    lines.append(f"  {'worst case':<{width}}  {report.robust_accuracy:7.2%}  {sure['worst case']}")
    if "certified" in sure:
        lines.append(f"  {'certified':<{width}}  {report.certified_accuracy:7.2%}  {sure['certified']}")
    own = [row for result, row in rows.items() if not result.bounded]
    lines += ["  attacks that are not bound to eps, not to be set beside the others:", *own] if own else []
    lines += [f"  known from a smaller eps: {reused_text(report)}"] if is_swept(report) else []
    lines += [f"  images of 8 bits: {rounding_text(report)}"] if report.settings.get("eight_bit") else []
    lines += [f"  not run: {line}" for line in report.settings["could_not_run"]]
    if is_fast(report):
        lines += [f"  {line}" for line in report.settings["not_run"] if "fast level" in line]
    lines += [f"  {flag.severity}: {flag.name}: {flag.evidence} {flag.advice}" for flag in report.flags]
    return "\n".join(map(printable, lines))


def _describe_attack(result: AttackResult) -> str:
    return f"{result.robust_accuracy:7.2%}  {duration(result.seconds):>9}  {mark(result)}"

"""Reports and comparisons as HTML pages that need no other file.

The pages are templates of jinja2, which escapes every value that is put into them; none is marked as safe.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ...escapes import printable
from ..results import EvaluationResults
from .comparison import comparison_rows, difference_note, group_by_units, settings_columns
from .explorer import explorer_data
from .labels import attack_notes, constraint_notes, join_versions, robust_label, title
from .tables import (
    ATTACK_HEAD,
    CLASS_HEAD,
    attack_rows,
    class_note,
    class_rows,
    curve_note,
    parameter_rows,
    setting_rows,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def render_report(report: EvaluationResults) -> str:
    """One report as a page."""
    from .figures import accuracy_figure, curve_figure, examples_figure

    settings = report.settings
    told = [
        settings["network"],
        f"{settings['points']} points",
        f"{settings['classes']} classes",
        f"seed {settings['seed']}",
        f"logical batch size {settings['batch_size']}",
        join_versions(settings["attack_library"]) or "no library",
        settings["date"],
    ]
    drawn = examples_figure(report)
    return _render(
        "report",
        title=title(report),
        report=report,
        told=", ".join(map(str, told)),
        numbers=_list_numbers(report),
        accuracy_figure=_encode(accuracy_figure(report)),
        attack_notes=" ".join(attack_notes(report)),
        attack_head=ATTACK_HEAD,
        attack_rows=attack_rows(report),
        class_note=class_note(report),
        class_head=CLASS_HEAD,
        class_rows=class_rows(report),
        curve_figure=_encode(curve_figure({"accuracy": report})),
        curve_note=curve_note([report]),
        examples_figure=None if drawn is None else _encode(drawn[0]),
        amplified=None if drawn is None else f"{drawn[1]:.2g}",
        no_examples="the inputs are not images" if len(report.examples.indices) else "no attack broke a point",
        explorer=explorer_data({title(report): report}),
        setting_rows=setting_rows(report),
        parameter_rows=parameter_rows(report),
    )


def render_comparison(reports: Mapping[str, EvaluationResults]) -> str:
    """Named reports on one page."""
    from .figures import comparison_figure, curve_figure

    head, rows = comparison_rows(reports)
    setting_head, settings = settings_columns(reports)
    return _render(
        "comparison",
        title="Robustness of " + ", ".join(reports),
        note=difference_note(reports),
        head=head,
        rows=rows,
        constraint_notes=" ".join(constraint_notes(reports.values())),
        accuracy_figure=_encode(comparison_figure(reports)),
        reports=list(reports.items()),
        curves=[(unit, _encode(curve_figure(runs))) for unit, runs in group_by_units(reports).items()],
        curve_note=curve_note(list(reports.values())),
        not_run=list(dict.fromkeys(line for report in reports.values() for line in report.settings["not_run"])),
        setting_head=setting_head,
        setting_rows=settings,
    )


def render_summary(report: EvaluationResults) -> str:
    """One report as a table, without pictures, for a notebook's page."""
    return _render(
        "summary",
        title=title(report),
        points=report.settings["points"],
        report=report,
        attack_head=ATTACK_HEAD,
        attack_rows=attack_rows(report),
    )


def _list_numbers(report: EvaluationResults) -> list[tuple[str, str]]:
    """The large numbers at the head of a page, and what they are."""
    points = report.settings["points"]
    numbers = [
        (f"{report.clean_accuracy:.1%}", "clean accuracy"),
        (f"{report.robust_accuracy:.1%}", robust_label(report)),
        (f"{round(report.robust_accuracy * points)} of {points}", "points left standing"),
    ]
    if report.certified_accuracy is not None:
        numbers.append((f"{report.certified_accuracy:.1%}", "certified accuracy, proven within eps"))
    if report.autoattack_accuracy is not None and len(report.attacks) > 4:
        numbers.insert(1, (f"{report.autoattack_accuracy:.1%}", "robust accuracy, AutoAttack (standard)"))
    return numbers


@cache
def _load_environment() -> Environment:
    return Environment(
        loader=PackageLoader("art_robust_plugins.evaluation.rendering"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_make_printable,
        keep_trailing_newline=True,
    )


def _render(name: str, **values: Any) -> str:
    return _load_environment().get_template(f"{name}.html.j2").render(values)


def _make_printable(value: Any) -> Any:
    """Make a value printable in a template; the output of macros is escaped already."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _encode(figure: Figure) -> str:
    from .figures import draw_picture

    return base64.b64encode(draw_picture(figure)).decode()

"""Reports and comparisons as HTML pages that need no other file.

The pages are templates of jinja2, which escapes every value that is put into them. Only our own style, scripts and
drawings are marked as safe (`svg` escapes the texts in drawings). A page's policy lets nothing else run or load.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from hashlib import sha256
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ...escapes import printable
from ..ranking import Groups, group_comparable, have_same_points, rank
from ..results import EvaluationResults
from .comparison import (
    attack_table,
    describe_conditions,
    difference_note,
    group_by_units,
    is_single,
    is_stage,
    is_unbounded,
    settings_tables,
)
from .conclusion import conclude
from .curves import History, draw_accuracies, draw_curves, draw_own_measures, draw_training, list_curve_values
from .examples import draw_examples
from .explorer import explorer_data
from .labels import attack_notes, count, count_networks, join_versions, own_measure_note, robust_label, title
from .leaderboard import ASCENDING, explain_leaderboard, make_leaderboard
from .svg import draw_key, draw_kind_key
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

COMPARED, COMPARED_BYTES = 60, 500_000
"""The most points whose images are in a comparison, and the most bytes of these."""


def render_report(report: EvaluationResults) -> str:
    """One report as a page."""
    settings = report.settings
    told = [
        settings["network"],
        count(settings["points"], "point"),
        f"{settings['classes']} classes",
        f"seed {settings['seed']}",
        f"logical batch size {settings['batch_size']}",
        join_versions(settings["attack_library"]) or "no library",
        settings["date"],
    ]
    examples, amplified = draw_examples(report)
    return _render(
        "report",
        title=title(report),
        report=report,
        told=", ".join(map(str, told)),
        numbers=_list_numbers(report),
        accuracies=draw_accuracies(report),
        attack_notes=" ".join(attack_notes(report)),
        attack_head=ATTACK_HEAD,
        attack_rows=attack_rows(report),
        own_title=OWN_TITLE,
        own_rows=own_measure_rows(report),
        own_measures=draw_own_measures(report),
        own_measure_note=own_measure_note([report]),
        class_note=class_note(report),
        class_head=CLASS_HEAD,
        class_rows=class_rows(report),
        curve=draw_curves({"accuracy": report}, {"accuracy": 0}),
        curve_note=curve_note([report]),
        curve_values=curve_rows(report),
        kinds=_list_kinds([report]),
        examples=examples,
        amplified=f"{amplified:.2g}",
        no_examples="the inputs are not images" if len(report.examples.indices) else "no attack broke a point",
        explorer=explorer_data({title(report): report}),
        setting_rows=setting_rows(report),
        parameter_rows=parameter_rows(report),
        styles=[_read_asset("explorer.css.j2")],
        scripts=[_read_asset("page.js"), _read_asset("explorer.js")],
    )


def render_comparison(
    reports: Mapping[str, EvaluationResults],
    pages: Mapping[str, str] | None = None,
    histories: Mapping[str, History] | None = None,
    groups: Groups | None = None,
) -> str:
    """Named reports on one page; ``pages`` are relative addresses of their own pages, ``groups`` as for `conclude`."""
    groups = group_comparable(reports) if groups is None else groups
    numbers = {name: number for number, name in enumerate(rank(reports))}
    ordered = {name: reports[name] for name in numbers}
    head, rows = make_leaderboard(reports, pages or {}, histories or {}, groups)
    shared_settings, own_settings = settings_tables(reports)
    first, *others = (next(iter(group.values())) for group in groups)
    same = all(have_same_points(first, other) for other in others)
    training = draw_training({name: (histories or {}).get(name, ()) for name in ordered}, numbers)
    return _render(
        "comparison",
        title="Robustness of " + (", ".join(reports) if len(reports) < 4 else count_networks(reports)),
        told=describe_conditions(reports),
        conclusion=conclude(reports, groups),
        note=difference_note(reports),
        caption=f"{count_networks(reports)} by worst case" if len(reports) > 1 else "One network",
        head=head,
        rows=rows,
        ascending=ASCENDING,
        explanation=explain_leaderboard(head),
        stages=attack_table(reports, is_stage),
        singles=attack_table(reports, is_single),
        unbounded=attack_table(reports, is_unbounded),
        own_title=OWN_TITLE,
        own_measure_note=own_measure_note(reports.values()),
        names=list(numbers),
        keys=[draw_key(number) for number in range(len(numbers))],
        curves=[
            (draw_curves(runs, numbers, unit), _list_kinds(list(runs.values())))
            for unit, runs in group_by_units(ordered).items()
        ],
        curve_note=curve_note(list(reports.values())),
        curve_values=list_curve_values(ordered),
        training=training,
        trained=sorted({number for drawn in training for number in drawn.series}),
        flagged=[(name, report) for name, report in ordered.items() if report.flags],
        not_run=list(dict.fromkeys(line for report in reports.values() for line in report.settings["not_run"])),
        shared_settings=shared_settings,
        own_settings=own_settings,
        explorer=explorer_data(ordered, shown=COMPARED, shown_bytes=COMPARED_BYTES) if same else None,
        styles=[_read_asset("explorer.css.j2")],
        scripts=[_read_asset("page.js"), _read_asset("explorer.js")],
    )


def _list_kinds(reports: Sequence[EvaluationResults]) -> list[tuple[str, str, Markup]]:
    """The kinds of lines in a figure of accuracy against eps, with what they are; none where there is one kind."""
    if all(report.radii is None for report in reports):
        return []
    told = {"solid": "under a short attack", "dashed": "certified"}
    return [(kind, text, draw_kind_key(kind)) for kind, text in told.items()]


def render_summary(report: EvaluationResults) -> str:
    """One report as a table, without pictures, for a notebook's page."""
    return _render(
        "summary",
        title=title(report),
        points=report.settings["points"],
        report=report,
        attack_head=ATTACK_HEAD,
        attack_rows=attack_rows(report),
        own_title=OWN_TITLE,
        own_rows=own_measure_rows(report),
    )


def _list_numbers(report: EvaluationResults) -> list[tuple[str, str]]:
    """The large numbers at the head of a page, and what they are."""
    points = report.settings["points"]
    numbers = [
        (f"{report.clean_accuracy:.1%}", "clean accuracy"),
        (f"{report.robust_accuracy:.1%}", f"{robust_label(report)}: {report.robust.sum()} of {count(points, 'point')}"),
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


def _render(name: str, *, scripts: Sequence[Markup] = (), styles: Sequence[Markup] = (), **values: Any) -> str:
    """A page with the style of all of them, more ``styles``, and ``scripts``; nothing else is run or loaded by it."""
    styles = [_read_asset("style.css.j2"), *styles]
    page = {"styles": styles, "scripts": scripts, "policy": _make_policy(styles, scripts)}
    return _load_environment().get_template(f"{name}.html.j2").render({**page, **values})


@cache
def _read_asset(name: str) -> Markup:
    """A style or a script of ours, as it stands."""
    source, _, _ = _load_environment().loader.get_source(_load_environment(), name)  # type: ignore[union-attr]
    return Markup(source)


def _make_policy(styles: Sequence[str], scripts: Sequence[str]) -> str:
    """A Content-Security-Policy by which a page runs these scripts alone, and loads nothing from anywhere."""
    hashes = {kind: " ".join(map(_hash, texts)) or "'none'" for kind, texts in (("script", scripts), ("style", styles))}
    sources = [f"{kind}-src {allowed}" for kind, allowed in hashes.items()]
    return "; ".join(["default-src 'none'", "img-src data:", *sources, "base-uri 'none'", "form-action 'none'"])


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(sha256(text.encode()).digest()).decode()}'"


def _make_printable(value: Any) -> Any:
    """Make a value printable in a template; the output of macros is escaped already."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value

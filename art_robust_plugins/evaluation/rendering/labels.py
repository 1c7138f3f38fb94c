"""Words for an evaluation: its title, and what each of its numbers means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..ranking import compute_wilson_interval
from ..results import AttackResult, EvaluationResults


def title(report: EvaluationResults) -> str:
    """The title, which names AutoAttack only if exactly its stages ran."""
    settings = report.settings
    threat = settings["threat"]["text"] + (", in a sweep over eps" if is_swept(report) else "")
    if is_fast(report):
        return f"Fast evaluation, NOT the standard one, {threat}"
    if settings["autoattack"] and len(report.attacks) == 4:
        return f"AutoAttack, {threat}"
    return f"Robustness evaluation, {threat}"


def range_text(settings: Mapping[str, Any]) -> str:
    """The range of the inputs, by feature where they differ."""
    return str(settings.get("clip_values_by_feature") or settings["clip_values"])


def is_fast(report: EvaluationResults) -> bool:
    """Whether stages of the fast level ran in place of AutoAttack's."""
    return bool(report.settings.get("fast")) and not report.settings["autoattack"]


def is_swept(report: EvaluationResults) -> bool:
    """Whether points that a smaller eps broke were not attacked again."""
    return report.settings.get("reused") is not None


def robust_label(report: EvaluationResults) -> str:
    """The meaning of ``robust_accuracy`` in this report."""
    known = ", with points known from a smaller eps" if is_swept(report) else ""
    if not any(result.bounded for result in report.attacks):
        return "correct clean, and not broken within eps by any attack (not an adversarial accuracy)"
    if report.settings["autoattack"] and len(report.attacks) == 4:
        return f"robust accuracy, AutoAttack (standard){known}"
    if is_fast(report):
        return f"robust accuracy, fast level: NOT the standard evaluation{known}"
    return f"robust accuracy, worst case over all attacks{known}"


def worst_case_mark(report: EvaluationResults) -> str:
    """A note beside the worst case where it is not that of a whole evaluation at one eps."""
    found = [*(["fast, NOT standard"] if is_fast(report) else []), *(["in a sweep"] if is_swept(report) else [])]
    return f"({', '.join(found)})" if found else ""


def collect_totals(report: EvaluationResults) -> dict[str, float]:
    """The accuracies over all attacks by name: clean, worst case and, where there are radii, certified."""
    certified = report.certified_accuracy
    proven = {} if certified is None else {"certified": certified}
    return {"clean": report.clean_accuracy, "worst case": report.robust_accuracy, **proven}


def interval(report: EvaluationResults, accuracy: float) -> str:
    """Wilson's 95 % confidence interval of an accuracy on this many points."""
    low, high = compute_wilson_interval(accuracy, report.settings["points"])
    return f"{low:.1%} to {high:.1%}"


def mark(result: AttackResult) -> str:
    """A note beside the accuracy of an attack that is not bound to the ball."""
    return {"ball": "", "minimal": "(smallest change)", "none": "(own measure)"}[result.constraint]


def constraint_notes(reports: Iterable[EvaluationResults]) -> list[str]:
    """Explain the marks: one sentence for each that appears."""
    found = {result.constraint for report in reports for result in report.attacks}
    notes = {
        "minimal": "Smallest change: the attack has no eps; its accuracy counts the images that it found within eps.",
        "none": "Own measure: the attack has no eps; its accuracy counts every image that fools the network, the worst "
        "case only those within eps.",
    }
    return [note for constraint, note in notes.items() if constraint in found]


def attack_notes(report: EvaluationResults) -> list[str]:
    """The sentences below the table of attacks."""
    notes = ["In brackets: 95 % confidence intervals (Wilson)."]
    if any(result.cumulative for result in report.attacks):
        notes.append("The stages of a suite act one after another, each on the points that those before it left.")
    return notes


def own_measure_note(reports: Iterable[EvaluationResults]) -> str:
    """The sentences above a table of attacks that are not bound to the ball; "" without any."""
    notes = constraint_notes(reports)
    return " ".join([*notes, "Do not set these numbers beside those of attacks within the ball."]) if notes else ""


def count(number: int, what: str) -> str:
    """A number of things, as text.

    Example:
        >>> count(1, "point"), count(1000, "point")
        ('1 point', '1000 points')
    """
    return f"{number} {what}{'s' * (number != 1)}"


def count_networks(reports: Mapping[str, EvaluationResults]) -> str:
    """How many networks were evaluated: those of the same weights are one, however often it was evaluated."""
    networks = count(len({report.settings["network_sha256"] for report in reports.values()}), "network")
    return networks if networks == count(len(reports), "network") else f"{len(reports)} evaluations of {networks}"


def duration(seconds: float) -> str:
    """A time as text."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min {rest:02d} s"


def reused_text(report: EvaluationResults) -> str:
    """The points that were known from a smaller eps, as text."""
    known = report.settings.get("reused")
    if known is None:
        return "nothing"
    return f"{count(known['points'], 'point')} broken within {known['eps']:.6g}, not attacked again"


def certificate_text(report: EvaluationResults) -> str:
    """The certificate of a report, as text; "none" without one."""
    told = report.settings.get("certificate")
    if told is None:
        return "none"
    name = "largest constant of a difference of logits (L2)"
    loose = {"L2": "", "Linf": "; from the L2 ball around the Linf ball, which is loose", "L1": ""}
    norm = report.settings["threat"]["norm"]
    text = f"{told['method']}; median radius {median_radius(report)}; {name} {told[name]:.4g}{loose[norm]}"
    if not told.get("points not attacked"):  # none, or an earlier report
        return text
    spared, witnesses = told["points not attacked"], told["certified points attacked"]
    return f"{text}; {spared} certified points not attacked by AutoAttack, {witnesses} attacked as witnesses"


def rounding_text(report: EvaluationResults) -> str:
    """Describe the robust accuracy after the attacked images were rounded to 256 levels."""
    found = report.settings.get("eight_bit")
    if found is None:
        return "not written"
    threat = report.settings["threat"]
    return (
        f"accuracy {found['accuracy']:.2%} after rounding (before: {report.robust_accuracy:.2%}), "
        f"{found['accuracy_within_eps']:.2%} if only rounded images within eps count; {found['misclassified']} of the "
        f"{found['broken']} broken points stay misclassified, {found['within_eps']} of them within eps; largest "
        f"distance {found['farthest']:.6g} ({threat['norm']}, eps {threat['eps']:.6g})"
    )


def median_radius(report: EvaluationResults) -> str:
    """The median over all points, where misclassified points count as 0."""
    if report.radii is None:
        return "not certified"
    return f"{report.settings['threat']['norm']} {np.median(report.radii.clip(0)):.2g}"


def join_versions(versions: Mapping[str, str]) -> str:
    """Names with their versions, separated by commas."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())

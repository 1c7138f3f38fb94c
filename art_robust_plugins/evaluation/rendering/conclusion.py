"""The conclusion of a comparison, in a sentence: the same one on the page, in Markdown and in a terminal."""

from __future__ import annotations

from ...escapes import shorten_middle
from ..ranking import Groups, Ranking, Reports, find_obstacles, group_comparable, is_severe, rank_group
from .labels import count, count_networks, interval, worst_case_mark

_LETTERS = 80


def conclude(reports: Reports, groups: Groups | None = None) -> str:
    """Which network is best, by how much and how surely; a sentence for each group that may be compared.

    ``groups`` are those of `group_comparable`, which compares images, where they are known already.
    """
    groups = group_comparable(reports) if groups is None else groups
    if len(groups) == 1:
        return _describe_group(groups[0], rank_group(groups[0]))
    firsts = [next(iter(group.values())) for group in groups]
    different = dict.fromkeys(name for other in firsts[1:] for name in find_obstacles(firsts[0], other))
    sentence = f"No network is best of all, because the runs have different {' and '.join(different)}"
    if len({report.settings["network_sha256"] for report in reports.values()}) == 1:
        sentence = f"{count_networks(reports)}, with different {' and '.join(different)}"
    larger = [group for group in groups if len(group) > 1]
    if not larger:
        return f"{sentence}; {count_warnings(reports)}."
    return " ".join([f"{sentence}: compare within each group.", *(_describe_group(g, rank_group(g)) for g in larger)])


def _describe_group(group: Reports, ranking: Ranking) -> str:
    best = group[ranking.best]
    settings = best.settings
    withstands = (
        f"{best.robust_accuracy:.1%} {worst_case_mark(best)}".rstrip()
        + f" of {count(settings['points'], 'point')} (95 % confidence: {interval(best, best.robust_accuracy)}) "
        f"withstand every attack within {settings['threat']['text']}"
    )
    name = _shorten(ranking.best)
    if len(group) == 1:
        return f"{name}: {withstands}; no other network is there to compare; {count_warnings(group)}."
    if ranking.trusted:
        parts = [f"{name} has the highest worst case: {withstands}"]
    else:
        parts = [
            "No network is the best, because each has a severe flag; "
            f"the highest worst case is that of {name}: {withstands}"
        ]
    parts += [_describe_next(group, ranking), *_describe_distrusted(group, ranking), count_warnings(group)]
    return f"{'; '.join(part for part in parts if part)}."


def _describe_next(group: Reports, ranking: Ranking) -> str:
    if ranking.next is None:
        return "every other network has a severe flag"
    test, other = ranking.tests[ranking.next], group[ranking.next]
    verb = "is distinguishable from it" if test.distinguishable else "is not distinguishable from it"
    rest = (ranking.trusted or ranking.names)[2:]
    alike = 0 if test.distinguishable else sum(not ranking.tests[name].distinguishable for name in rest)
    more = f", and neither {'is one other' if alike == 1 else f'are {alike} others'}" if alike else ""
    return (
        f"the next, {_shorten(ranking.next)} with {other.robust_accuracy:.1%}, {verb} on these points (McNemar's exact "
        f"test of {test.only_first} against {test.only_second} points, {format_p(test.p)}){more}"
    )


def _describe_distrusted(group: Reports, ranking: Ranking) -> list[str]:
    """The networks whose higher number must not be trusted."""
    highest = group[ranking.best].robust_accuracy
    found = [name for name in ranking.names if is_severe(group[name]) and group[name].robust_accuracy >= highest]
    if not ranking.trusted or not found:
        return []
    first = group[found[0]]
    flags = ", ".join(flag.name for flag in first.flags if flag.severity == "severe")
    others = f" (and those of {len(found) - 1} more)" if len(found) > 1 else ""
    return [
        f"do not trust the {first.robust_accuracy:.1%} of {_shorten(found[0])}{others}, which has a severe flag "
        f"({_shorten(flags)})"
    ]


def count_warnings(reports: Reports) -> str:
    """The number of flags that warn, in words."""
    found = [flag.severity for report in reports.values() for flag in report.flags if flag.severity != "note"]
    if not found:
        return "no warnings"
    severe = found.count("severe")
    return f"{len(found)} warning{'s' * (len(found) > 1)}" + (f", {severe} of them severe" if severe else "")


def format_p(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}" if p < 0.995 else "p = 1"


def list_tests(groups: Groups) -> dict[str, str]:
    """The result of the paired test of each network against the best of its group, in words."""
    told: dict[str, str] = {}
    first = "the best" if len(groups) == 1 else "the best of its group"
    for group in groups:
        ranking = rank_group(group)
        alone = len(group) == 1 and len(groups) > 1
        told[ranking.best] = "not comparable" if alone else first
        told |= {name: format_p(test.p).removeprefix("p ").removeprefix("= ") for name, test in ranking.tests.items()}
    return told


def _shorten(name: str) -> str:
    return shorten_middle(name, _LETTERS)

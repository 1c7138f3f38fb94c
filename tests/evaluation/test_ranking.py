"""The statistics of a comparison against SciPy, which networks may be compared, and the sentence that says it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from art_robust_plugins.evaluation import EvaluationReport, Flag
from art_robust_plugins.evaluation.ranking import (
    compare_pair,
    compute_mcnemar_p,
    compute_wilson_interval,
    find_obstacles,
    group_comparable,
    rank,
    rank_group,
)
from art_robust_plugins.evaluation.rendering import comparison_markdown, conclude, render_comparison
from art_robust_plugins.evaluation.rendering.conclusion import count_warnings, format_p

from .made import make_report

SEVERE = Flag("no-gradients", "severe", "None arrive.", "Look.")
WARNING = Flag("zero-gradients", "warning", "Many are zero.", "Look.")


def of(robust: int, points: int = 40, **given: Any) -> EvaluationReport:
    """A report in which the first ``robust`` points are left."""
    return make_report(np.arange(points) < robust, **given)


@pytest.mark.parametrize(("correct", "points"), [(0, 1), (1, 1), (0, 10), (3, 10), (75, 100), (9999, 10_000)])
def test_the_interval_is_wilsons(correct: int, points: int) -> None:
    oracle = binomtest(correct, points).proportion_ci(method="wilson")
    np.testing.assert_allclose(compute_wilson_interval(correct / points, points), oracle, atol=1e-12)


@pytest.mark.parametrize(
    ("first", "second"), [(0, 0), (0, 1), (5, 0), (0, 6), (3, 3), (3, 4), (8, 21), (40, 12), (900, 1100), (5000, 5000)]
)
def test_the_paired_test_is_binomial(first: int, second: int) -> None:
    oracle = binomtest(first, first + second).pvalue if first + second else 1.0
    assert compute_mcnemar_p(first, second) == pytest.approx(oracle, rel=1e-9)
    assert compute_mcnemar_p(second, first) == compute_mcnemar_p(first, second)


def test_a_p_value_below_the_smallest_number_is_0() -> None:
    assert compute_mcnemar_p(0, 5000) == 0
    assert format_p(0.0) == "p < 0.001"


def test_only_points_that_one_network_withstood_count() -> None:
    left = np.zeros(20, dtype=bool)
    one, other = left.copy(), left.copy()
    one[:9] = True
    other[6:8] = True
    other[15] = True
    test = compare_pair(make_report(one), make_report(other))
    assert (test.only_first, test.only_second) == (7, 1)
    assert test.p == pytest.approx(binomtest(1, 8).pvalue)
    assert not test.distinguishable


@pytest.mark.parametrize(
    ("changed", "obstacle"),
    [
        ({"eps": 0.05}, "threat models"),
        ({"clip_values": [0.0, 255.0]}, "threat models"),
        ({"clip_values_by_feature": "[0, 1], [0, 2]"}, "threat models"),
        ({"attacks": [("fgsm", "ball")]}, "attacks"),
        ({"points": 41}, "numbers of points"),
        ({"shift": 0.3}, "points"),
        ({"shift": 1e-3}, "points"),  # robust points stay as they are, so a small shift is seen
    ],
)
def test_what_cannot_be_compared(changed: dict[str, Any], obstacle: str) -> None:
    plain = of(20)
    other = of(15, **{"points": 40, **changed})
    assert find_obstacles(plain, of(15)) == []
    assert find_obstacles(plain, other) == [obstacle]
    assert find_obstacles(other, plain) == [obstacle]
    assert [len(group) for group in group_comparable({"a": plain, "b": other, "c": of(3)})] == [2, 1]
    said = conclude({"a": plain, "b": other})
    assert obstacle in said
    assert "p =" not in said
    assert "not comparable" in render_comparison({"a": plain, "b": other})


def test_other_labels_are_other_points() -> None:
    plain = of(20)
    other = EvaluationReport(**{**vars(plain), "labels": (plain.labels + 1) % 10})
    assert find_obstacles(plain, other) == ["points"]


def test_broken_points_may_lie_on_both_sides_of_the_clean_one() -> None:
    plain = of(20)
    mirrored = plain.adversarial.copy()
    mirrored[20:] -= np.float32(2 * 0.099)
    assert find_obstacles(plain, EvaluationReport(**{**vars(plain), "adversarial": mirrored})) == []


def test_networks_are_ranked_by_worst_case_then_by_certificates() -> None:
    proven = np.full(40, 1.0)
    reports = {"low": of(10), "high": of(30), "also": of(30, radii=proven)}
    assert rank(reports) == ["also", "high", "low"]


def test_the_sentence_names_the_best_the_next_and_how_sure_it_is() -> None:
    said = conclude({"weak": of(10), "strong": of(30), "middle": of(29, flags=[WARNING])})
    assert said.startswith("strong has the highest worst case: 75.0% of 40 points")
    low, high = binomtest(30, 40).proportion_ci(method="wilson")
    assert f"{low:.1%} to {high:.1%}" in said
    assert "the next, middle with 72.5%, is not distinguishable" in said
    assert "p = 1)" in said
    assert said.endswith("1 warning.")
    apart = conclude({"weak": of(10), "strong": of(30)})
    assert "is distinguishable from it" in apart
    assert "p < 0.001" in apart
    assert "others" not in apart


def test_networks_that_are_not_told_apart_are_counted() -> None:
    said = conclude({name: of(count) for name, count in {"a": 30, "b": 29, "c": 28, "d": 27, "e": 5}.items()})
    assert "neither are 2 others" in said


def test_a_severe_flag_keeps_a_network_from_being_the_best() -> None:
    masked = of(40, flags=[SEVERE, WARNING])
    reports = {"honest": of(20), "masked": masked, "weak": of(10)}
    assert rank_group(reports).best == "honest"
    said = conclude(reports)
    assert said.startswith("honest has the highest worst case")
    assert "do not trust the 100.0% of masked" in said
    assert "no-gradients" in said
    assert said.endswith("2 warnings, 1 of them severe.")
    alone = conclude({"masked": masked, "too": of(10, flags=[SEVERE])})
    assert alone.startswith("No network is the best")
    assert "every other network has a severe flag" in conclude({"honest": of(20), "masked": masked})


def test_notes_are_no_warnings() -> None:
    assert count_warnings({"a": of(1, flags=[Flag("uneven-range", "note", "", "")])}) == "no warnings"


def test_one_network_has_nothing_to_be_compared_with() -> None:
    said = conclude({"alone": of(20)})
    assert "no other network" in said
    assert "p " not in said.split("points", 1)[1].replace("compare", "")


def test_groups_are_compared_within_themselves() -> None:
    reports = {"a": of(30), "b": of(10), "c": of(30, eps=0.05), "d": of(29, eps=0.05)}
    said = conclude(reports)
    assert "threat models" in said
    assert "a has the highest worst case" in said
    assert "c has the highest worst case" in said
    assert render_comparison(reports).count("the best of its group") == 4  # text and data of a cell
    assert "the best of its group" not in render_comparison({"a": of(30), "b": of(10)})


def test_evaluations_of_one_network_are_not_counted_as_networks() -> None:
    reports = {f"at {eps}": of(20, eps=eps) for eps in (0.01, 0.02, 0.05, 0.1)}
    assert conclude(reports).startswith("4 evaluations of 1 network,")
    page = render_comparison(reports)
    assert "4 evaluations of 1 network by worst case" in page
    assert "4 networks" not in page
    assert "4 networks by worst case" in render_comparison({str(left): of(left) for left in (10, 20, 25, 30)})


def test_the_sentence_is_the_same_everywhere() -> None:
    reports = {"one": of(30), "two": of(20)}
    said = conclude(reports)
    assert said in comparison_markdown(reports)
    assert said.replace("'", "&#39;").replace("<", "&lt;") in render_comparison(reports)

"""The points of reports in a page: the data that stand in it, and what a browser makes of them."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from art_robust_plugins.evaluation.ranking import find_obstacles, have_same_points
from art_robust_plugins.evaluation.rendering import render_comparison, render_report
from art_robust_plugins.evaluation.rendering.explorer import LEVELS, UNKNOWN, breakers, explorer_data

from ..made import EPS, LEFT, make_detailed, make_report

SHARED = 'id="explorer-data"'
HOSTILE = "\"'></script><script>document.title='ran'</script><img src=x onerror=\"document.title='ran'\">"


def unpack(packed: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    return np.frombuffer(base64.b64decode(packed["data"]), dtype=f"<{packed['type']}")


def open_png(text: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(BytesIO(base64.b64decode(text))))


def test_the_data_are_the_reports_arrays() -> None:
    radii = np.where(np.arange(12) % 2, 2 * EPS, EPS / 2)
    report = make_detailed(radii=radii)
    data = explorer_data({"run": report})
    assert json.loads(json.dumps(data)) == data
    (run,) = data["runs"]
    details = report.details
    assert details is not None
    np.testing.assert_array_equal(unpack(data["labels"]), report.labels)
    marks = unpack(run["marks"])
    np.testing.assert_array_equal(marks & 3, np.where(LEFT, 2, 1))
    assert run["certifies"]
    np.testing.assert_array_equal((marks >> 2) & 1, radii >= EPS)
    np.testing.assert_array_equal(marks >> 3, ~LEFT & (radii >= EPS))  # certified yet broken: the first flag
    np.testing.assert_array_equal(unpack(run["clean"]), report.labels)
    np.testing.assert_array_equal(unpack(run["attacked"]), np.where(LEFT, report.labels, (report.labels + 1) % 10))
    np.testing.assert_array_equal(unpack(run["breakers"]), details.breakers)
    np.testing.assert_allclose(unpack(run["distances"]), np.where(LEFT, 0, 0.99 * EPS), atol=1e-6)
    np.testing.assert_allclose(unpack(run["radii"]), radii, rtol=1e-6)
    chances = run["probabilities"]
    classes, before, after = (unpack(chances[name]).reshape(12, 5) for name in ("classes", "before", "after"))
    assert (classes[:, 0] == report.labels).all()
    for values, outputs in ((before, details.outputs), (after, details.attacked_outputs)):
        softmax = np.exp(outputs.astype(np.float64))
        softmax /= softmax.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(
            values / LEVELS, np.take_along_axis(softmax, classes.astype(int), 1), atol=0.5001 / LEVELS
        )


def test_pictures_are_the_points_and_their_changes_broken_ones_first() -> None:
    report = make_detailed()
    data = explorer_data({"run": report}, shown=7)
    assert data["shown"]["points"] == [0, 1, 2, 3, 4, 5, 6]
    assert "Images of 7 of the 12 points" in data["note"]
    assert report.details is not None
    for point in range(5):
        clean, entry = data["shown"]["clean"][point], data["shown"]["entries"][point][0]
        np.testing.assert_array_equal(open_png(clean), np.rint(report.details.clean[point][0] * 255))
        np.testing.assert_array_equal(open_png(entry["attacked"]), np.rint(report.adversarial[point][0] * 255))
        assert (open_png(entry["change"]) >= 254).all(), "the whole image grew alike"
        assert entry["amplified"] == pytest.approx(0.5 / (0.99 * EPS), rel=0.05)
    assert data["shown"]["entries"][5:] == [[None], [None]]
    np.testing.assert_array_equal(open_png(data["shown"]["clean"][5]), np.rint(report.adversarial[5][0] * 255))


@pytest.mark.parametrize("limit", [0, 1500, 1_500_000])
def test_the_limit_on_bytes_holds(limit: int) -> None:
    data = explorer_data({"run": make_detailed()}, shown_bytes=limit)
    size = len(json.dumps(data["shown"]))
    held = len(data["shown"]["points"])
    assert held == {0: 0, 1_500_000: 12}.get(limit, held)
    assert held < 12 or limit > 1500
    assert size <= limit + 100 * held + 100


def test_other_data_than_images_have_their_largest_changes() -> None:
    report = make_detailed()
    assert report.details is not None
    flat = replace(
        report,
        adversarial=report.adversarial.reshape(12, 4),
        details=replace(report.details, clean=report.details.clean.reshape(-1, 4)),
        settings={**report.settings, "input_shape": [4]},
    )
    assert flat.details is not None
    flat.details.clean[0, 2] -= 0.01
    data = explorer_data({"run": flat})
    assert not data["images"]
    entry = data["shown"]["entries"][0][0]
    assert entry["changed"] == 4
    at, before, after, change = entry["changes"][0]
    assert at == 2
    assert (before, after) == pytest.approx((flat.details.clean[0, 2], flat.adversarial[0, 2]), rel=1e-4)
    assert change == pytest.approx(0.99 * EPS + 0.01, rel=1e-3)


def test_what_an_earlier_report_does_not_tell_is_unknown() -> None:
    report = make_report(LEFT)
    data = explorer_data({"run": report})
    (run,) = data["runs"]
    assert run["distances"] is run["probabilities"] is None
    np.testing.assert_array_equal(breakers(report), np.where(LEFT, -1, 0))  # all stages broke the same points
    assert (
        breakers(replace(report, settings={**report.settings, "reused": {"eps": 0.05, "points": 2}}))[:5] == UNKNOWN
    ).all()
    attacked = unpack(run["attacked"])
    np.testing.assert_array_equal(attacked[:2], report.examples.predictions)
    assert (attacked[2:5] == UNKNOWN).all()
    assert data["shown"]["clean"][0] is None
    assert "change" not in data["shown"]["entries"][0][0]


def test_several_reports_share_a_page_if_their_points_are_the_same() -> None:
    one, other = make_detailed(), make_detailed(np.arange(12) >= 2)
    data = explorer_data({"one": one, "other": other})
    assert [run["name"] for run in data["runs"]] == ["one", "other"]
    assert data["shown"]["entries"][3][1] is None
    assert data["shown"]["entries"][3][0] is not None
    # Other attacks do not make other points.
    assert SHARED in render_comparison({"one": one, "more": make_detailed(attacks=[("fgsm", "ball")])})
    assert SHARED not in render_comparison({"one": one, "moved": make_detailed(shift=0.3)})
    assert SHARED not in render_comparison({"one": make_report(LEFT), "moved": make_report(LEFT, shift=0.3)})


def test_a_digest_that_a_report_states_is_not_believed() -> None:
    one, moved = make_detailed(), make_detailed(shift=1e-4)
    assert one.settings["points_sha256"] == moved.settings["points_sha256"]
    assert find_obstacles(one, moved) == ["points"]
    page = render_comparison({"one": one, "moved": moved})
    assert "not about the same points" in page
    assert SHARED not in page
    other = replace(one, settings={**one.settings, "points_sha256": "1" * 64})
    assert find_obstacles(one, other) == []
    assert SHARED in render_comparison({"one": one, "other": other})


@pytest.mark.parametrize("changed", ["clean", "adversarial", "labels"])
def test_one_changed_point_is_another_point(changed: str) -> None:
    """Of a broken point the clean image counts, and its attacked image does not."""
    one, other = make_detailed(), make_detailed(np.arange(12) >= 2)
    assert have_same_points(one, other)
    assert have_same_points(other, one)
    assert other.details is not None
    if changed == "clean":
        other.details.clean[1, 0, 0, 0] += np.float32(1e-6)
    elif changed == "adversarial":
        other.adversarial[1] += np.float32(1)
        assert have_same_points(one, other)
        other.adversarial[7, 0, 0, 0] += np.float32(1e-6)
    else:
        other.labels[7] += 1
    assert not have_same_points(one, other)
    assert not have_same_points(other, one)


def test_a_page_of_ten_thousand_points_stays_small() -> None:
    report = make_detailed(np.arange(10_000) % 2 == 0, radii=np.linspace(0, 1, 10_000))
    page = render_report(report)
    assert len(page.encode()) < 3_000_000
    runs = {f"network {number}": replace(report, details=report.details) for number in range(20)}
    assert len(render_comparison(runs).encode()) < 3_000_000


def test_no_text_of_a_report_ends_the_data() -> None:
    report = make_detailed()
    attacks = [replace(report.attacks[0], name=HOSTILE), *report.attacks[1:]]
    page = render_comparison({HOSTILE: replace(report, attacks=attacks), "other": report})
    text = re.findall(r'<script type="application/json" id="explorer-data">(.*?)</script>', page, flags=re.DOTALL)
    assert len(text) == 1
    assert "<" not in text[0]
    names = [run["name"] for run in json.loads(text[0])["runs"]]
    assert HOSTILE in names

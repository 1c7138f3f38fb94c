"""docs/figures.py: its points are those of the records, and its colours can be seen on light and dark pages."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def figures() -> Iterator[Any]:
    """The script is no part of the package: its folder is on the path for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(ROOT / "docs"), *sys.path])
        import figures

        yield figures


def test_colours_can_be_seen_on_light_and_dark_pages(figures: Any) -> None:
    assert figures.find_contrast("#000000", "#ffffff") == pytest.approx(21)
    for colour in (figures.INK, *figures.COLOURS.values()):
        for background in figures.BACKGROUNDS:
            assert figures.find_contrast(colour, background) >= 3


def test_the_points_on_mnist_are_those_of_the_record(figures: Any) -> None:
    record = json.loads((figures.RESULTS / "local_ball_mnist.json").read_text())
    picture = figures.trace_local_ball({"local_ball_mnist": record})
    points = [point for series in picture.series for point in series.points]
    assert len(points) == len({run["row"] for run in record["results"]["networks"]})
    (trades,) = (series for series in picture.series if series.name == "TRADES-k")
    (last,) = (point for point in trades.points if point.label == "10")
    robust = [100 * run["robust"] for run in record["results"]["networks"] if run["row"] == "TRADES-10"]
    assert last.x == 1
    assert (last.y, last.low, last.high) == pytest.approx((sum(robust) / len(robust), min(robust), max(robust)))


def make_run(row: str, seed: int, robust: float, seconds: float) -> dict[str, Any]:
    threats = {"Linf 8/255": {"autoattack": robust}}
    return {"row": row, "seed": seed, "threats": threats, "training_seconds": seconds}


def test_cifar10_is_beside_what_was_read_and_marked_as_such(figures: Any) -> None:
    runs = [make_run("PGD-10", 0, 0.4, 90), make_run("PGD-10", 1, 0.5, 110)]
    runs += [make_run("local ball, 1 step", 0, 0.44, 38), {"row": "local ball, 2 steps", "seed": 0, "diverged": "so"}]
    runs += [make_run("plain", 0, 0.0, 5), make_run("local ball, 1 step, with BANG", 0, 0.3, 40)]
    picture = figures.trace_cifar10({"recipe_cifar10-small": {"results": runs}})
    found = {series.name: series for series in picture.series}
    assert [(p.x, p.y, p.low, p.high) for p in found["PGD-k"].points] == [(1, 45, 40, 50)]
    assert [(p.label, p.x, p.y) for p in found["local ball, k steps"].points] == [("1", 0.38, 44)]
    assert [(p.x, p.y) for p in found["local ball, variants"].points] == [(0.4, 30)]
    (anchors,) = (series for series in picture.series if series.read)
    assert "read" in anchors.name
    read = {label: place[:2] for label, place in figures.READ_FASTAT.items()}
    assert {point.label: (point.x, point.y) for point in anchors.points} == read


def test_the_certified_frontier_takes_the_records_that_are_there(figures: Any) -> None:
    assert figures.trace_certified({}) is None
    recipe = [
        {"row": "orthogonal MLP", "seed": seed, "certified": {"L2 1.58": share}, "training_seconds": 60}
        for seed, share in enumerate((0.62, 0.66))
    ]
    search = [{"row": "a", "seconds": 61.0, "certified": {"1.58": 0.6}}, {"row": "b", "epochs": 3, "diverged": "so"}]
    earlier = [{"recipe": "longer", "certified 1.58": 0.57}, {"recipe": "plain", "certified 1.58": 0.0}]
    records = {
        "recipe_mnist-certified": {"results": recipe},
        "certified_mnist_search": {"results": search},
        "lipschitz_mnist": {"results": earlier},
    }
    picture = figures.trace_certified(records)
    assert [[(point.x, point.y) for point in series.points] for series in picture.series] == [[(60, 64)], [(61, 60)]]
    assert [level for _, level, _ in picture.lines] == pytest.approx([57, figures.READ_GLORO])
    assert ["(read)" in text for text, _, _ in picture.lines] == [read for _, _, read in picture.lines] == [False, True]

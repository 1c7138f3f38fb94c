"""The benchmark of local ball measures a comparison in parts."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from art_robust_plugins.experiments.recipes import load_recipe

FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("local_ball")


def make_network(row: str, seed: int, robust: float, *flags: str) -> dict[str, Any]:
    return {"row": row, "seed": seed, "clean": 0.9, "robust": robust, "stages": {}, "flags": list(flags)}


def test_networks_measured_anew_replace_those_of_the_record(benchmark: Any) -> None:
    recipe = load_recipe("cifar10-small")
    networks = [make_network("PGD-3", 1, 0.2), make_network("PGD-10", 0, 0.2), make_network("gone", 0, 0.1)]
    networks.append(make_network("PGD-10", 1, 0.2))  # it diverges this time
    chosen = benchmark.select_rows(recipe, ["plain", "PGD-10"])
    measured = [make_network("PGD-10", 0, 0.3), make_network("plain", 0, 0.0)]
    joined = benchmark.join_networks(chosen, recipe, {"results": {"networks": networks}}, measured)
    assert [(run["row"], run["seed"], run["robust"]) for run in joined] == [
        ("plain", 0, 0.0),
        ("PGD-3", 1, 0.2),
        ("PGD-10", 0, 0.3),
    ]
    assert benchmark.join_networks(chosen, recipe, {}, measured[:1]) == measured[:1]


def test_the_record_of_another_recipe_is_refused(benchmark: Any, tmp_path: Path) -> None:
    recipe, path = load_recipe("cifar10-small"), tmp_path / "record.json"
    assert benchmark.read_record(path, recipe) == {}
    record = {"recipe": {**recipe.table, "description": "In other words."}, "results": {"networks": []}}
    path.write_text(json.dumps(record))
    assert benchmark.read_record(path, recipe) == record
    other = replace(recipe, table={**recipe.table, "seeds": [7]})
    with pytest.raises(ValueError, match=r"rows: record.json is the record of another recipe"):
        benchmark.read_record(path, other)


def test_a_record_names_the_commands_of_its_parts(benchmark: Any) -> None:
    first, second = ({"command": name, "date": "2026-01-01", "machine": "one"} for name in ("first", "second"))
    assert benchmark.list_parts({}, "third") == []
    assert benchmark.list_parts({**second, "parts": [first], "threads": 1}, "third") == [first, second]
    assert benchmark.list_parts({**second, "parts": [first]}, "first") == [second]


def test_rows_by_name(benchmark: Any) -> None:
    recipe = load_recipe("cifar10-small")
    assert benchmark.select_rows(recipe, None) is recipe
    assert [row.name for row in benchmark.select_rows(recipe, ["PGD-10", "plain"]).rows] == ["plain", "PGD-10"]
    with pytest.raises(ValueError, match=r"rows: got 'PGD-11', .*PGD-10"):
        benchmark.select_rows(recipe, ["PGD-11"])


def test_the_summary_has_what_was_measured(benchmark: Any) -> None:
    networks = [
        make_network("PGD-10", 0, 0.2),
        make_network("plain", 0, 0.0, "square-beats-white-box"),
        make_network("plain", 1, 0.1, "chance"),
    ]
    seconds = {"plain": [1.0, 2.0, 3.0], "PGD-3": [1.0, 1.0, 1.0], "PGD-10": [2.0, 8.0, 4.0]}
    results = {"networks": networks, "seconds": seconds, "passes": {"PGD-10": [11, 11, 1]}, "timed": 500}
    assert benchmark.cifar10_summary(results) == [
        {
            "training": "plain",
            "passes forward, backward": "",
            "seeds": "2",
            "clean": "90.0 (90.0 to 90.0)",
            "AutoAttack": "5.0 (0.0 to 10.0)",
            "flagged": "1 of 2",
            "time / PGD-10": "0.50",
            "s per 1000 images": "4.00",
        },
        {
            "training": "PGD-10",
            "passes forward, backward": "11, 11",
            "seeds": "1",
            "clean": "90.0",
            "AutoAttack": "20.0",
            "flagged": "0 of 1",
            "time / PGD-10": "1.00",
            "s per 1000 images": "8.00",
        },
    ]

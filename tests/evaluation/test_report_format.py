"""The files of a report: what docs/report-format.md says is what is saved, and earlier versions are read."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Data
from torch import nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import EvaluationReport, Evaluator, Flag
from art_robust_plugins.files import load_tensors

from .builders import custom, step, wrap

FORMATS = Path(__file__).parent / "formats"
DOCUMENT = Path(__file__).parents[2] / "docs" / "report-format.md"
OPEN = ("attacks[].parameters", "settings.attack_library", "settings.versions")
"""Tables whose entries have any names."""


def name_entries(value: Any, place: str = "") -> Iterator[str]:
    """The names of all entries in nested data, as the document writes them."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from name_entries(inside, f"{place}.*" if place in OPEN else f"{place}.{key}".lstrip("."))
    elif isinstance(value, list) and value:
        for inside in value:
            yield from name_entries(inside, f"{place}[]")
    else:
        yield f"{place}[]" if isinstance(value, list) else place


def read_table(heading: str) -> dict[str, list[str]]:
    """The rows of a table of the document: the cells after the first, by the entry that it names."""
    section = DOCUMENT.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in section.splitlines() if line[:3] == "| `"
    ]
    assert len({name for name, *_ in rows}) == len(rows) > 10
    return {name.strip("`"): cells for name, *cells in rows}


def find_values(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The values in nested data with the names of their entries."""
    if isinstance(value, dict):
        for key, inside in value.items():
            yield from find_values(inside, f"{place}.*" if place in OPEN else f"{place}.{key}".lstrip("."))
    elif isinstance(value, list) and place != "attacks[].parameters.*":
        for inside in value:
            yield from find_values(inside, f"{place}[]")
    else:
        yield place, value


TYPES: dict[str, Callable[[Any], bool]] = {
    "text": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "integer": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "number": lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
    "any": lambda value: True,
}


def lies_in(value: Any, stated: str, known: Mapping[str, Any]) -> bool:
    """Whether a value lies in a range as the document words it; ``known`` are other entries' values."""

    def read(text: str) -> float:
        return float(known[text.strip("`")] if text.startswith("`") else text)

    if not stated:
        return True
    if stated == "64 hexadecimal digits":
        return re.fullmatch("[0-9a-f]{64}", value) is not None
    if stated == "ISO 8601":
        return datetime.fromisoformat(value).utcoffset() is not None
    if match := re.fullmatch("(at least|above) (.+)", stated):
        return bool(value >= read(match[2]) if match[1] == "at least" else value > read(match[2]))
    if match := re.fullmatch("(.+) to (.+)", stated):
        return read(match[1]) <= value <= read(match[2])
    choices = re.findall("`([^`]+)`", stated)
    assert choices, f"a range that this test cannot read: {stated}"
    return value in choices


def check_record(record: Mapping[str, Any]) -> set[str]:
    """Hold a report.json against the document; give back the entries that are there."""
    table = read_table("report.json")
    values = list(find_values(record))
    known = dict(values)
    for name, value in values:
        if value is None:  # an optional entry, or a group of them
            assert "optional" in next(cells[-1] for entry, cells in table.items() if f"{entry}.".startswith(f"{name}."))
            continue
        if name == "format":
            continue
        kind, _, stated, _ = table[name]
        assert TYPES[kind](value), (name, value)
        if name == "curve[][]":
            continue
        assert lies_in(value, stated, known), (name, value, stated)
    whole, second = table["curve[][]"][2].split("; the second ")
    assert all(lies_in(eps, whole, {}) and lies_in(accuracy, second, {}) for eps, accuracy in record["curve"])
    return set(known)


def check_arrays(arrays: Mapping[str, np.ndarray[Any, Any]], record: Mapping[str, Any]) -> None:
    """Hold arrays.safetensors against the document."""
    broken = arrays["correct"] & ~arrays["robust"]
    sizes = {
        "N": record["settings"]["points"],
        "A": len(record["attacks"]),
        "C": record["settings"]["classes"],
        "B": int(broken.sum()),
        "n": len(arrays["examples.indices"]),
    }
    assert sizes["n"] <= 64
    for name, values in arrays.items():
        kind, shape, _, stated, _ = read_table("arrays.safetensors")[name]
        assert str(values.dtype) == kind, name
        letters = shape.strip("[]").split(", ")
        leading = [sizes[letter] for letter in letters if letter != "..."]
        assert list(values.shape[: len(leading)]) == leading, name
        assert values.ndim == len(leading) or "..." in letters, name
        if match := re.fullmatch(r"(-?\d+) to ([A-Z]) - 1", stated):
            assert ((values >= int(match[1])) & (values < sizes[match[2]])).all(), name
        elif stated == "finite":
            assert np.isfinite(values).all(), name
        elif stated == "implies `correct`":
            assert (values <= arrays["correct"]).all()
        elif stated.startswith("at least"):
            assert (values >= float(stated.split(";")[0].split()[-1])).all()
        else:
            assert stated in ("", "may be NaN"), stated


@pytest.fixture(scope="module")
def whole(network: nn.Module, data: Data) -> EvaluationReport:
    """A report in which no entry is missing."""
    evaluator = Evaluator(wrap(network), ThreatModel("Linf", 0.1), attacks=custom(step), verbose=False)
    report = evaluator.evaluate(data[0], data[1])
    assert report.broken.any()
    optional = {
        "attack_library": {"library": "1"},
        "certificate": {
            "method": "",
            "largest constant of a difference of logits (L2)": 1.0,
            "points not attacked": 1,
            "certified points attacked": 1,
            "seconds": 1.0,
        },
        "reused": {"eps": 0.05, "points": 0},
        "eight_bit": {
            **dict.fromkeys(("accuracy", "accuracy_within_eps", "farthest"), 0.5),
            **dict.fromkeys(("broken", "misclassified", "within_eps"), 1),
        },
    }
    attacks = [replace(result, parameters={"steps": 1}) for result in report.attacks]
    radii = np.where(report.correct, 0.01, -1.0)
    flags = [Flag("first", "warning", "Seen.", "Look.")]
    return replace(report, settings={**report.settings, **optional}, attacks=attacks, radii=radii, flags=flags)


def test_the_document_names_every_entry_and_array_and_no_other(whole: EvaluationReport, tmp_path: Path) -> None:
    whole.save(tmp_path)
    EvaluationReport.load(tmp_path)
    record = json.loads((tmp_path / "report.json").read_text())
    arrays = {name: values.numpy() for name, values in load_tensors(tmp_path / "arrays.safetensors").items()}
    assert set(read_table("report.json")) == set(name_entries(record))
    assert set(read_table("arrays.safetensors")) == set(arrays)
    check_record(record)
    check_arrays(arrays, record)
    assert f"`format` is `{record['format']}`" in DOCUMENT.read_text()


def test_every_entry_is_written_by_an_evaluation(network: nn.Module, data: Data, whole: EvaluationReport) -> None:
    """Those that the fixture adds are the optional ones alone."""
    few = data[0][:3], data[1][:3]
    plain = Evaluator(wrap(network), ThreatModel("Linf", 0.1), attacks=custom(step), verbose=False).evaluate(*few)
    assert set(whole.settings) - set(plain.settings) == {"reused", "eight_bit"}


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("clean_accuracy", 1.5),
        ("robust_accuracy", "0.5"),
        ("settings.seed", -1),
        ("settings.points", True),
        ("settings.threat.eps", 0),
        ("settings.outputs", "scores"),
        ("settings.date", "yesterday"),
        ("settings.network_sha256", "12"),
        ("settings.eight_bit.within_eps", 2),
        ("settings.classes", float("nan")),
    ],
)
def test_the_document_excludes_what_no_evaluation_gives(
    entry: str, value: Any, whole: EvaluationReport, tmp_path: Path
) -> None:
    whole.save(tmp_path)
    record = json.loads((tmp_path / "report.json").read_text())
    check_record(record)
    *way, last = entry.split(".")
    inside = record
    for part in way:
        inside = inside[part]
    inside[last] = value
    with pytest.raises((AssertionError, ValueError)):
        check_record(record)


@pytest.mark.parametrize("number", [3, 4])
def test_earlier_versions_are_as_documented(number: int) -> None:
    record = json.loads((FORMATS / str(number) / "report.json").read_text())
    found = check_record(record)
    later = {"settings.points_sha256", "settings.outputs"}
    assert not later & found
    assert number == 4 or "sha256" not in found
    arrays = load_tensors(FORMATS / str(number) / "arrays.safetensors")
    assert not any(name.startswith("points.") for name in arrays)
    check_arrays({name: values.numpy() for name, values in arrays.items()}, record)


@pytest.mark.parametrize("number", [3, 4])
def test_pages_are_made_anew_from_earlier_versions(number: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(FORMATS / str(number), folder)
    assert f'"art-robust-plugins report {number}"' in (folder / "report.json").read_text()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    report = EvaluationReport.load(folder)
    assert report.details is None
    assert report.write_pages(folder) == folder / "report.html"
    assert {path.name for path in folder.iterdir()} == {*before, "report.html", "report.md", "verdicts.csv"}
    assert all((folder / name).read_bytes() == text for name, text in before.items())
    for name in ("report.html", "report.md"):
        assert "40.0" in (folder / name).read_text()
    again = report.save(tmp_path / "again").parent
    assert '"art-robust-plugins report 5"' in (again / "report.json").read_text()
    loaded = EvaluationReport.load(again)
    assert str(loaded) == str(report)
    np.testing.assert_array_equal(loaded.adversarial, report.adversarial)

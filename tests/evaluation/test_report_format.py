"""The files of a report: what docs/report-format.md says is what is saved, and earlier versions are read."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import EvaluationReport, Evaluator, Flag
from art_robust_plugins.files import load_tensors

from .builders import Data, custom, step, wrap

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


def read_table(heading: str) -> list[str]:
    section = DOCUMENT.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, flags=re.MULTILINE)


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
    for heading, saved in (
        ("report.json", set(name_entries(record))),
        ("arrays.safetensors", set(load_tensors(tmp_path / "arrays.safetensors"))),
    ):
        documented = read_table(heading)
        assert len(documented) == len(set(documented)) > 10
        assert set(documented) == saved
    assert f"`format` is `{record['format']}`" in DOCUMENT.read_text()


def test_every_entry_is_written_by_an_evaluation(network: nn.Module, data: Data, whole: EvaluationReport) -> None:
    """Those that the fixture adds are the optional ones alone."""
    few = data[0][:3], data[1][:3]
    plain = Evaluator(wrap(network), ThreatModel("Linf", 0.1), attacks=custom(step), verbose=False).evaluate(*few)
    assert set(whole.settings) - set(plain.settings) == {"reused", "eight_bit"}


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

"""What stands beside measured figures."""

from __future__ import annotations

import json
import platform
from importlib.metadata import version

import torch

from art_robust_plugins.provenance import PACKAGES, conditions, describe_conditions, processor, table


def test_conditions_are_those_of_this_process_and_json() -> None:
    found = conditions("python measure.py")
    assert json.loads(json.dumps(found)) == found
    assert found["python"] == platform.python_version()
    assert found["threads"] == torch.get_num_threads()
    assert found["versions"].keys() == set(PACKAGES)
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["numpy"] == version("numpy")
    assert found["machine"] == processor() != ""


def test_a_package_that_is_not_there_has_no_version(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("art_robust_plugins.provenance.PACKAGES", ("no-such-package-anywhere", "numpy"))
    found = conditions("")["versions"]
    assert not any(letter.isdigit() for letter in found["no-such-package-anywhere"])
    assert found["numpy"] == version("numpy")


def test_a_sentence_holds_all_conditions() -> None:
    record = {
        "command": "c",
        "date": "2026-01-02",
        "machine": "m",
        "python": "3.12",
        "versions": {"torch": "2", "x": "1"},
    }
    sentence = describe_conditions(record)
    assert all(part in sentence for part in ("`c`", "2026-01-02", "m", "Python 3.12", "torch 2", "x 1"))


def test_a_table_has_a_line_for_each_row() -> None:
    lines = table([{"a": 1, "b": None}, {"a": "x", "b": 2.5}]).splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["a", "b"],
        ["---", "---"],
        ["1", "None"],
        ["x", "2.5"],
    ]

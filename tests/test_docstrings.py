"""The examples in the docstrings run and give what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import art_robust_plugins

MODULES = [
    found.name
    for found in pkgutil.walk_packages(art_robust_plugins.__path__, "art_robust_plugins.")
    if not found.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_the_examples_run(name: str) -> None:
    if name.endswith("evaluation.evaluator"):
        pytest.importorskip("pyautoattack")
    assert doctest.testmod(importlib.import_module(name)).failed == 0

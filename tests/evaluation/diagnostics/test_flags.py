"""Each flag's test by itself: findings of a healthy network raise none, and one changed measurement raises its flag."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from art_robust_plugins import evaluation
from art_robust_plugins.bridge import InputRange
from art_robust_plugins.evaluation.diagnostics import FLAG_TESTS, Certificate, run_diagnostics
from art_robust_plugins.evaluation.progress import COUNTS, AttackProgress

from ..builders import healthy_findings

HEALTHY = healthy_findings()


def raise_flags(**changed: Any) -> list[str]:
    return [flag.name for flag in run_diagnostics(replace(HEALTHY, **changed))]


def make_progress(**counts: int) -> dict[str, AttackProgress]:
    """The progress of one attack with these counts."""
    progress = AttackProgress.begin(10)
    assert counts.keys() <= set(COUNTS)
    progress.counts.update(counts)
    return {"attack": progress}


def test_findings_of_a_healthy_network_raise_no_flag() -> None:
    assert run_diagnostics(HEALTHY) == []
    assert raise_flags(progress=make_progress()) == []


def test_each_test_is_listed_once_and_says_what_it_looks_for() -> None:
    assert len(set(FLAG_TESTS)) == len(FLAG_TESTS)
    assert all(test.__doc__ for test in FLAG_TESTS)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"passes": 10, "difference": 0.1}, "randomised"),
        ({"probabilities": True}, "probabilities"),
        ({"nan": 1}, "nan-logits"),
        ({"infinite": 1}, "infinite-logits"),
        ({"gradients": True}, "dynamic"),
        ({"memory": 2e-4}, "dynamic"),
        ({"seeded_difference": 2e-4}, "dynamic"),
        ({"moved": ["weight"]}, "dynamic"),
        ({"batch_difference": 1e-3}, "batch-dependent"),
        ({"undecided": 1}, "no-decision"),
        ({"tied": 3}, "ties"),
    ],
)
def test_what_clean_passes_find(change: dict[str, Any], name: str) -> None:
    assert raise_flags(clean=replace(HEALTHY.clean, **change)) == [name]


@pytest.mark.parametrize("change", [{"memory": 1e-4}, {"seeded_difference": 1e-4}, {"tied": 2}])
def test_clean_passes_at_the_threshold_raise_none(change: dict[str, Any]) -> None:
    assert raise_flags(clean=replace(HEALTHY.clean, **change)) == []


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("out_of_ball", "left-the-ball"),
        ("out_of_range", "left-the-ball"),
        ("overturned", "not-confirmed"),
        ("not_finite", "not-finite"),
        ("nan", "nan-logits"),
        ("infinite", "infinite-logits"),
        ("undecided", "no-decision"),
    ],
)
def test_what_candidates_are(kind: str, name: str) -> None:
    assert raise_flags(progress=make_progress(**{kind: 1})) == [name]
    assert "1 " in run_diagnostics(replace(HEALTHY, progress=make_progress(**{kind: 1})))[0].evidence


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"obstacle": "no gradient", "curve": [(0.0, 1.0)]}, "no-gradients"),
        ({"zero_gradients": 1}, "zero-gradients"),
        ({"random_gradients": 3}, "random-gradients"),
        ({"left_after_many": 3}, "fgsm-beats-pgd"),
        ({"left_after_one": 4}, "single-step-misleads"),
        ({"beaten": 1}, "short-attack-beats-this-run"),
        ({"curve": [(0.0, 1.0), (1.0, 0.06)]}, "eps-does-not-matter"),
    ],
)
def test_what_short_attacks_find(change: dict[str, Any], name: str) -> None:
    assert raise_flags(short_attacks=replace(HEALTHY.short_attacks, **change)) == [name]


@pytest.mark.parametrize(
    "change",
    [
        {"random_gradients": 2},
        {"left_after_many": 2},
        {"left_after_one": 3},
        {"left_after_one": 4, "norm": "L1"},
        {"curve": [(0.0, 1.0), (1.0, 0.05)]},
    ],
)
def test_short_attacks_at_the_threshold_raise_none(change: dict[str, Any]) -> None:
    assert raise_flags(short_attacks=replace(HEALTHY.short_attacks, **change)) == []


def test_how_the_estimator_takes_its_inputs() -> None:
    assert raise_flags(straight_through=["JpegCompression"]) == ["straight-through"]
    uneven = InputRange(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]))
    assert raise_flags(input_range=uneven) == ["uneven-range"]


def test_one_output_that_is_a_probability() -> None:
    outputs = torch.stack([torch.zeros(10), torch.linspace(0, 1, 10)], dim=1)
    single = {"clean": replace(HEALTHY.clean, outputs=outputs), "single_output": True}
    assert raise_flags(**single, loss=nn.BCEWithLogitsLoss()) == ["probabilities"]
    assert raise_flags(**single, loss=nn.BCELoss()) == []
    few = {**single, "clean": replace(HEALTHY.clean, outputs=outputs[:9])}
    assert raise_flags(**few, loss=nn.BCEWithLogitsLoss()) == []


def test_a_certificate_that_an_attack_refutes() -> None:
    radii, attacked_points = np.array([0.2, 0.1, -1.0]), np.array([True, False, True])
    wrong, right = attacked_points, np.zeros(3, dtype=bool)  # in float64
    for computed, exact, expected in (
        (radii, right, ["certificate-broken"]),
        (0.9 * radii, right, ["certificate-rounded"]),
        (0.9 * radii, wrong, ["certificate-broken"]),
        (0 * radii, wrong, ["certificate-broken"]),
    ):
        assert raise_flags(certificate=Certificate(radii, computed, exact, attacked_points, eps=0.2)) == expected
        assert raise_flags(certificate=Certificate(radii, computed, exact, attacked_points, eps=0.21)) == []


@pytest.mark.parametrize("name", ["flags", "results"])
def test_data_imports_nothing_of_ours_but_data_and_checks(name: str) -> None:
    tree = ast.parse((Path(evaluation.__file__).parent / f"{name}.py").read_text(encoding="utf-8"))
    ours = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level}
    assert ours <= {"flags", "checks"}

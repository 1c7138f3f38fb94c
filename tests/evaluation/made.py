"""Reports made of arrays by hand, without a network or an attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any

import numpy as np

from art_robust_plugins.evaluation import AttackResult, EvaluationReport, Flag
from art_robust_plugins.evaluation.results import Constraint, Examples, PointDetails

STAGES = ("apgd-ce", "apgd-t", "fab-t", "square")
EPS = 0.1
LEFT = np.arange(12) >= 5


def make_clean(points: int, shift: float = 0.0) -> np.ndarray[Any, Any]:
    """The points of `make_report`."""
    return np.random.default_rng(0).uniform(0.2, 0.5, (points, 1, 2, 2)).astype(np.float32) + np.float32(shift)


def make_report(
    robust: Sequence[bool] | np.ndarray[Any, Any],
    *,
    attacks: Sequence[tuple[str, Constraint]] = (),
    flags: Sequence[Flag] = (),
    radii: np.ndarray[Any, Any] | None = None,
    shift: float = 0.0,
    eps: float = EPS,
    **settings: Any,
) -> EvaluationReport:
    """A report of AutoAttack and more attacks on points of 4 features; each point is correct, and broken or robust.

    ``shift`` moves the clean images, which are otherwise the same in each report; broken ones are moved by eps.
    """
    left = np.asarray(robust, dtype=bool)
    points = len(left)
    clean = make_clean(points, shift)
    adversarial = (clean + np.float32(eps * 0.99) * ~left[:, None, None, None]).astype(np.float32)
    results = [
        AttackResult(name, f"the attack {name}", float(left.mean()), left, 1.5, 100, 50, True, True, {})
        for name in STAGES
    ]
    for name, constraint in attacks:
        bounded = constraint == "ball"
        results.append(
            AttackResult(name, name, float(left.mean()), left, 0.5, 10, 5, bounded, False, {}, constraint=constraint)
        )
    shown = np.flatnonzero(~left)[:2]
    known = {
        "threat": {"norm": "Linf", "eps": eps, "text": f"Linf {eps:g}"},
        "attacks": [result.name for result in results],
        "autoattack": True,
        "fast": False,
        "backend": "native",
        "attack_library": {"art-robust-plugins": "0"},
        "points": points,
        "classes": 10,
        "input_shape": [1, 2, 2],
        "channels_first": True,
        "clip_values": [0.0, 1.0],
        "clip_values_by_feature": None,
        "preprocessing": [],
        "straight_through": [],
        "seed": 0,
        "batch_size": 10,
        "physical_batch_size": 10,
        "processes": 1,
        "verdict_passes": 1,
        "tolerance": 1e-6,
        "device": "cpu",
        "dtype": "torch.float32",
        "network": "Made",
        "network_sha256": sha256(left.tobytes()).hexdigest(),
        "versions": {"torch": "2"},
        "diagnostics": {"points": points, "seconds": 1.0, "forward_calls": 1, "backward_calls": 1},
        "could_not_run": [],
        "not_run": [],
        "date": "2026-01-02T00:00:00+00:00",
    }
    if radii is not None:
        name = "largest constant of a difference of logits (L2)"
        known["certificate"] = {"method": "made", name: 1.0, "seconds": 1.0}
    labels = (np.arange(points) % 10).astype(np.int64)
    return EvaluationReport(
        clean_accuracy=1.0,
        robust_accuracy=float(left.mean()),
        robust=left,
        correct=np.ones(points, dtype=bool),
        labels=labels,
        adversarial=adversarial,
        attacks=results,
        flags=list(flags),
        settings={**known, **settings},
        curve=[(0.0, 1.0), (0.05, 0.8), (eps, float(left.mean())), (1.0, 0.0)],
        examples=Examples(shown, clean[shown], adversarial[shown], labels[shown], (labels[shown] + 1) % 10),
        radii=radii,
    )


def make_detailed(left: np.ndarray[Any, Any] = LEFT, **given: Any) -> EvaluationReport:
    """A report with details; the second attack broke odd points, the first the others; class + 1 is then likeliest."""
    report = make_report(left, **given)
    broken, labels = ~left, report.labels
    outputs = np.random.default_rng(1).normal(size=(len(labels), 10)).astype(np.float32)
    outputs[np.arange(len(labels)), labels] = 5
    attacked = outputs.copy()
    attacked[broken, (labels[broken] + 1) % 10] = 6
    whose = np.where(broken, np.arange(len(labels)) % 2, -1)
    clean = make_clean(len(labels), given.get("shift", 0.0))[broken]
    settings = {**report.settings, "outputs": "logits", "points_sha256": "0" * 64}
    return replace(report, details=PointDetails(clean, outputs, attacked, whose), settings=settings)

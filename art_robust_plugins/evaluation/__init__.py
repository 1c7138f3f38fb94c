"""Evaluation of a classifier's robustness: attacks, verdicts that are checked, diagnostics, reports."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..on_demand import import_on_demand

if TYPE_CHECKING:
    from .evaluator import Evaluator
    from .flags import Flag
    from .front import evaluate
    from .libraries import ATTACKS, SUITES, Attack, NotApplicable, Setting
    from .report import EvaluationReport, compare, save_comparison
    from .results import AttackResult
    from .sweep import sweep
    from .transfer import transfer

__all__ = [
    "ATTACKS",
    "SUITES",
    "Attack",
    "AttackResult",
    "EvaluationReport",
    "Evaluator",
    "Flag",
    "NotApplicable",
    "Setting",
    "compare",
    "evaluate",
    "save_comparison",
    "sweep",
    "transfer",
]

__getattr__, __dir__ = import_on_demand(
    __name__,
    {
        "evaluator": ("Evaluator",),
        "flags": ("Flag",),
        "front": ("evaluate",),
        "libraries": (
            "ATTACKS",
            "SUITES",
            "Attack",
            "NotApplicable",
            "Setting",
        ),
        "report": (
            "EvaluationReport",
            "compare",
            "save_comparison",
        ),
        "results": ("AttackResult",),
        "sweep": ("sweep",),
        "transfer": ("transfer",),
    },
)

"""Evaluation of a classifier's robustness: attacks, verdicts that are checked, diagnostics, reports."""

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

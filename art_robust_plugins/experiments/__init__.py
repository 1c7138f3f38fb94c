"""Experiments described by names: training plans, the runs that they give, and recipes, which compare runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..on_demand import import_on_demand

if TYPE_CHECKING:
    from .plans import TrainingPlan, is_trainable
    from .runs import certify_run, evaluate_run, train_run

__all__ = ["TrainingPlan", "certify_run", "evaluate_run", "is_trainable", "train_run"]

__getattr__, __dir__ = import_on_demand(
    __name__,
    {
        "plans": (
            "TrainingPlan",
            "is_trainable",
        ),
        "runs": (
            "certify_run",
            "evaluate_run",
            "train_run",
        ),
    },
)

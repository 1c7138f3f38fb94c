"""Experiments described by names: training plans, the runs that they give, and recipes, which compare runs."""

from .plans import TrainingPlan, is_trainable
from .runs import certify_run, evaluate_run, train_run

__all__ = ["TrainingPlan", "certify_run", "evaluate_run", "is_trainable", "train_run"]

"""Experiments by names: how a network is trained, the runs that come of it, and recipes, which compare them."""

from .plans import TrainingPlan, is_trainable
from .runs import certify_run, evaluate_run, train_run

__all__ = ["TrainingPlan", "certify_run", "evaluate_run", "is_trainable", "train_run"]

"""The earlier name of `experiments`, which stays: training, evaluating and certifying a run by names."""

from .experiments import TrainingPlan, certify_run, evaluate_run, train_run

__all__ = ["TrainingPlan", "certify_run", "evaluate_run", "train_run"]

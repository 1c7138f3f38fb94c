"""Robust training, certification and standard evaluation of PyTorch classifiers, as a plugin to ART."""

from .checkpoint import load_classifier, save_classifier
from .evaluation import EvaluationReport, Evaluator
from .lipschitz import PyTorchLipschitzCertifier
from .registry import available_methods, create
from .threat import ThreatModel
from .training import BANGTrainer, LipschitzMarginTrainer, RobustTrainer, StandardTrainer, TrainingOptions

__all__ = [
    "BANGTrainer",
    "EvaluationReport",
    "Evaluator",
    "LipschitzMarginTrainer",
    "PyTorchLipschitzCertifier",
    "RobustTrainer",
    "StandardTrainer",
    "ThreatModel",
    "TrainingOptions",
    "available_methods",
    "create",
    "load_classifier",
    "save_classifier",
]

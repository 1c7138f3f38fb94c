"""Robust training, certification and standard evaluation of PyTorch classifiers, as a plugin to ART."""

from .checkpoint import load_classifier, save_classifier
from .evaluation import EvaluationReport, Evaluator
from .lipschitz import PyTorchLipschitzCertifier
from .registry import available_methods, create
from .threat import ThreatModel
from .training import (
    BANGTrainer,
    LayerwiseAdversarialTrainer,
    LipschitzMarginTrainer,
    LocalBallTrainer,
    PGDTrainer,
    RobustTrainer,
    StandardTrainer,
    TRADESTrainer,
    TrainingOptions,
)

__all__ = [
    "BANGTrainer",
    "EvaluationReport",
    "Evaluator",
    "LayerwiseAdversarialTrainer",
    "LipschitzMarginTrainer",
    "LocalBallTrainer",
    "PGDTrainer",
    "PyTorchLipschitzCertifier",
    "RobustTrainer",
    "StandardTrainer",
    "TRADESTrainer",
    "ThreatModel",
    "TrainingOptions",
    "available_methods",
    "create",
    "load_classifier",
    "save_classifier",
]

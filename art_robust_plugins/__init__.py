"""Robust training, certification and standard evaluation of PyTorch classifiers, as a plugin to ART."""

from .evaluation import EvaluationReport, Evaluator, evaluate
from .export import export_classifier
from .lipschitz import PyTorchLipschitzCertifier, certify
from .moved import register as register_moved_modules
from .registry import available_methods, create
from .saved_classifier import load_classifier, save_classifier
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
from .weight_map import PyTorchWeightMapClassifier, WeightMap2d, WeightMapPreprocessor, insert_weight_maps, weight_maps

register_moved_modules()

__all__ = [
    "BANGTrainer",
    "EvaluationReport",
    "Evaluator",
    "LayerwiseAdversarialTrainer",
    "LipschitzMarginTrainer",
    "LocalBallTrainer",
    "PGDTrainer",
    "PyTorchLipschitzCertifier",
    "PyTorchWeightMapClassifier",
    "RobustTrainer",
    "StandardTrainer",
    "TRADESTrainer",
    "ThreatModel",
    "TrainingOptions",
    "WeightMap2d",
    "WeightMapPreprocessor",
    "available_methods",
    "certify",
    "create",
    "evaluate",
    "export_classifier",
    "insert_weight_maps",
    "load_classifier",
    "save_classifier",
    "weight_maps",
]

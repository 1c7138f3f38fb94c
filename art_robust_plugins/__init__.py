"""Robust training, certification and standard evaluation of PyTorch classifiers, as a plugin to ART.

Names are imported when they are first used: the import of the package itself costs next to nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .moved import register as register_moved_modules
from .on_demand import import_on_demand

if TYPE_CHECKING:
    from .evaluation import EvaluationReport, Evaluator, evaluate
    from .export import export_classifier
    from .lipschitz import PyTorchLipschitzCertifier, certify
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
    from .weight_map import (
        PyTorchWeightMapClassifier,
        WeightMap2d,
        WeightMapPreprocessor,
        insert_weight_maps,
        weight_maps,
    )

    __version__: str

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

_SOURCES = {
    "evaluation": ("EvaluationReport", "Evaluator", "evaluate"),
    "export": ("export_classifier",),
    "lipschitz": ("PyTorchLipschitzCertifier", "certify"),
    "registry": ("available_methods", "create"),
    "saved_classifier": ("load_classifier", "save_classifier"),
    "threat": ("ThreatModel",),
    "training": (
        "BANGTrainer",
        "LayerwiseAdversarialTrainer",
        "LipschitzMarginTrainer",
        "LocalBallTrainer",
        "PGDTrainer",
        "RobustTrainer",
        "StandardTrainer",
        "TRADESTrainer",
        "TrainingOptions",
    ),
    "weight_map": (
        "PyTorchWeightMapClassifier",
        "WeightMap2d",
        "WeightMapPreprocessor",
        "insert_weight_maps",
        "weight_maps",
    ),
}
"""A module of the package -> the public names that come from it."""


_find_name, _list_names = import_on_demand(__name__, _SOURCES)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        globals()[name] = version("art-robust-plugins")
        return globals()[name]
    return _find_name(name)


def __dir__() -> list[str]:
    return [*_list_names(), "__version__"]

"""Robust training, certification and standard evaluation of PyTorch classifiers, as a plugin to ART.

Names are imported when they are first used: the import of the package itself costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from .moved import register as register_moved_modules

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


def __getattr__(name: str) -> Any:
    """A public name, or a module of the package, when it is first used."""
    value: Any
    source = next((module for module, names in _SOURCES.items() if name in names), None)
    if source is not None:
        value = getattr(import_module(f"{__name__}.{source}"), name)
    elif name == "__version__":
        from importlib.metadata import version

        value = version("art-robust-plugins")
    elif not name.startswith("_") and find_spec(f"{__name__}.{name}") is not None:
        return import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})

"""An ART classifier as files: its weights as safetensors, everything else as JSON. Nothing is unpickled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..on_demand import import_on_demand

if TYPE_CHECKING:
    from ..bridge.saved_formats import DefenceFormat, NetworkPart, register_defence, register_estimator, register_part
    from .layout import CLASSIFIER_FILE, WEIGHTS_FILE
    from .loading import describe_classifier, load_classifier
    from .saving import save_classifier

__all__ = [
    "CLASSIFIER_FILE",
    "WEIGHTS_FILE",
    "DefenceFormat",
    "NetworkPart",
    "describe_classifier",
    "load_classifier",
    "register_defence",
    "register_estimator",
    "register_part",
    "save_classifier",
]

__getattr__, __dir__ = import_on_demand(
    __name__,
    {
        ".bridge.saved_formats": (
            "DefenceFormat",
            "NetworkPart",
            "register_defence",
            "register_estimator",
            "register_part",
        ),
        "layout": (
            "CLASSIFIER_FILE",
            "WEIGHTS_FILE",
        ),
        "loading": (
            "describe_classifier",
            "load_classifier",
        ),
        "saving": ("save_classifier",),
    },
)

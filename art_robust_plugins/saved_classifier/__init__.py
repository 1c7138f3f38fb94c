"""An ART classifier as files: its weights as safetensors, everything else as JSON. Nothing is unpickled."""

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

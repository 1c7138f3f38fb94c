"""Weight maps: the layer, its insertion into a network, the augmented classifier, and the map on the input."""

from .classifier import PyTorchWeightMapClassifier
from .insert import insert_weight_maps, weight_maps
from .layer import WeightMap2d
from .preprocessor import WeightMapPreprocessor

__all__ = [
    "PyTorchWeightMapClassifier",
    "WeightMap2d",
    "WeightMapPreprocessor",
    "insert_weight_maps",
    "weight_maps",
]

"""Weight maps: the layer, its insertion into a network, the augmented classifier, and the map on the input."""

from .insert import insert_weight_maps, weight_maps
from .layer import WeightMap2d

__all__ = ["WeightMap2d", "insert_weight_maps", "weight_maps"]

"""Proven Lipschitz bounds of layers and of whole networks."""

from .norms import Convolution, Linear, NormBound, lower_estimate, operator_of

__all__ = ["Convolution", "Linear", "NormBound", "lower_estimate", "operator_of"]

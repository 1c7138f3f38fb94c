"""Proven Lipschitz bounds of layers and of whole networks, and the certificate that follows from them."""

from .certifier import LipschitzReport, PyTorchLipschitzCertifier
from .graph import LipschitzGraph, NetworkBound, OperatorNorm, batch_variances
from .norms import Convolution, Linear, NormBound, lower_estimate, operator_of
from .rules import NoLipschitzRuleError, lipschitz_rule

__all__ = [
    "Convolution",
    "Linear",
    "LipschitzGraph",
    "LipschitzReport",
    "NetworkBound",
    "NoLipschitzRuleError",
    "NormBound",
    "OperatorNorm",
    "PyTorchLipschitzCertifier",
    "batch_variances",
    "lipschitz_rule",
    "lower_estimate",
    "operator_of",
]

"""Proven Lipschitz bounds of layers and of whole networks, and the certificate that follows from them."""

from .batch_statistics import batch_variances
from .certifier import PyTorchLipschitzCertifier
from .front import certify
from .graph import LipschitzGraph
from .network_bound import NetworkBound, OperatorNorm
from .norms import Convolution, Linear, NormBound, configure_proofs, lower_estimate, operator_of
from .report import LipschitzReport
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
    "certify",
    "configure_proofs",
    "lipschitz_rule",
    "lower_estimate",
    "operator_of",
]

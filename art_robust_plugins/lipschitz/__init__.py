"""Proven Lipschitz bounds of layers and of whole networks, and the certificate that follows from them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..on_demand import import_on_demand

if TYPE_CHECKING:
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

__getattr__, __dir__ = import_on_demand(
    __name__,
    {
        "batch_statistics": ("batch_variances",),
        "certifier": ("PyTorchLipschitzCertifier",),
        "front": ("certify",),
        "graph": ("LipschitzGraph",),
        "network_bound": (
            "NetworkBound",
            "OperatorNorm",
        ),
        "norms": (
            "Convolution",
            "Linear",
            "NormBound",
            "configure_proofs",
            "lower_estimate",
            "operator_of",
        ),
        "report": ("LipschitzReport",),
        "rules": (
            "NoLipschitzRuleError",
            "lipschitz_rule",
        ),
    },
)

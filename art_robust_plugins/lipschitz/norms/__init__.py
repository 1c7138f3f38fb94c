"""Norms (L2 to L2) of linear and convolution layers, on the operator that torch applies at a given input size.

Two kinds, never to be confused:

- `lower_estimate`: power iteration. Cheap, differentiable in the weight, a **lower** bound: for training only.
- `Operator.upper_bound`: proven, in float64, rounding included: for certificates. Of a convolution it is the best of
  three proofs: a frequency grid (`grid`), a formula for boxes (`box`), a Cholesky factorisation (`cholesky`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...on_demand import import_on_demand

if TYPE_CHECKING:
    from .bounds import ROUND_UP, UNIT_ROUNDOFF, NormBound, Operator
    from .convolution import Convolution
    from .linear import Linear
    from .modules import operator_of
    from .power_iteration import lower_estimate
    from .proving import configure_proofs

__all__ = [
    "ROUND_UP",
    "UNIT_ROUNDOFF",
    "Convolution",
    "Linear",
    "NormBound",
    "Operator",
    "configure_proofs",
    "lower_estimate",
    "operator_of",
]

__getattr__, __dir__ = import_on_demand(
    __name__,
    {
        "bounds": (
            "ROUND_UP",
            "UNIT_ROUNDOFF",
            "NormBound",
            "Operator",
        ),
        "convolution": ("Convolution",),
        "linear": ("Linear",),
        "modules": ("operator_of",),
        "power_iteration": ("lower_estimate",),
        "proving": ("configure_proofs",),
    },
)

"""Norms (L2 to L2) of linear and convolution layers, on the operator that torch applies at a given input size.

Two kinds, never to be confused:

- `lower_estimate`: power iteration. Cheap, differentiable in the weight, a **lower** bound: for training only.
- `Operator.upper_bound`: proven, in float64, rounding included: for certificates. Of a convolution it is the best of
  three proofs: a frequency grid (`grid`), a formula for boxes (`box`), a Cholesky factorisation (`cholesky`).
"""

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

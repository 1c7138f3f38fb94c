"""Signs that a robust accuracy is too good to be true: masked gradients, or a broken evaluation.

``faithfulness.py`` refuses what cannot be evaluated, ``short_attacks.py`` measures, and each flag's threshold, test and
text are one function in one of the other files. ``registry.py`` lists them all, and says how to add one.
"""

from ..flags import Flag
from ..libraries import TRANSFER
from .differences import RANDOM_DIFFERENCE, measure_difference, measure_differences
from .faithfulness import find_gradient_obstacle
from .findings import Certificate, Findings, FlagTest
from .registry import FLAG_TESTS, run_diagnostics
from .short_attacks import ShortAttackPlan, ShortAttacks, run_short_attacks

__all__ = [
    "FLAG_TESTS",
    "RANDOM_DIFFERENCE",
    "TRANSFER",
    "Certificate",
    "Findings",
    "Flag",
    "FlagTest",
    "ShortAttackPlan",
    "ShortAttacks",
    "find_gradient_obstacle",
    "measure_difference",
    "measure_differences",
    "run_diagnostics",
    "run_short_attacks",
]

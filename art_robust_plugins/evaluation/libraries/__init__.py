"""The attacks that an evaluation may run: a file for each library that they come from."""

from ..results import Constraint
from .attack import TRANSFER, Attack, Backend, NotApplicable, Perturb, Prepare, Setting
from .packages import package_versions, reference_package
from .registry import ATTACKS, SUITES, resolve, suite_of

__all__ = [
    "ATTACKS",
    "SUITES",
    "TRANSFER",
    "Attack",
    "Backend",
    "Constraint",
    "NotApplicable",
    "Perturb",
    "Prepare",
    "Setting",
    "package_versions",
    "reference_package",
    "resolve",
    "suite_of",
]

"""The attacks that an evaluation may run: a file for each library that they come from."""

from ...choices import Backend
from ..results import Constraint
from .attack import TRANSFER, Attack, NotApplicable, Perturb, Prepare, Setting
from .packages import package_versions, reference_package
from .registry import ALIASES, ATTACKS, SUITES, find_norms, find_obstacle, resolve, resolve_alias, suite_of

__all__ = [
    "ALIASES",
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
    "find_norms",
    "find_obstacle",
    "package_versions",
    "reference_package",
    "resolve",
    "resolve_alias",
    "suite_of",
]

"""The attacks and suites of ``libraries``, under the path where they were first published."""

from .libraries import (
    ATTACKS,
    SUITES,
    Attack,
    Backend,
    NotApplicable,
    Perturb,
    Setting,
    package_versions,
    reference_package,
    resolve,
    suite_of,
)
from .results import Constraint

__all__ = [
    "ATTACKS",
    "SUITES",
    "Attack",
    "Backend",
    "Constraint",
    "NotApplicable",
    "Perturb",
    "Setting",
    "package_versions",
    "reference_package",
    "resolve",
    "suite_of",
]

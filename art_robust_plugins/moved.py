"""Modules that have moved, and functions with another name: the earlier ones still work, with a warning.

So imports and pickles keep working.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from functools import wraps
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import ParamSpec, TypeVar

MOVED = {
    "checkpoint": "saved_classifier",
    "evaluation.suites": "evaluation.libraries",
    "recipes": "experiments.recipes",
    "record": "provenance",
    "runs": "experiments",
    "saved_classifier.extensions": "bridge.saved_formats",
    "saved_classifier.weight_maps": "weight_map.saved_format",
    "training.checkpoints": "training.engine.checkpointer",
    "training.engine.memory_format": "training.memory_format",
    "training.engine.processes": "training.processes",
    "training.standard": "training.methods.standard",
    "training.bang": "training.methods.bang",
    "training.layerwise": "training.methods.layerwise",
    "training.local_ball": "training.methods.local_ball",
    "training.lipschitz_margin": "training.methods.lipschitz_margin",
    "training.signs": "training.instruments.signs",
}
"""Earlier path -> current path, both within the package."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def make_alias(earlier: str, function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function under its earlier name, which warns and names the current one."""

    @wraps(function)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        warnings.warn(
            f"{earlier} is deprecated, expected {function.__name__} instead.", DeprecationWarning, stacklevel=2
        )
        return function(*args, **kwargs)

    call.__doc__ = f"Deprecated: the earlier name of `{function.__name__}`."
    return call


class MovedModules(MetaPathFinder, Loader):
    """Finds the modules of `MOVED`; asked last, after Python's own finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == __package__ and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        earlier = module.__name__
        current = f"{__package__}.{MOVED[earlier.partition('.')[2]]}"
        warnings.warn(f"{earlier} has moved to {current}.", DeprecationWarning, stacklevel=2)
        sys.modules[earlier] = import_module(current)  # the module itself: its classes are the same at both paths


def register() -> None:
    """Let imports find the modules that have moved; a second call changes nothing."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())

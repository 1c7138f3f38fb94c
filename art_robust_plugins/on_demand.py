"""Names that a package imports when they are first used, so that its own import costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def import_on_demand(
    package: str, sources: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: its ``__name__``.
        sources: a module in the package -> the names that the package takes from it.

    Example:
        >>> import_on_demand("art_robust_plugins", {"checks": ["suggest"]})[0]("suggest")("lint", ["linf", "l2"])
        "; did you mean 'linf'?"
    """

    def find(name: str) -> Any:
        """A name of the package, or a module in it, when it is first used."""
        source = next((module for module, names in sources.items() if name in names), None)
        if source is None:
            if name.startswith("_") or find_spec(f"{package}.{name}") is None:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            return import_module(f"{package}.{name}")
        value = getattr(import_module(f"{package}.{source}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *(name for names in sources.values() for name in names)})

    return find, list_names

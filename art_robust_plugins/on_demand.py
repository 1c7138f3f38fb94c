"""Names that a package imports when they are first used, so that its own import costs next to nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any


def import_on_demand(
    package: str, sources: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package.

    Args:
        package: its ``__name__``.
        sources: a module in the package -> the names that the package takes from it. A module beside the package begins
            with a dot.

    Example:
        >>> import_on_demand("art_robust_plugins", {"checks": ["suggest"]})[0]("suggest")("lint", ["linf", "l2"])
        "; did you mean 'linf'?"
    """

    public = {name for names in sources.values() for name in names}

    class Package(ModuleType):
        """The import of a module binds it in its package: not where a function of the package has its name."""

        def __setattr__(self, name: str, value: Any) -> None:
            if not (name in public and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

    if public & sources.keys():
        sys.modules[package].__class__ = Package

    def find(name: str) -> Any:
        """A name of the package, or a module in it, when it is first used."""
        source = next((module for module, names in sources.items() if name in names), None)
        if source is None:
            if name.startswith("_") or find_spec(f"{package}.{name}") is None:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            return import_module(f"{package}.{name}")
        value = getattr(import_module(f".{source}", package), name)
        setattr(sys.modules[package], name, value)
        return value

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public})

    return find, list_names

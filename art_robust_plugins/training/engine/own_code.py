"""The distinction between the user's own code and that of libraries."""

from __future__ import annotations

import sys
from pathlib import Path

_LIBRARIES = {"torch", "art", "numpy", __name__.partition(".")[0], *sys.stdlib_module_names} - {"__main__"}


def is_own(module: str | None) -> bool:
    """Whether the module of this name is the user's: a script, or part of a package that is not installed."""
    root = (module or "").partition(".")[0]
    if root in _LIBRARIES:
        return False
    file = getattr(sys.modules.get(root), "__file__", None)
    return file is None or not {"site-packages", "dist-packages"} & set(Path(file).parts)

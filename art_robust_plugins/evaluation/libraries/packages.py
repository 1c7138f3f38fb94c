"""The packages that attacks come from: found, imported, and named with their versions."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from ...choices import Backend
from .attack import Attack


def reference_package() -> tuple[ModuleType, str]:
    """The reference AutoAttack, and its name and version: the authors' ``autoattack``, else ``pyautoattack``.

    Raises:
        ImportError: neither is installed.
    """
    for name in ("autoattack", "pyautoattack"):
        if importlib.util.find_spec(name) is not None:
            return importlib.import_module(name), f"{name} {read_version(name)}"
    raise _missing_package("the reference AutoAttack (autoattack or pyautoattack)")


def package_versions(attacks: Sequence[Attack], backend: Backend = "native") -> dict[str, str]:
    """Name and version of each library that ``attacks`` come from.

    Raises:
        ImportError: one of them is not installed.
    """
    versions = {}
    for package in dict.fromkeys(attack.package for attack in attacks):
        if package == "autoattack":
            own = f"art-robust-plugins {read_version('art-robust-plugins')}"
            name, version = (own if backend == "native" else reference_package()[1]).split(" ", 1)
            versions[name] = version
        elif package is not None:
            import_package(package)
            versions[package] = read_version(package)
    return versions


def import_package(package: str) -> Any:
    """The package of this name.

    Raises:
        ImportError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise _missing_package(package)
    return importlib.import_module(package)


def _missing_package(what: str) -> ImportError:
    return ImportError(f'{what} is not installed, expected it through: pip install "art-robust-plugins[attacks]".')


def read_version(package: str) -> str:
    """The installed version; of a package from git also the commit, as its version does not move."""
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        # Importable from a folder, without an installation.
        return "unknown version"
    origin = json.loads(distribution.read_text("direct_url.json") or "{}")
    commit = origin.get("vcs_info", {}).get("commit_id")
    return f"{distribution.version} ({commit[:12]})" if commit else distribution.version

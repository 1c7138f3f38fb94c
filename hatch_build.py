"""The package's description on an index is the README, with links that lead somewhere from there.

In a clone the README's links are relative: they lead to the clone's own files. A package index has none of these files,
so the build makes pictures and links absolute.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

PAGES = "https://github.com/art-robust-plugins/art-robust-plugins/blob/main/"
FILES = "https://raw.githubusercontent.com/art-robust-plugins/art-robust-plugins/main/"
LINK = re.compile(r"(!?)(\[(?:[^\[\]]|\[[^\]]*\])*\]\()(?!https?:|#|mailto:)([^)\s]+)(?=\))")


class ReadmeHook(MetadataHookInterface):
    """Reads the README for the metadata of wheel and sdist."""

    def update(self, metadata: dict[str, Any]) -> None:
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        metadata["readme"] = {"content-type": "text/markdown", "text": make_absolute(text)}


def make_absolute(text: str) -> str:
    """The README with absolute addresses: pictures as files, everything else as pages."""
    return LINK.sub(lambda link: f"{link[1]}{link[2]}{FILES if link[1] else PAGES}{link[3]}", text)

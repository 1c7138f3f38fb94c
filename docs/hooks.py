"""Hooks of the manual's build: pages made of the files in the project's root, and formulas as MathML.

Formulas are written as GitHub shows them (``math`` fences and dollar signs). MathML needs no script and no server.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SOURCES = "https://github.com/art-robust-plugins/art-robust-plugins/blob/main/"
ROOT_PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}

BLOCK = re.compile(r"^```math\n(.*?)\n```$", re.DOTALL | re.MULTILINE)
INLINE = re.compile(r"(?<![\w$\\])\$(?=\S)([^$`\n]+(?:\n[^$`\n]+)?)(?<=\S)\$(?![\w$])")
CODE = re.compile(r"^```.*?^```$|^(?: {4}.*\n)+|`[^`\n]+`", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<=\]\()(?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages to those of ``docs``, with links that lead to the manual or to the sources."""
    for name, page in ROOT_PAGES.items():
        text = LINK.sub(lambda link: redirect(*link.groups()), (ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def redirect(path: str, anchor: str | None) -> str:
    """Where a link of a file in the root leads, seen from the manual.

    Raises:
        FileNotFoundError: for a path that does not exist.
    """
    if not (ROOT / path).exists():
        raise FileNotFoundError(f"{path}: got a link to it from the project's root, expected a file there.")
    if path in ROOT_PAGES:
        return ROOT_PAGES[path] + (anchor or "")
    if path.startswith("docs/") and not path.endswith((".py", "release.md")):
        return path.removeprefix("docs/") + (anchor or "")
    return SOURCES + path + (anchor or "")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its formulas as MathML, and links that leave ``docs`` led to the sources."""
    markdown = BLOCK.sub(lambda found: f'<div class="formula">{convert(found[1], display="block")}</div>', markdown)
    parts, end = [], 0
    for code in CODE.finditer(markdown):
        parts += [to_mathml(markdown[end : code.start()]), code[0]]
        end = code.end()
    text = "".join([*parts, to_mathml(markdown[end:])])
    return re.sub(r"(?<=\]\()(?:\.\./)+(?=(?:tests|benchmarks|art_robust_plugins|README)\b)", SOURCES, text)


def to_mathml(text: str) -> str:
    """A text without code, with its $formulas$ as MathML."""
    return INLINE.sub(lambda found: f"<span>{convert(found[1].replace(chr(10), ' '))}</span>", text)


def on_page_context(context: dict[str, Any], page: Page, config: MkDocsConfig, nav: Any) -> dict[str, Any]:
    """No page of its own is edited through the browser."""
    page.edit_url = None
    return context

"""Text of unknown origin, such as a name in another's report, made harmless for where it will stand."""

from __future__ import annotations

import re

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Characters that a spreadsheet takes for the start of a formula, or for a way to it; the last four are wide forms."""


def printable(text: str) -> str:
    r"""The text with control characters, marks that turn its direction, and lone surrogates written as escapes.

    Example:
        >>> print(printable("a\x1b[31mb"))
        a\x1b[31mb
    """
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def escape_markdown(text: str) -> str:
    r"""The text as Markdown that shows it: no HTML, links, code, emphasis or cells begin in it.

    Example:
        >>> print(escape_markdown("a | [b](http://c) <d> <5"))
        a \| \[b\](http:\//c) &lt;d> <5
    """
    escaped = re.sub(r"([\\`*|\[\]~$])", r"\\\1", printable(text.replace("\n", " ")))
    # Only before these does "&" begin a character by its name, and "<" a tag.
    escaped = re.sub(r"&(?=[A-Za-z#])", "&amp;", escaped)
    escaped = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", escaped)
    # Addresses become links by themselves.
    escaped = re.sub(r"(?i)\b(www)\.", r"\1\\.", escaped.replace("://", r":\//"))
    return re.sub(r"^(\s*)([#>+-]|\d+[.)])(?=\s|$)", r"\1\\\2", escaped)


def csv_cell(text: str) -> str:
    """The text as a cell that spreadsheets do not take for a formula.

    Example:
        >>> csv_cell("=1+1")
        "'=1+1"
    """
    return f"'{text}" if text.lstrip(" ").startswith(_FORMULA) else text


def shorten_middle(text: str, letters: int) -> str:
    """The text without its middle where it is longer: what tells runs apart is often at the ends."""
    half = letters // 2 - 1
    return text if len(text) <= letters else f"{text[:half]}…{text[-half:]}"

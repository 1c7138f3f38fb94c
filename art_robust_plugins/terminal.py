"""The console of the command line, which shows every text as it is: names may come from anyone's files."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.text import Text

from .escapes import printable


class PlainConsole(Console):
    """A console without markup, emoji codes, and control sequences in texts; styles are given by argument.

    Example:
        >>> PlainConsole(width=40).print("[red]a[/red]", "\\x1b[31m")
        [red]a[/red] \\x1b[31m
    """

    def render_str(self, text: str, **settings: Any) -> Text:
        lines = "\n".join(map(printable, text.split("\n")))
        return super().render_str(lines, **{**settings, "markup": False, "emoji": False})


console = PlainConsole()

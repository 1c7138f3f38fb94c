"""The console, and the progress of long work.

The console shows every text as it is: names may come from anyone's files.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from shutil import get_terminal_size
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.text import Text
from tqdm.auto import tqdm

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


console = PlainConsole(highlight=False)


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Print texts in columns, a row a line: on a terminal the last column is cut to its width, elsewhere nothing is."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    room = get_terminal_size().columns if sys.stdout.isatty() else None
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        line = printable("  ".join([*cells, row[-1]])).rstrip()
        print(line if room is None or len(line) <= room else f"{line[: room - 3]}...")


class Progress:
    """The progress of long work, on stderr: a bar on a terminal and in a notebook, elsewhere a line for each stage.

    A log file or a pipe gets whole lines and no carriage returns.

    Args:
        total: how many steps there will be, None where nobody knows.
        stage: what is done first.
        initial: how many steps were done before.
        shown: show anything at all.
        kept: leave the bar on the terminal when the work is done.

    Example:
        >>> with Progress(2, "counting", shown=False) as progress:
        ...     progress.advance()
        ...     progress.conclude("two steps")
    """

    def __init__(
        self, total: int | None, stage: str, *, initial: int = 0, shown: bool = True, kept: bool = True
    ) -> None:
        self._stage, self._lines = stage, shown and not _is_live()
        self._bar = tqdm(
            desc=stage,
            total=total,
            initial=initial,
            leave=kept,
            disable=not shown or self._lines,
            dynamic_ncols=True,
            # Without the rate, a line of 80 columns holds what the stages gave.
            bar_format=None if total is None else "{desc}{percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}",
        )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._bar.close()

    def begin(self, stage: str) -> None:
        """Begin the next stage."""
        self._stage = stage
        self._bar.set_description(stage)

    def advance(self, steps: int = 1) -> None:
        """Some more steps are done."""
        self._bar.update(steps)

    def note(self, text: str) -> None:
        """Say beside the bar how it goes."""
        self._bar.set_postfix_str(printable(text))

    def conclude(self, text: str) -> None:
        """Say what the stage gave."""
        self.note(text)
        if self._lines:
            print(f"{printable(self._stage)}: {printable(text)}", file=sys.stderr, flush=True)


def _is_live() -> bool:
    """Whether what was shown can be shown anew: on a terminal, and in a notebook, where tqdm draws its own bar."""
    in_notebook = any(base.__module__ == "tqdm.notebook" for base in tqdm.__mro__)
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())

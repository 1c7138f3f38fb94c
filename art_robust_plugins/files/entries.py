"""Checks of what a JSON file holds: each entry has its place in the file, its kind and its range.

A file of ours may come from anyone, so that nothing in it is taken for what it should be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from ..checks import is_integer, is_number

_SHOWN = 60
"""The number of letters of a wrong value that a sentence shows."""


@dataclass(frozen=True)
class Entry:
    """A value that a file holds, and where it stands there.

    Every method raises a ValueError ``place: got value, expected ...`` for a value of another kind.

    Example:
        >>> settings = Entry({"seed": -1}, "report.json: settings")
        >>> settings["seed"].whole(low=0)
        Traceback (most recent call last):
            ...
        ValueError: report.json: settings.seed: got -1, expected a whole number of at least 0.
    """

    value: Any
    place: str

    def __getitem__(self, key: str) -> Entry:
        """The entry of a table that must have it."""
        table = self.table()
        if key not in table:
            raise ValueError(f"{self._at(key)}: got no such entry, expected one.")
        return Entry(table[key], self._at(key))

    def find(self, key: str) -> Entry | None:
        """The entry of a table; None where there is none, or a null."""
        value = self.table().get(key)
        return None if value is None else Entry(value, self._at(key))

    def items(self) -> Iterator[tuple[str, Entry]]:
        """The keys and entries of a table."""
        for key, value in self.table().items():
            yield key, Entry(value, self._at(key))

    def table(self, keys: Iterable[str] | None = None) -> dict[str, Any]:
        """A JSON object; with ``keys``, one that has no others."""
        if not isinstance(self.value, dict):
            self.refuse("a table of names and values")
        if keys is not None:
            known = set(keys)
            for key in self.value:
                if key not in known:
                    raise ValueError(f"{self._at(key)}: got an unknown entry, expected {', '.join(sorted(known))}.")
        return self.value

    def list_of(self, longest: int, *, length: int | None = None) -> list[Entry]:
        """The entries of a list of at most ``longest``, or of exactly ``length``."""
        if not isinstance(self.value, list):
            self.refuse("a list")
        count = len(self.value)
        if count > longest or (length is not None and count != length):
            wanted = f"at most {longest}" if length is None else f"{length}"
            raise ValueError(f"{self.place}: got {count} entries, expected {wanted}.")
        return [Entry(value, f"{self.place}[{number}]") for number, value in enumerate(self.value)]

    def text(self, choices: Iterable[str] | None = None) -> str:
        """A text, or one of ``choices``."""
        if not isinstance(self.value, str):
            self.refuse("a text")
        if choices is not None:
            known = tuple(choices)
            if self.value not in known:
                self.refuse(f"one of {', '.join(map(repr, known))}")
        return self.value

    def texts(self, longest: int = 10_000) -> list[str]:
        """A list of texts."""
        return [entry.text() for entry in self.list_of(longest)]

    def whole(self, low: int | None = None, high: int | None = None) -> int:
        """A whole number from ``low`` to ``high``."""
        if not is_integer(self.value) or not self._within(low, high):
            self.refuse(f"a whole number{_range(low, high)}")
        return int(self.value)

    def number(self, low: float | None = None, high: float | None = None) -> float:
        """A finite number from ``low`` to ``high``."""
        if not is_number(self.value) or not math.isfinite(self.value) or not self._within(low, high):
            self.refuse(f"a number{_range(low, high)}")
        return float(self.value)

    def share(self) -> float:
        """A number from 0 to 1."""
        return self.number(0, 1)

    def flag(self) -> bool:
        """True or False."""
        if not isinstance(self.value, bool):
            self.refuse("true or false")
        return bool(self.value)

    def equal(self, wanted: float, what: str) -> None:
        """A number that is ``wanted`` but for rounding; ``what`` says where that comes from."""
        if abs(self.number() - wanted) > 1e-9:
            self.refuse(f"{wanted!r}, {what}")

    def refuse(self, expected: str) -> NoReturn:
        """Say that this value is not as expected."""
        raise ValueError(f"{self.place}: got {shorten(repr(self.value))}, expected {expected}.") from None

    def _within(self, low: float | None, high: float | None) -> bool:
        return (low is None or self.value >= low) and (high is None or self.value <= high)

    def _at(self, key: str) -> str:
        name = key if key.isidentifier() else shorten(repr(key))
        return f"{self.place}{' ' if self.place.endswith(':') else '.'}{name}"


def shorten(text: str) -> str:
    """A text without its middle where it is long."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"


def _range(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return ""
    if high is None:
        return f" of at least {low}"
    return f" of at most {high}" if low is None else f" from {low} to {high}"

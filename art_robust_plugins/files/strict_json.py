"""JSON of unknown origin, read within bounds: its size, its depth, and how much of it there is.

Python's own reader takes what JSON does not have (NaN, a key twice, half of a surrogate pair), and ends in a
RecursionError where brackets are nested deep.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any

SIZE_LIMIT = 64 * 2**20
"""Bytes of a file; the largest of ours hold clip_values for each pixel."""
DEPTH_LIMIT = 100
"""Lists and objects within each other."""
COUNT_LIMIT = 1_000_000
"""Lists and objects of a file; each takes some hundred bytes of memory, and two letters in the file."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class UnfitError(ValueError):
    """A file is not what it should be. The message is the middle of a sentence: what it is instead."""


def parse_json(content: bytes) -> Any:
    """JSON in UTF-8 as Python's objects.

    Raises:
        UnfitError: it is not JSON, or exceeds a limit.

    Example:
        >>> parse_json(b'{"seeds": [1, 2]}')
        {'seeds': [1, 2]}
        >>> parse_json(b'{"seed": 1, "seed": 2}')
        Traceback (most recent call last):
            ...
        art_robust_plugins.files.strict_json.UnfitError: JSON with the key 'seed' twice
    """
    if len(content) > SIZE_LIMIT:
        raise UnfitError(f"JSON of more than {SIZE_LIMIT // 2**20} MB")
    if content.count(b"[") + content.count(b"{") > COUNT_LIMIT:
        raise UnfitError(f"JSON with more than {COUNT_LIMIT} lists and objects")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UnfitError("a file of another kind") from None
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_refuse_constant
        )
    except RecursionError:
        raise UnfitError(f"JSON nested more than {DEPTH_LIMIT} deep") from None
    except json.JSONDecodeError:
        start = text.lstrip()[:1]
        raise UnfitError("JSON cut short or damaged" if start in ("{", "[") else "a file of another kind") from None
    if depth_of(value) > DEPTH_LIMIT:
        raise UnfitError(f"JSON nested more than {DEPTH_LIMIT} deep")
    if _SURROGATE.search(text):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise UnfitError("JSON with half of a surrogate pair, which is no letter,") from None
    return value


def depth_of(value: Any) -> int:
    """The depth of lists, tuples and dicts within each other; one that holds itself counts as endless."""
    depth, level = 0, [value] if isinstance(value, dict | list | tuple) else []
    while level and depth <= DEPTH_LIMIT:
        depth += 1
        inside: dict[int, Any] = {}
        for each in level:
            for child in each.values() if isinstance(each, dict) else each:
                if isinstance(child, dict | list | tuple):
                    inside[id(child)] = child
        level = list(inside.values())
    return depth


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise UnfitError(f"JSON with the key {twice[:60]!r} twice")
    return table


def _whole(text: str) -> int:
    # As a float it must be finite: what is checked and computed later takes it for one.
    if len(text) > 300:
        raise UnfitError(f"JSON with a number of {len(text)} digits")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise UnfitError(f"JSON with the number {text[:60]}, which is infinite")
    return value


def _refuse_constant(name: str) -> Any:
    raise UnfitError(f"JSON with {name}, which JSON does not have")

"""Checks of single arguments: one of each kind for the whole package.

Each refuses in the same form: ``name: got value, expected ...``. NumPy's numbers count as numbers, booleans do not.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Iterable
from difflib import SequenceMatcher
from numbers import Integral, Real
from pathlib import Path
from typing import Any, cast

import numpy as np

_LARGEST_COUNT = 2**63 - 1  # of torch's sizes
_LARGEST_NUMBER = float(np.finfo(np.float32).max)

_NEAR = 0.6
"""A name is near another where at least this share of their letters agrees, in order (difflib's ratio)."""


def find_nearest(value: object, known: Iterable[str], near: float = _NEAR) -> str | None:
    """The known name that is nearest to ``value``, None where none is near; case, dashes and underscores are one.

    Args:
        value: what was given.
        known: the names there are.
        near: the least ratio of `difflib.SequenceMatcher` of a name that is near.

    Example:
        >>> find_nearest("Cifar_10", ["cifar10", "mnist"]), find_nearest("foo", ["deepfool"])
        ('cifar10', None)
    """
    if not isinstance(value, str):
        return None
    ratios = {name: SequenceMatcher(None, _fold(name), _fold(value)).ratio() for name in known}
    nearest = max(ratios, key=lambda name: (ratios[name], name), default=None)
    return nearest if nearest is not None and ratios[nearest] >= near else None


def suggest(value: object, known: Iterable[str], otherwise: str = ".") -> str:
    """How a refusal of ``value`` ends: with the known name that is near, else with ``otherwise``.

    Example:
        >>> suggest("bnag", ["bang", "trades"]), suggest("foo", ["bang"])
        ("; did you mean 'bang'?", '.')
    """
    near = find_nearest(value, known)
    return otherwise if near is None else f"; did you mean {near!r}?"


def _fold(name: str) -> str:
    return name.lower().replace("_", "-")


def is_integer(value: object) -> bool:
    """Whether ``value`` is a whole number of Python's or NumPy's, and no boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether ``value`` is a real number of Python's or NumPy's (NaN and infinity too), and no boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


def to_float(value: Any) -> float:
    """``value`` as a float where it is a number that a float can hold, else NaN."""
    try:
        return float(value) if is_number(value) else math.nan
    except OverflowError:  # a whole number above 1e308
        return math.nan


def plain_number(value: Any) -> Any:
    """A number of NumPy's, or a fraction, as Python's own, as JSON and texts want it; anything else as it is."""
    if isinstance(value, np.number):
        return value.item()
    return float(value) if is_number(value) and not isinstance(value, int | float) else value


def check_count(name: str, value: Any, *, zero: bool = False) -> int:
    """A positive whole number below 2**63 as an int, or with ``zero`` one that is not negative.

    Raises:
        ValueError: ``value`` is anything else.
    """
    if not is_integer(value) or not (0 if zero else 1) <= value <= _LARGEST_COUNT:
        wanted = "a whole number that is not negative" if zero else "a positive whole number"
        limit = " below 2**63" if is_integer(value) and value > 0 else ""
        raise ValueError(f"{name}: got {value!r}, expected {wanted}{limit}.")
    return int(value)


def check_seed(name: str, value: Any, limit: int = 2**32) -> int:
    """A whole number from 0 to ``limit`` - 1 as an int.

    Raises:
        ValueError: ``value`` is anything else.
    """
    if not is_integer(value) or not 0 <= value < limit:
        raise ValueError(f"{name}: got {value!r}, expected a whole number from 0 to 2**{limit.bit_length() - 1} - 1.")
    return int(value)


def check_number(name: str, value: Any, *, zero: bool = False) -> float:
    """A positive number that float32 holds, as Python's own, or with ``zero`` one that is not negative.

    Raises:
        ValueError: ``value`` is anything else.
    """
    number = to_float(value)
    if not (0 < number <= _LARGEST_NUMBER or (zero and number == 0)):
        wanted = "a number that is not negative" if zero else "a positive number"
        limit = f" of at most {_LARGEST_NUMBER:.3g}, float32's largest" if _LARGEST_NUMBER < number < math.inf else ""
        raise ValueError(f"{name}: got {value!r}, expected {wanted}{limit}.")
    return cast(float, plain_number(value))


def check_share(name: str, value: Any, *, whole: bool = False) -> float:
    """A number above 0 and below 1 as a float, or with ``whole`` at most 1.

    Raises:
        ValueError: ``value`` is anything else.
    """
    number = to_float(value)
    if not (0 < number < 1 or (whole and number == 1)):
        raise ValueError(f"{name}: got {value!r}, expected a number above 0 and {'at most' if whole else 'below'} 1.")
    return number


def check_sizes(name: str, sizes: Any) -> tuple[int, ...]:
    """The shape of one sample, as plain whole numbers: positive, and fewer than 2**31 entries together.

    Raises:
        ValueError: ``sizes`` is anything else.
    """
    try:
        given = () if isinstance(sizes, bytes | bytearray) else tuple(sizes)
    except TypeError:
        given = ()
    if not given or not all(is_integer(size) and size >= 1 for size in given) or math.prod(map(int, given)) >= 2**31:
        raise ValueError(f"{name}: got {sizes!r}, expected positive whole numbers such as (C, H, W).")
    return tuple(map(int, given))


def check_flag(name: str, value: object) -> None:
    """Refuse what is neither True nor False.

    Raises:
        ValueError: for such a value.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}: got {value!r}, expected True or False.")


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse what is not one of ``choices``.

    Raises:
        ValueError: for such a value.
    """
    if not isinstance(value, str) or value not in choices:
        known = ", ".join(map(repr, choices))
        raise ValueError(f"{name}: got {value!r}, expected one of {known}{suggest(value, choices)}")


def check_text(name: str, value: object) -> None:
    """Refuse what is no text.

    Raises:
        ValueError: for such a value.
    """
    if not isinstance(value, str):
        raise ValueError(f"{name}: got {value!r}, expected text.")


def check_type(name: str, value: object, kind: type, wanted: str) -> None:
    """Refuse what is no object of ``kind``, of which ``wanted`` tells in the sentence, as "a torch.nn.Module".

    Raises:
        TypeError: for such a value.
    """
    if not isinstance(value, kind):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"{name}: got {got}, expected {wanted}.")


def quote_error(error: BaseException) -> str:
    """The first line of an error's text without its full stop, to be quoted within a sentence.

    Example:
        >>> quote_error(ValueError("too large.\\nSee the manual."))
        'too large'
    """
    return str(error).strip().split("\n")[0].rstrip(".")


def describe_error(error: BaseException) -> str:
    """The kind of an error and the first line of its text, as a refusal quotes what another library raised.

    Example:
        >>> describe_error(ValueError("too large."))
        'ValueError: too large'
    """
    return f"{type(error).__name__}: {quote_error(error)}"


def check_path(name: str, value: Any) -> Path:
    """A path of text or of ``pathlib`` as a `Path`.

    Raises:
        ValueError: ``value`` is anything else, empty, or text that no path may have.
    """
    text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise ValueError(f"{name}: got {value!r}, expected a path.")
    return Path(value)


def find_caller_level() -> int:
    """The ``stacklevel`` by which a warning points at the line outside of this package that led to it."""
    level, frame = 1, inspect.currentframe()
    frame = None if frame is None else frame.f_back
    own = __name__.partition(".")[0]
    while frame is not None and str(frame.f_globals.get("__name__")).partition(".")[0] == own:
        level, frame = level + 1, frame.f_back
    return level

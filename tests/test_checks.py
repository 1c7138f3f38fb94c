"""Checks of single arguments: NumPy's numbers are numbers, booleans are not, and bounds are where they are told."""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from art_robust_plugins.checks import (
    check_choice,
    check_count,
    check_flag,
    check_number,
    check_path,
    check_seed,
    check_share,
    check_sizes,
    check_text,
    check_type,
    find_caller_level,
    find_nearest,
    is_integer,
    is_number,
    plain_number,
    to_float,
)

INTEGERS = [3, np.int64(3), np.uint8(3), np.int32(3)]
REALS = [0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2)]
NEITHER = [True, np.True_, "3", None, [3], np.array([1, 2]), Decimal("0.5"), 1j]
LARGEST = float(np.finfo(np.float32).max)


def refuses(check: Callable[..., Any], value: object, **settings: Any) -> bool:
    """Whether the check refuses the value, by the argument's name and the value."""
    said = ""
    try:
        check("beta", value, **settings)
    except ValueError as refusal:
        said = str(refusal)
    assert not said or said.startswith(f"beta: got {value!r},"), said
    return bool(said)


@pytest.mark.parametrize("value", INTEGERS, ids=repr)
def test_integers_of_every_library_are_integers(value: Any) -> None:
    assert is_integer(value)
    assert is_number(value)
    for check in (check_count, check_seed):
        assert type(check("beta", value)) is int
        assert check("beta", value) == 3


@pytest.mark.parametrize("value", REALS, ids=repr)
def test_real_numbers_are_numbers_and_no_integers(value: Any) -> None:
    assert is_number(value)
    assert not is_integer(value)
    assert to_float(value) == check_share("beta", value) == check_number("beta", value) == 0.5
    assert type(plain_number(value)) is type(check_number("beta", value)) is float
    assert refuses(check_count, value)
    assert refuses(check_seed, value)


@pytest.mark.parametrize("value", NEITHER, ids=repr)
def test_booleans_text_and_containers_are_no_numbers(value: Any) -> None:
    assert not is_integer(value)
    assert not is_number(value)
    assert np.isnan(to_float(value))
    for check in (check_count, check_seed, check_number, check_share):
        assert refuses(check, value)


@given(st.integers(-3, 3) | st.integers(2**63 - 3, 2**63 + 3) | st.integers(2**32 - 3, 2**32 + 3))
def test_counts_and_seeds_end_where_they_say(value: int) -> None:
    assert refuses(check_count, value) == (not 1 <= value < 2**63)
    assert refuses(check_count, value, zero=True) == (not 0 <= value < 2**63)
    assert refuses(check_seed, value) == (not 0 <= value < 2**32)
    assert refuses(check_seed, value, limit=2**64) == (value < 0)


@given(st.floats() | st.sampled_from([0.0, 1.0, LARGEST, LARGEST * 2, 10**400, -(10**400)]))
def test_numbers_and_shares_end_where_they_say(value: float) -> None:
    assert refuses(check_number, value) == (not 0 < value <= LARGEST)
    assert refuses(check_number, value, zero=True) == (not 0 <= value <= LARGEST)
    assert refuses(check_share, value) == (not 0 < value < 1)
    assert refuses(check_share, value, whole=True) == (not 0 < value <= 1)


def test_sizes_are_positive_and_few() -> None:
    assert check_sizes("beta", np.array([3, 8, 8])) == check_sizes("beta", [3, np.int64(8), 8]) == (3, 8, 8)
    for sizes in ((), (3, 0), (3, -1), (3.0, 8), (True, 8), "38", b"38", 3, None, (2**16, 2**15)):
        assert refuses(check_sizes, sizes), sizes
    assert check_sizes("beta", (2**16, 2**15 - 1))


def test_flags_choices_and_text_are_of_their_own_type() -> None:
    for value in (True, False):
        check_flag("beta", value)
    for value in (np.True_, 0, 1, None, "True"):
        assert refuses(check_flag, value)
    choices = ("linear", "cosine")
    assert not refuses(check_choice, "cosine", choices=choices)
    for value in ("cosin", "", 1, None, ["cosine"]):
        assert refuses(check_choice, value, choices=choices)
    with pytest.raises(ValueError, match=r"'cosine'\?$"):
        check_choice("beta", "Cosin", choices)
    assert not refuses(check_text, "")
    assert refuses(check_text, b"")


def test_a_class_is_no_object_of_it() -> None:
    check_type("beta", True, int, "a whole number")
    for value, named in ((int, "the class int"), ("3", "str"), (None, "NoneType")):
        with pytest.raises(TypeError, match=f"^beta: got {re.escape(named)},"):
            check_type("beta", value, int, "a whole number")


def test_paths_are_text_that_a_file_system_takes(tmp_path: Path) -> None:
    assert check_path("beta", str(tmp_path)) == check_path("beta", tmp_path) == tmp_path
    for value in ("", "a\0b", b"runs", 3, None):
        assert refuses(check_path, value)


def test_the_nearest_name_ignores_case_and_dashes() -> None:
    known = ("apgd-ce", "apgd-t", "square")
    assert find_nearest("APGD_CE", known) == "apgd-ce"
    assert find_nearest("sqare", known) == "square"
    assert find_nearest("x", known) is find_nearest(3, known) is find_nearest("x", ()) is None


def test_the_caller_of_the_package_is_one_level_above_a_check() -> None:
    assert find_caller_level() == 1  # this line itself is outside of the package

"""Text of unknown origin: whatever it holds, it stays text."""

from __future__ import annotations

import csv
import io

from hypothesis import given
from hypothesis import strategies as st

from art_robust_plugins.escapes import csv_cell, escape_markdown, printable, shorten_middle


@given(st.text())
def test_printable_text_has_no_control_and_stays_where_it_was_printable(text: str) -> None:
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert (shown == text) == text.isprintable()


@given(st.text("ab<>&|`*[]~$\\:/. w\n#-1+"))
def test_no_mark_of_markdown_is_left_bare(text: str) -> None:
    escaped = escape_markdown(text)
    assert "\n" not in escaped
    bare = escaped.replace("\\\\", "")
    for mark in "`*|[]~$":
        assert bare.count(mark) == bare.count(f"\\{mark}")
    assert "<a" not in escaped
    assert "://" not in escaped


@given(st.text("=+-@\t\r\n 1a\uff1d"))
def test_cells_begin_no_formula_and_keep_their_text(text: str) -> None:
    cell = csv_cell(text)
    assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))
    assert cell.removeprefix("'") == text
    file = io.StringIO(newline="")
    csv.writer(file).writerow([cell])
    assert next(csv.reader(io.StringIO(file.getvalue(), newline=""))) == [cell]


@given(st.text(), st.integers(6, 20))
def test_shortened_text_keeps_both_ends(text: str, letters: int) -> None:
    short = shorten_middle(text, letters)
    assert len(short) <= letters
    assert short[:2] == text[:2]
    assert short[-2:] == text[-2:]
    assert (short == text) == (len(text) <= letters) or "…" in text

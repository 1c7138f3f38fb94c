"""The warning about classes that have no images."""

from __future__ import annotations

import warnings

import pytest

from art_robust_plugins.labels import MissingClassWarning, warn_of_missing_classes


def test_no_class_is_missing_no_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_missing_classes("y", [], 10)


@pytest.mark.parametrize(
    ("missing", "shown", "from_one"),
    [([4], "4", False), ([0], "0", True), ([0, 3], "0, 3", False), (list(range(12)), "9, ...", False)],
)
def test_missing_classes_are_named(missing: list[int], shown: str, from_one: bool) -> None:
    def train() -> None:
        warn_of_missing_classes("y_train", missing, 20)

    with pytest.warns(MissingClassWarning, match=rf"^y_train: got no .* {shown} .*20") as told:
        train()
    (warning,) = told
    assert ("from 1" in str(warning.message)) == from_one
    assert warning.filename == __file__

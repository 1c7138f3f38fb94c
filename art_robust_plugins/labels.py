"""The warning about classes that have no images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence


class MissingClassWarning(UserWarning):
    """Training labels leave out a class that the network has an output for."""


def warn_of_missing_classes(name: str, missing: Sequence[int], nb_classes: int) -> None:
    """Warn of classes without images, where there are some.

    Args:
        name: of the labels.
        missing: the classes.
        nb_classes: how many classes there are.
    """
    if not missing:
        return
    listed = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
    hint = f"; are they labels from 1, of {nb_classes - 1} classes to be counted from 0?" if missing == [0] else "."
    warnings.warn(
        f"{name}: got no image of class {listed} of {nb_classes} classes, expected some of each class{hint}",
        MissingClassWarning,
        stacklevel=3,
    )

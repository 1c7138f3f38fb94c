"""Data sets as float32 images in [0, 1], channels first, with int64 labels: digits, MNIST, CIFAR-10, .npz files."""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from art import config
from art.utils import load_cifar10, load_mnist
from numpy.typing import NDArray

from .checks import check_path, describe_error, suggest
from .files import read_npz
from .labels import warn_of_missing_classes

Images = NDArray[np.float32]
Labels = NDArray[np.int64]

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_CHANNELS = (1, 3, 4)


@dataclass(frozen=True)
class Dataset:
    """Images for training and testing, in the form that the trainers and the evaluation take.

    Args:
        name: what `load_data` was given.
        x_train: float32 [N, C, H, W] in [0, 1].
        y_train: int64 [N], classes 0 .. nb_classes - 1.
        x_test: as ``x_train``.
        y_test: as ``y_train``.
        nb_classes: how many classes there are.
    """

    name: str
    x_train: Images
    y_train: Labels
    x_test: Images
    y_test: Labels
    nb_classes: int

    def __repr__(self) -> str:
        images = f"{len(self.x_train)} training and {len(self.x_test)} test images {self.input_shape}"
        return f"Dataset({self.name!r}: {images}, {self.nb_classes} classes)"

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image, (C, H, W)."""
        return self.x_train.shape[1:]


def load_data(name: str | Path, *, test_only: bool = False) -> Dataset:
    """Load a data set.

    - ``"digits"``: the 1797 handwritten digits of 8x8 pixels that come with scikit-learn; 360 of them, the same share
      of each class, are the test set.
    - ``"mnist"``, ``"cifar10"``: through ART's loaders, which download them into ``art.config.ART_DATA_PATH`` when
      they are not there. ART unpickles the CIFAR-10 batches that it finds there: put only the original ones there.
    - the path of an ``.npz`` file with the arrays ``x_train``, ``y_train``, ``x_test``, ``y_test``: images
      [N, C, H, W] or [N, H, W, C] with 1, 3 or 4 channels, or [N, H, W], as uint8 (divided by 255) or floats in
      [0, 1]; labels as whole numbers from 0. A class that ``y_train`` leaves out is warned of.

    Args:
        name: one of these names, or a path.
        test_only: of an ``.npz`` file read ``x_test`` and ``y_test`` alone, which are all that it must have then;
            there are no training images.

    Raises:
        ValueError: an unknown name, or a file that is not as described.
        FileNotFoundError: there is no such file, or a data set is not there and cannot be downloaded.

    Example:
        >>> data = load_data("digits")
        >>> data.x_train.shape, data.x_test.shape, data.nb_classes
        ((1437, 1, 8, 8), (360, 1, 8, 8), 10)
    """
    path = check_path("name", name)
    if str(name) in _LOADERS:
        return _LOADERS[str(name)]()
    if path.suffix.lower() == ".npz":
        return _npz(path, test_only)
    known = f"{', '.join(_LOADERS)}, or an .npz file"
    raise ValueError(f"name: got the data {str(name)!r}, expected one of {known}{suggest(str(name), _LOADERS)}")


def _digits() -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    x_train, x_test, y_train, y_test = train_test_split(
        x, labels.astype(np.int64), test_size=360, random_state=0, stratify=labels
    )
    return Dataset("digits", x_train, y_train, x_test, y_test, 10)


def _mnist() -> Dataset:
    with _art_data("mnist", "mnist.npz"):
        (x_train, y_train), (x_test, y_test), _, _ = load_mnist(raw=True)
    x_train, x_test = (x[:, np.newaxis] for x in (x_train, x_test))
    return _from_bytes("mnist", x_train, y_train, x_test, y_test)


def _cifar10() -> Dataset:
    with _art_data("cifar10", "cifar-10-batches-py"):
        (x_train, y_train), (x_test, y_test), _, _ = load_cifar10(raw=True)
    x_train, x_test = (x.transpose(0, 3, 1, 2) for x in (x_train, x_test))
    return _from_bytes("cifar10", x_train, y_train, x_test, y_test)


_LOADERS: dict[str, Callable[[], Dataset]] = {"digits": _digits, "mnist": _mnist, "cifar10": _cifar10}


def _from_bytes(name: str, x_train: Any, y_train: Any, x_test: Any, y_test: Any) -> Dataset:
    return Dataset(
        name,
        _unit_range(x_train),
        np.asarray(y_train, dtype=np.int64),
        _unit_range(x_test),
        np.asarray(y_test, dtype=np.int64),
        10,
    )


def _unit_range(pixels: NDArray[np.uint8]) -> Images:
    """uint8 pixels -> float32 in [0, 1], contiguous, with no copy of another type in between."""
    unit = np.ascontiguousarray(pixels, dtype=np.float32)
    unit /= 255
    return unit


@contextmanager
def _art_data(name: str, file: str) -> Iterator[None]:
    """Call a loader of ART: make its folder, undo its side effects, and say in a sentence what is missing."""
    folder = Path(config.ART_DATA_PATH)
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(
            f"{name}: got the read-only folder {folder}, expected one that ART may write to (it passes over others); "
            f"set it with art.config.set_data_path(folder)."
        )
    there = (folder / file).exists()
    # To download, ART turns off the verification of certificates for the whole process, and its message of a failed
    # download is not one that logging can print.
    context = ssl._create_default_https_context
    log = logging.getLogger("art.utils")
    disabled, log.disabled = log.disabled, True
    try:
        yield
    except Exception as error:
        if there:
            raise ValueError(
                f"{folder / file}: ART cannot read it ({describe_error(error)}), expected the original data of {name}."
            ) from error
        raise FileNotFoundError(
            f"{name}: {file} is not in {folder} (ART's data folder) and cannot be downloaded; put it there, or name "
            f"its folder with art.config.set_data_path(folder)."
        ) from error
    finally:
        log.disabled = disabled
        ssl._create_default_https_context = context


def _npz(path: Path, test_only: bool) -> Dataset:
    arrays = read_npz(path, _ARRAYS[2:] if test_only else _ARRAYS)
    if test_only:
        x, y = _images(arrays["x_test"], f"{path}: x_test"), _labels(arrays["y_test"], f"{path}: y_test")
        _check_number(path, "test", x, y)
        return Dataset(str(path), x[:0], y[:0], x, y, int(y.max()) + 1)
    x_train, x_test = (_images(arrays[key], f"{path}: {key}") for key in ("x_train", "x_test"))
    y_train, y_test = (_labels(arrays[key], f"{path}: {key}") for key in ("y_train", "y_test"))
    if x_train.shape[1:] != x_test.shape[1:]:
        raise ValueError(f"{path}: x_test: got images {x_test.shape[1:]}, expected {x_train.shape[1:]} as in x_train.")
    _check_number(path, "train", x_train, y_train)
    _check_number(path, "test", x_test, y_test)
    nb_classes = int(max(y_train.max(), y_test.max())) + 1
    missing = np.setdiff1d(np.arange(nb_classes), y_train).tolist()
    warn_of_missing_classes(f"{path}: y_train", missing, nb_classes)
    return Dataset(str(path), x_train, y_train, x_test, y_test, nb_classes)


def _check_number(path: Path, part: str, x: Images, y: Labels) -> None:
    if len(x) != len(y):
        raise ValueError(f"{path}: y_{part}: got {len(y)} labels for {len(x)} images, expected one for each.")


def _images(x: NDArray[Any], place: str) -> Images:
    if x.ndim not in (3, 4) or 0 in x.shape or (x.dtype != np.uint8 and x.dtype.kind != "f"):
        raise ValueError(f"{place}: got {x.dtype} {x.shape}, expected images (N, C, H, W) as uint8 or floats.")
    if x.ndim == 3:
        x = x[:, np.newaxis]
    else:
        first, last = x.shape[1] in _CHANNELS, x.shape[3] in _CHANNELS
        if first == last:
            found = "both orders fit" if first else "neither order fits"
            raise ValueError(
                f"{place}: got the shape {x.shape}, where {found}, expected (N, C, H, W) or (N, H, W, C) with 1, 3 or "
                f"4 channels and larger images."
            )
        x = x if first else x.transpose(0, 3, 1, 2)
    if x.dtype == np.uint8:
        return _unit_range(x)
    x = np.ascontiguousarray(x, dtype=np.float32)
    smallest, largest = x.min(), x.max()
    if not (smallest >= 0 and largest <= 1):
        raise ValueError(f"{place}: got floats in [{smallest:g}, {largest:g}], expected [0, 1]; or give uint8.")
    return x


def _labels(y: NDArray[Any], place: str) -> Labels:
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or y.dtype.kind not in "iu" or len(y) == 0 or y.min() < 0:
        raise ValueError(f"{place}: got {y.dtype} {y.shape}, expected labels (N,) as whole numbers from 0.")
    return y.astype(np.int64)

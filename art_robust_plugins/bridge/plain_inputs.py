"""The images of a plain network: their shape and range, and the standardisation between them and the network."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .ranges import RANGE_TOLERANCE, InputRange, bounded_range, read_clip_values
from .tensors import plain_tensor

UNIT_BOUNDS = (0.0, 1.0)
"""The bounds of a plain network's inputs where none are given."""

_CHANNELS = (1, 3, 4)


def check_images(x: Any) -> Tensor:
    """``x`` as a tensor of numbers [N, ...], whose axes may yet be others than the network's.

    Raises:
        ValueError: values that are no numbers, a single axis, no samples.
    """
    images = plain_tensor(x, "x")
    if images.dim() < 2:
        raise ValueError(
            f"x: got an array of shape {tuple(images.shape)}, expected images (N, C, H, W) or vectors (N, F)."
        )
    if images.numel() == 0:
        raise ValueError(f"x: got an array of shape {tuple(images.shape)}, expected at least one sample.")
    if images.dtype == torch.bool:
        raise ValueError(f"x: got values of type {images.dtype}, expected numbers.")
    return images


def read_bounds(bounds: Any, shape: tuple[int, ...]) -> InputRange:
    """The range of images of a shape, two numbers or two arrays; of None, `UNIT_BOUNDS`.

    Raises:
        ValueError: for anything else.
    """
    given = UNIT_BOUNDS if bounds is None else bounds
    if not isinstance(given, list | tuple | np.ndarray | Tensor) or len(given) != 2 or any(v is None for v in given):
        raise ValueError(
            f"bounds: got {bounds!r}, expected two numbers (low, high), such as (0, 255), or two arrays that broadcast "
            f"against {shape}."
        )
    try:
        return bounded_range(*read_clip_values(given, shape))
    except ValueError as error:
        _, _, reason = str(error).partition("clip_values are ")
        raise ValueError(f"bounds: got {reason or error}") from None


def check_range(images: Tensor, limits: InputRange) -> None:
    """Refuse images outside of their range; the sentence says what they may be instead.

    Raises:
        ValueError: for such images, and for NaN and infinity.
    """
    smallest, largest = float(images.min()), float(images.max())
    if not (math.isfinite(smallest) and math.isfinite(largest)):
        raise ValueError("x: got NaN or infinity, expected finite numbers.")
    (low, high), slack = limits.hull, RANGE_TOLERANCE * limits.width
    if low - slack <= smallest and largest <= high + slack:
        return
    advice = f"or bounds=(low, high) for a network that takes another range than [{low:g}, {high:g}]"
    if smallest >= 0 and 1 < largest <= 255 and (low, high) == UNIT_BOUNDS and (largest > 16 or _are_whole(images)):
        advice = "as x / 255 gives, or bounds=(0, 255) for a network that takes such values"
    elif smallest < 0 and (low, high) == UNIT_BOUNDS:
        advice = (
            "as before a normalisation, whose mean= and std= go with the network; or bounds=(low, high) for a network "
            "that takes another range"
        )
    raise ValueError(f"x: got values in [{smallest:g}, {largest:g}], expected [{low:g}, {high:g}], {advice}.")


def _are_whole(images: Tensor) -> bool:
    return not images.is_floating_point() or bool((images == images.round()).all())


def read_standardisation(
    mean: Any, std: Any, shape: tuple[int, ...], limits: InputRange
) -> tuple[float | NDArray[np.float32], float | NDArray[np.float32]]:
    """ART's ``preprocessing``; numbers of the channels stand on the first axis, also where another is as long.

    Raises:
        ValueError: one without the other, numbers that do not fit ``shape``, a divisor that is not positive, a mean far
            outside of the range.
    """
    if mean is None and std is None:
        return 0.0, 1.0
    if mean is None or std is None:
        name, other = ("mean", "std") if mean is None else ("std", "mean")
        raise ValueError(f"{name}: got None beside {other}, expected both, in the units of x.")
    subtrahend, divisor = (_read_constants(*named, shape) for named in (("mean", mean), ("std", std)))
    if not bool((divisor > 0).all()):
        raise ValueError(f"std: got {std!r}, expected positive numbers.")
    (low, high), width = limits.hull, limits.width
    if float(subtrahend.min()) < low - width or float(subtrahend.max()) > high + width:
        raise ValueError(
            f"mean: got {mean!r} for images in [{low:g}, {high:g}], expected it in their units, or bounds= in its own."
        )
    if subtrahend.size == divisor.size == 1:
        return float(subtrahend), float(divisor)
    both = np.broadcast_arrays(subtrahend, divisor)
    return both[0].copy(), both[1].copy()


def _read_constants(name: str, values: Any, shape: tuple[int, ...]) -> NDArray[np.float32]:
    array = plain_tensor(values, name).cpu().float().numpy()
    if array.size == 1:
        array = array.reshape(())
    elif array.ndim == 1:
        array = array.reshape(-1, *[1] * (len(shape) - 1))
    elif array.ndim == len(shape) + 1 and len(array) == 1:
        array = array[0]
    try:
        fits = np.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits or not bool(np.isfinite(array).all()):
        raise ValueError(
            f"{name}: got {values!r} for images of shape {shape}, expected a finite number, or one for each of "
            f"{shape[0]} channels{advise_on_layout(shape)}."
        )
    return array


def advise_on_layout(shape: tuple[int, ...]) -> str:
    """What to do about images whose channels seem to come last, as the end of a sentence, or ""."""
    if len(shape) == 3 and shape[-1] in _CHANNELS and shape[0] not in _CHANNELS:
        return (
            "; the channels seem to come last, and x.transpose(0, 3, 1, 2) of an array, or x.permute(0, 3, 1, 2) of a "
            "tensor, puts them first"
        )
    return ""

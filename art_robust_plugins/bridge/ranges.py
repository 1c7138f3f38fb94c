"""The range of a classifier's inputs: its ``clip_values`` as ART means them, and the cube [0, 1] that attacks search.

Attacks search the cube [0, 1] with one radius. One factor, the width of the widest feature, therefore maps the cube to
the range, and the threat's radius with it: x = low + width u. If all features are equally wide, the image of the cube
is the range. Otherwise it is larger, and values above ``high`` are clipped. Clipping brings an input no farther from
any point of the range, so the inputs within the threat's ball are the same for the cube and for the range.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import Tensor

from ..checks import find_caller_level
from ..threat import Bound, ThreatModel, check_radius, clip
from .networks import device_of
from .straight_through import clip_above

RANGE_TOLERANCE = 1e-6
"""The tolerance for values outside clip_values, as a ratio of the width of their range."""

WIDE = 100.0
"""A range as wide is one of pixel levels, whose radii are no fractions of a level."""

SMALLEST_LEVELS = {"Linf": 0.25, "L2": 1.0, "L1": 1.0}
"""A radius of fewer levels is likely one of images in [0, 1]."""


def read_clip_values(clip_values: Any, input_shape: tuple[int, ...]) -> tuple[Bound | None, Bound | None]:
    """ART's ``clip_values`` as numbers, as tensors that broadcast against a batch where features differ, or no limits.

    Raises:
        ValueError: NaN, a low that is not below its high in float32, arrays that do not broadcast.
    """
    if clip_values is None:
        return None, None
    try:
        low, high = (_limit(np.asarray(values, dtype=np.float32), input_shape) for values in clip_values)
    except (TypeError, ValueError) as error:
        shapes = " and ".join(str(np.shape(values)) for values in clip_values) if np.iterable(clip_values) else ""
        got = f"of shapes {shapes}" if shapes else repr(clip_values)
        channels = " or (C, 1, 1) for one of each channel" if len(input_shape) == 3 else ""
        raise ValueError(
            f"classifier: clip_values are {got}, expected two numbers (low, high), or two arrays that broadcast "
            f"against {input_shape}, such as that shape{channels}."
        ) from error
    if not bool((low < high).all()):  # NaN is not below anything
        wrong = np.broadcast_arrays(low, high)
        first = int(np.flatnonzero(~(wrong[0] < wrong[1]))[0])
        raise ValueError(
            f"classifier: clip_values are ({wrong[0].flat[first]:g}, {wrong[1].flat[first]:g}), expected a low below "
            f"its high in float32."
        )
    if low.min() == low.max() and high.min() == high.max():
        return float(low.min()), float(high.max())
    return torch.from_numpy(low.copy()), torch.from_numpy(high.copy())


def _limit(values: NDArray[np.float32], input_shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A limit without the axis of the batch; an error where it does not broadcast against an input."""
    while values.ndim > len(input_shape) and values.shape[0] == 1:
        values = values[0]
    np.broadcast_to(values, input_shape)
    return values


class InputRange:
    """A bounded range of inputs, and its map from the cube [0, 1].

    Attributes:
        low: the lower limit of every feature: a number, or a tensor that broadcasts against a batch.
        high: the upper limit.
        uniform: whether both are numbers.
        width: the width of the widest feature, by which the cube is scaled.
        even: whether all features are equally wide, up to rounding.

    Example:
        >>> box = InputRange(torch.tensor([0.0, -1.0]), torch.tensor([4.0, 1.0]))
        >>> box.width, box.even
        (4.0, False)
        >>> box.from_unit(torch.tensor([[0.25, 0.25], [1.0, 1.0]]))
        tensor([[1., 0.],
                [4., 1.]])
    """

    def __init__(self, low: Bound, high: Bound) -> None:
        self.low, self.high = low, high
        self.uniform = not isinstance(low, Tensor) and not isinstance(high, Tensor)
        widths = torch.as_tensor(high - low, dtype=torch.float64, device="cpu")
        smallest, largest = float(widths.min()), float(widths.max())
        self.width = largest
        self.even = smallest >= largest * (1 - RANGE_TOLERANCE)

    @property
    def hull(self) -> tuple[float, float]:
        """The smallest range of one number that holds all features."""
        return float(torch.as_tensor(self.low, device="cpu").min()), float(
            torch.as_tensor(self.high, device="cpu").max()
        )

    def from_unit(self, x: Tensor) -> Tensor:
        """Inputs [N, ...] of the cube -> inputs of the range; the gradient is that of the map without clipping."""
        width, low = self.width, _like(self.low, x)
        if self.uniform and width == 1 and low == 0:
            return x
        moved = x * width + low
        return moved if self.even else clip_above(moved, torch.as_tensor(_like(self.high, x)))

    def to_unit(self, x: Tensor) -> Tensor:
        """The inverse of `from_unit`, limited to the cube."""
        width, low = self.width, _like(self.low, x)
        return x if self.uniform and width == 1 and low == 0 else ((x - low) / width).clamp(0, 1)

    def clip(self, x: Tensor) -> Tensor:
        """Limit inputs to the range."""
        return clip(x, self.low, self.high)

    def limit(self, x: Tensor) -> Tensor:
        """As `clip`, without a copy where all inputs lie within the range."""
        if not isinstance(self.low, Tensor) and not isinstance(self.high, Tensor):
            smallest, largest = (float(value) for value in x.aminmax())
            if self.low <= smallest and largest <= self.high:
                return x
        return self.clip(x)

    def holds(self, x: Tensor) -> Tensor:
        """Which inputs [N, ...] lie in the range, up to `RANGE_TOLERANCE` of the width; bool [N]."""
        margin = RANGE_TOLERANCE * self.width
        low, high = _like(self.low, x), _like(self.high, x)
        return ((x >= low - margin) & (x <= high + margin)).flatten(1).all(dim=1)

    def __str__(self) -> str:
        if self.uniform:
            return f"[{self.low:g}, {self.high:g}]"
        (lowest, low), (high, highest) = (
            (float(limit.min()), float(limit.max())) for limit in map(torch.as_tensor, (self.low, self.high))
        )
        narrow = float(torch.as_tensor(self.high - self.low, device="cpu").min())
        return f"low {lowest:g} to {low:g}, high {high:g} to {highest:g}, features {narrow:g} to {self.width:g} wide"


def is_bounded(low: Bound | None, high: Bound | None) -> bool:
    """Whether all inputs have finite limits."""
    if low is None or high is None:
        return False
    return all(map(math.isfinite, InputRange(low, high).hull))


def bounded_range(low: Bound | None, high: Bound | None) -> InputRange:
    """A range that attacks can search.

    Raises:
        ValueError: a limit is missing or infinite.
    """
    if low is None or high is None:
        raise ValueError("classifier: clip_values are None, expected the range of its inputs, such as (0, 1).")
    if not is_bounded(low, high):
        raise ValueError(
            f"classifier: clip_values are {_text(low, high)}, expected two finite limits, those of all inputs that "
            f"exist, such as (0, 1)."
        )
    return InputRange(low, high)


def _text(low: Bound, high: Bound) -> str:
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        return str(InputRange(low, high))
    return f"({low:g}, {high:g})"


def _like(bound: Bound, x: Tensor) -> Bound:
    return bound.to(x.device, x.dtype) if isinstance(bound, Tensor) else bound


def clip_range(classifier: PyTorchClassifier) -> tuple[Bound | None, Bound | None]:
    """The classifier's ``clip_values`` as numbers, as tensors when they differ by feature, or (None, None).

    Raises:
        ValueError: NaN, a low that is not below its high, arrays that do not fit ``input_shape``.
    """
    low, high = read_clip_values(classifier.clip_values, tuple(classifier.input_shape))
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        device = device_of(classifier.model)
        return low.to(device), high.to(device)
    return low, high


def check_threat(
    threat: ThreatModel,
    classifier: PyTorchClassifier,
    *,
    name: str = "eps",
    value: float | None = None,
    x: Tensor | None = None,
    warn: bool = True,
) -> None:
    """Refuse a radius that is likely in other units than the classifier's input, or warn of it.

    Args:
        threat: the ball.
        classifier: its ``clip_values`` are the range of the inputs.
        name: what the sentences call the radius.
        value: another length in the threat's norm, to be checked in place of the radius.
        x: inputs [N, ...], whose range counts where ``clip_values`` are None or infinite; without them, and without
            limits, nothing is checked.
        warn: whether to warn.

    Raises:
        ValueError: the ball holds every input in the range.

    Warns:
        UserWarning: the radius is a fraction of a pixel's level on a range of levels.
    """
    low, high = clip_range(classifier)
    if x is not None:
        low, high = _fill_limit(low, x.min()), _fill_limit(high, x.max())
    if low is None or high is None:
        return
    check_radius(threat, low, high, math.prod(classifier.input_shape), name=name, value=value)
    box, radius = InputRange(low, high), threat.eps if value is None else value
    smallest = SMALLEST_LEVELS[threat.norm] * box.width / 255
    if warn and WIDE <= box.width < math.inf and 0 < radius < smallest:
        warnings.warn(
            f"{name}: got {radius:g} for inputs in {box}, which is {radius * 255 / box.width:.2g} of 255 levels; a "
            f"radius of inputs in [0, 1] is {radius * box.width:g} here.",
            stacklevel=find_caller_level(),
        )


def _fill_limit(limit: Bound | None, found: Tensor) -> Bound:
    """A limit of the inputs, and where it is missing or infinite that of the inputs that were found."""
    if isinstance(limit, Tensor):
        return torch.where(limit.isfinite(), limit, found.to(limit))
    return limit if limit is not None and math.isfinite(limit) else float(found)


def input_range(classifier: PyTorchClassifier) -> InputRange:
    """The classifier's ``clip_values`` as a range that attacks can search.

    Raises:
        ValueError: as `clip_range`, and for limits that are missing or infinite.
    """
    return bounded_range(*clip_range(classifier))

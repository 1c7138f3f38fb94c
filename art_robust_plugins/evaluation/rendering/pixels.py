"""Images as PNG: of 8 bits a channel, grey or colour."""

from __future__ import annotations

from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from ..results import EvaluationResults

LARGEST_SIDE = 256
"""The most pixels a side of what is shown as an image."""


def holds_images(report: EvaluationResults) -> bool:
    """Whether the inputs are images of one or three channels whose sides are short enough to be shown."""
    shape = report.settings["input_shape"]
    if len(shape) != 3:
        return False
    channels, *sides = shape if has_channels_first(report) else [shape[-1], *shape[:-1]]
    return channels in (1, 3) and max(sides) <= LARGEST_SIDE


def has_channels_first(report: EvaluationResults) -> bool:
    """Whether the inputs are [channels, height, width]; reports of earlier versions do not say, and took no others."""
    return bool(report.settings.get("channels_first", True))


def scale_to_unit(report: EvaluationResults, images: NDArray[np.floating]) -> NDArray[np.float64]:
    """Images in the estimator's range, by its lowest and highest value scaled to [0, 1]."""
    low, high = report.settings["clip_values"]
    return np.asarray((np.asarray(images, np.float64) - low) / (high - low))


def round_to_bytes(images: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Images in [0, 1] in 256 levels; halves are rounded up."""
    return np.asarray(np.floor(np.clip(images, 0, 1) * 255 + 0.5), np.uint8)


def shrink(levels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """An image [channels, height, width] whose longer side is at most ``side``, by the means of areas."""
    from PIL import Image

    height, width = levels.shape[1:]
    scale = side / max(height, width)
    if scale >= 1:
        return levels
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.stack([np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BOX)) for each in levels])


def encode_png(levels: NDArray[np.uint8], channels_first: bool) -> bytes:
    """An image of 256 levels [channels, height, width] or [height, width, channels] as PNG."""
    from PIL import Image

    pixels = levels.transpose(1, 2, 0) if channels_first else levels
    buffer = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)).save(buffer, "png")
    return buffer.getvalue()

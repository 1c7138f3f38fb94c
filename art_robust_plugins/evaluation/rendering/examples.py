"""The pictures of a report's examples: small ones, so that a page's size does not grow with the images'."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..results import EvaluationResults
from .pixels import encode_png, round_to_bytes, shrink

SIDE = 64
"""The most pixels of a picture's longer side."""


@dataclass(frozen=True)
class Example:
    """A broken point: what it is called, its label, what the network says, and three pictures as base64 of PNG."""

    point: int
    label: int
    says: str
    clean: str
    change: str
    attacked: str


def draw_examples(report: EvaluationResults) -> tuple[list[Example], float]:
    """The examples and how much their changes are amplified; none of data that are no images."""
    examples = report.examples
    if len(examples.indices) == 0 or examples.clean.ndim != 4:
        return [], 0.0
    change = examples.adversarial.astype(np.float64) - examples.clean
    amplified = 0.5 / max(float(np.abs(change).max()), 1e-12)
    columns = (examples.indices, examples.labels, examples.predictions)
    pictures = (examples.clean, 0.5 + amplified * change, examples.adversarial)
    found = [
        Example(int(point), int(label), "NaN" if says < 0 else str(says), *map(_draw, images))
        for point, label, says, *images in zip(*columns, *pictures, strict=True)
    ]
    return found, amplified


def _draw(image: NDArray[np.floating]) -> str:
    """Three channels are colours; any other number is shown as its mean."""
    shown = image if len(image) == 3 else image.mean(axis=0, keepdims=True)
    return base64.b64encode(encode_png(shrink(round_to_bytes(shown), SIDE), channels_first=True)).decode()

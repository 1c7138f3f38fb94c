"""Requirements of several libraries for the images that they attack."""

from __future__ import annotations

from .attack import Setting

# The reference divides each side of the image into five for the square attack's first stripes.
SMALLEST_SIDE = 5


def check_sides(setting: Setting, name: str) -> None:
    """Refuse inputs that the reference's square attack, called ``name`` here, cannot take.

    Raises:
        ValueError: inputs that are no images, or have a side of less than `SMALLEST_SIDE` pixels.
    """
    shape = setting.input_shape
    if len(shape) != 3 or min(shape[1:]) < SMALLEST_SIDE:
        raise ValueError(
            f"attacks: {name!r} needs images with both sides of at least {SMALLEST_SIDE} pixels, got inputs of shape "
            f"{shape}; expected the other attacks by name, such as ['apgd-ce', 'apgd-t', 'fab-t']."
        )

"""Common parts of networks: a row of layers, the check of an image's shape, the recipe, the layers to initialise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..checks import check_count, check_sizes, to_float


class Layered(nn.Module):
    """A network that is its ``layers``, one after the other."""

    layers: nn.Sequential

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


def describe_recipe(name: str, input_shape: Sequence[int], nb_classes: int, **arguments: Any) -> dict[str, Any]:
    """The arguments with which `create_model` makes a network again, as JSON data."""
    return {
        "name": name,
        "input_shape": [int(size) for size in input_shape],
        "nb_classes": check_count("nb_classes", nb_classes),
        **arguments,
    }


def check_image_shape(input_shape: Sequence[int], name: str, *, smallest: int) -> tuple[int, int, int]:
    """(C, H, W) of images that are large enough for the network ``name``."""
    sizes = check_sizes("input_shape", input_shape)
    if len(sizes) != 3 or min(sizes[1:]) < smallest:
        raise ValueError(
            f"input_shape: got {input_shape}, expected (C, H, W) of at least {smallest} x {smallest} pixels "
            f"for {name!r}."
        )
    channels, height, width = sizes
    return channels, height, width


def weighted_layers(network: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """The convolutions and linear layers in order, their biases set to 0."""
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    for layer in layers:
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return layers


def check_dropout(dropout: float) -> float:
    """A probability of dropping a value: at least 0 and below 1."""
    if not 0 <= to_float(dropout) < 1:
        raise ValueError(f"dropout: got {dropout!r}, expected a number of at least 0 and below 1.")
    return float(dropout)

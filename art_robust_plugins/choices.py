"""Words that settings take and that the command line shows too, which reads them without importing torch."""

from __future__ import annotations

from typing import Literal

BATCH_SIZE = 250
"""Points that an attack gets at once, unless told otherwise; it fixes the randomness."""

Backend = Literal["native", "reference"]
"""The implementation of AutoAttack: this package's own, or the authors' package."""

Kernel = Literal["smoothing", "unsharp", "identity"]
"""What a weight map is initialised with."""

Format = Literal["torch-export", "onnx", "torchscript"]
"""Of the file that a network is exported to."""

NETWORKS = (
    "lenet",
    "quick",
    "small-cnn",
    "2c2f",
    "6c2f",
    "orthogonal-cnn",
    "orthogonal-mlp",
    "preact-resnet18",
    "wide-resnet",
)
"""The names of `models.MODELS`."""

"""Values that settings take. The command line shows them too, and reads them here without importing torch."""

from __future__ import annotations

from typing import Literal

BATCH_SIZE = 250
"""Points that an attack gets at once, unless told otherwise; it fixes the randomness."""

Backend = Literal["native", "reference"]
"""The implementation of AutoAttack: this package's own, or the authors' package."""

Kernel = Literal["smoothing", "unsharp", "identity"]
"""The kernel that a weight map starts with."""

Format = Literal["torch-export", "onnx", "torchscript"]
"""The format of the file that a network is exported to."""

NETWORK_CLASSES = {
    "lenet": "bang.LeNet",
    "quick": "bang.QuickNet",
    "small-cnn": "convolutional.SmallCNN",
    "2c2f": "convolutional.CNN2C2F",
    "6c2f": "convolutional.CNN6C2F",
    "orthogonal-cnn": "orthogonal.OrthogonalCNN",
    "orthogonal-mlp": "orthogonal.OrthogonalMLP",
    "preact-resnet18": "residual.PreActResNet18",
    "wide-resnet": "residual.WideResNet",
}
"""The name of a network -> its module in `models` and its class; `models.MODELS` imports them."""

NETWORKS = tuple(NETWORK_CLASSES)
"""The names of the networks."""

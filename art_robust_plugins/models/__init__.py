"""The papers' networks and the usual ones: LeNet, the CIFAR-10 quick net, small CNNs, residual and orthogonal ones.

Each takes images [N, *input_shape] and returns logits [N, nb_classes]. Each carries its ``recipe``, the arguments with
which `create_model` makes it again, so that a saved classifier can be loaded without the code that made it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from torch import nn

from ..checks import is_integer, suggest
from ..choices import NETWORK_CLASSES
from .activations import MinMax
from .bang import LeNet, QuickNet
from .convolutional import CNN2C2F, CNN6C2F, SmallCNN
from .orthogonal import OrthogonalCNN, OrthogonalMLP, orthogonal
from .residual import PreActResNet18, WideResNet

__all__ = [
    "CNN2C2F",
    "CNN6C2F",
    "MODELS",
    "LeNet",
    "MinMax",
    "OrthogonalCNN",
    "OrthogonalMLP",
    "PreActResNet18",
    "QuickNet",
    "SmallCNN",
    "WideResNet",
    "create_model",
    "orthogonal",
]


def _import_class(path: str) -> type[nn.Module]:
    """The class at ``module.Class`` of this package."""
    module, _, name = path.partition(".")
    found: type[nn.Module] = getattr(import_module(f".{module}", __package__), name)
    return found


MODELS: dict[str, type[nn.Module]] = {name: _import_class(path) for name, path in NETWORK_CLASSES.items()}
"""The names that `create_model` knows; `choices.NETWORK_CLASSES` registers them."""


def create_model(name: str, input_shape: Sequence[int], nb_classes: int, **arguments: Any) -> nn.Module:
    """Make a network by its name, with fresh weights from torch's random stream.

    Args:
        name: a key of `MODELS`, such as ``"lenet"`` or ``"wide-resnet"``.
        input_shape: shape of one image, (C, H, W).
        nb_classes: number of logits.
        **arguments: those of the network's class, such as ``depth`` of a wide ResNet.

    Raises:
        ValueError: for an unknown name, an input that does not fit the network, or fewer than 2 classes.
        TypeError: for arguments that the network does not have.

    Example:
        >>> network = create_model("wide-resnet", (3, 32, 32), 10, depth=10, widen_factor=2)
        >>> network.recipe["widen_factor"]
        2
    """
    if not isinstance(name, str) or name not in MODELS:
        raise ValueError(f"name: got the model {name!r}, expected one of {', '.join(MODELS)}{suggest(name, MODELS)}")
    if not is_integer(nb_classes) or nb_classes < 2:
        raise ValueError(f"nb_classes: got {nb_classes!r}, expected a whole number of at least 2.")
    known = list(inspect.signature(MODELS[name]).parameters)[2:]
    for given in arguments:
        if given not in known:
            hint = suggest(given, known, f", expected {' or '.join(known) or 'none'}.")
            raise TypeError(f"{given}: the network {name!r} has no such argument{hint}")
    return MODELS[name](input_shape, nb_classes, **arguments)

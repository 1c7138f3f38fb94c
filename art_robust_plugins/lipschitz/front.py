"""`certify`: proven radii of any network that can be bounded, in one call."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..bridge import as_estimator, check_no_conventions, copy_to, is_plain, rename_model
from ..checks import check_count
from ..keywords import explain_keywords
from ..threat import parse_norm
from .certifier import PyTorchLipschitzCertifier

_RADIUS = "none: a proven radius is returned for each image, to be compared with yours"
_LABELS = "none: the predictions are returned, to be compared with the labels"
_MEANT = {**dict.fromkeys(("eps", "epsilon", "radius", "threat"), _RADIUS), **dict.fromkeys(("y", "labels"), _LABELS)}


@partial(explain_keywords, meant=_MEANT)
def certify(
    model: nn.Module | PyTorchClassifier,
    x: Any,
    *,
    norm: str | float = "L2",
    bounds: Any = None,
    mean: Any = None,
    std: Any = None,
    nb_classes: int | None = None,
    device: Any = None,
    batch_size: int = 128,
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Predicted classes, and proven radii within which no change of the input changes them.

    For a plain network, `PyTorchLipschitzCertifier.certify` without ART; see there for what is proven, and how. A
    network that cannot be bounded is refused by the name of the operation. The network is left as it was.

    Args:
        model: a plain ``nn.Module`` that maps a batch [N, ...] to logits [N, classes], or an ART classifier. A
            `PyTorchLipschitzCertifier` keeps its graph and bound for the next call.
        x: images [N, ...] in ``bounds``, an array or a tensor; taken as float32.
        norm: of the changes: ``"L2"``, or ``"L1"`` and ``"Linf"``, whose radii follow from those of L2.
        bounds: of a plain network, the range of ``x``: two numbers, or two arrays; None for (0, 1).
        mean: of a plain network, what is subtracted from ``x`` first, a number or one for each channel.
        std: of a plain network, what the difference is divided by.
        nb_classes: of a plain network, how many outputs it must have; None for as many as it has.
        device: of a plain network, where to compute, on a copy; None for where it is.
        batch_size: how many samples a forward pass takes.

    Returns:
        the predictions, int64 [N], and the radii in the units of ``x``, float64 [N], at least 0.

    Raises:
        TypeError: for what is neither a network nor an ART classifier.
        ValueError: images, a norm or a network that do not fit, as in `PyTorchLipschitzCertifier`, and
            `NoLipschitzRuleError` among them.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
        >>> _ = nn.init.eye_(network[1].weight)
        >>> certify(network, [[[[0.9, 0.2]]], [[[0.3, 0.4]]]])[1].round(4)  # 0.7 / sqrt(2) for the first
        array([0.495 , 0.0707])
    """
    if isinstance(x, Dataset | DataLoader | Iterator):
        way = "stack([image for image, _ in data])" if isinstance(x, Dataset) else "cat([images for images, _ in data])"
        raise ValueError(f"x: got a {type(x).__name__}, expected an array or a tensor, as torch.{way} makes one.")
    norm, batch_size = parse_norm(norm), check_count("batch_size", batch_size)
    conventions = {"bounds": bounds, "mean": mean, "std": std, "nb_classes": nb_classes}
    with rename_model(), torch.inference_mode(False):
        if is_plain(model):
            if isinstance(model, torch.jit.ScriptModule):
                raise ValueError("model: got a ScriptModule, expected the network that it was made of, to be traced.")
            estimator = as_estimator(copy_to(model, device), x, **conventions)
        else:
            assert isinstance(model, PyTorchClassifier)
            check_no_conventions(model, **conventions, device=device)
            estimator = model
        if not isinstance(estimator, PyTorchLipschitzCertifier):
            estimator = PyTorchLipschitzCertifier.from_classifier(estimator)
        return estimator.certify(x, batch_size, norm=norm)

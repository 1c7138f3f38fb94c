"""Images and labels as tensors, checked against the classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from .ranges import RANGE_TOLERANCE, clip_range


def image_tensor(x: Any, classifier: PyTorchClassifier, *, name: str = "x") -> Tensor:
    """Check a batch of inputs against the classifier's shape and range; float32, shape [N, *input_shape].

    Accepts an array or a tensor; a tensor stays on its device.

    Raises:
        ValueError: see `compact_images`.
    """
    return compact_images(x, classifier, name=name).float()


def compact_images(x: Any, classifier: PyTorchClassifier, *, name: str = "x") -> Tensor:
    """As `image_tensor`, but images in uint8 stay so; other numbers become float32.

    Raises:
        ValueError: values that are no numbers, wrong rank or size, no samples, NaN or infinity, values outside
            ``clip_values``.
    """
    tensor = plain_tensor(x, name)
    shape, expected = tuple(tensor.shape), tuple(classifier.input_shape)
    if shape[1:] != expected or not shape:
        wanted = ", ".join(str(size) for size in expected)
        raise ValueError(f"{name}: got an array of shape {shape}, expected (N, {wanted}).")
    if shape[0] == 0:
        raise ValueError(f"{name}: got no samples, expected at least one.")
    if tensor.dtype == torch.bool:
        raise ValueError(f"{name}: got values of type {tensor.dtype}, expected numbers.")
    tensor = tensor if tensor.dtype == torch.uint8 else tensor.float()
    smallest, largest = tensor.min().item(), tensor.max().item()
    if not (np.isfinite(smallest) and np.isfinite(largest)):
        raise ValueError(f"{name}: got NaN or infinity, expected finite numbers.")
    low, high = clip_range(classifier)
    if isinstance(low, float) and isinstance(high, float):
        slack = RANGE_TOLERANCE * (high - low)
        if smallest < low - slack or largest > high + slack:
            raise ValueError(
                f"{name}: got values in [{smallest:g}, {largest:g}], expected the classifier's clip_values "
                f"[{low:g}, {high:g}]."
            )
    elif isinstance(low, Tensor) and isinstance(high, Tensor):
        low, high = low.to(tensor.device), high.to(tensor.device)
        slack_tensor = RANGE_TOLERANCE * (high - low)
        if bool(((tensor.amin(dim=0) < low - slack_tensor) | (tensor.amax(dim=0) > high + slack_tensor)).any()):
            raise ValueError(f"{name}: got values outside the classifier's clip_values, expected values within them.")
    return tensor


def label_tensor(y: Any, nb_classes: int, *, samples: int | None = None, name: str = "y") -> Tensor:
    """Labels as int64 class indices [N], from indices [N] or [N, 1] or one-hot rows [N, nb_classes].

    Raises:
        ValueError: values that are no numbers, another shape, a row that is not one-hot, an index outside
            0 .. nb_classes - 1, or a length other than ``samples``.
    """
    labels = plain_tensor(y, name)
    if labels.dim() == 2 and labels.shape[1] == nb_classes and nb_classes > 1:
        one_hot = ((labels == 0) | (labels == 1)).all() and (labels.sum(dim=1) == 1).all()
        if not one_hot:
            raise ValueError(f"{name}: got rows that are not one-hot, expected a single 1 in each and 0 elsewhere.")
        labels = labels.long().argmax(dim=1)
    elif labels.dim() == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    elif labels.dim() != 1:
        raise ValueError(
            f"{name}: got labels of shape {tuple(labels.shape)}, expected class indices (N,) or one-hot rows "
            f"(N, {nb_classes})."
        )
    if samples is not None and len(labels) != samples:
        raise ValueError(f"{name}: got {len(labels)} labels for {samples} samples, expected one for each.")
    if len(labels) == 0:
        raise ValueError(f"{name}: got no labels, expected at least one.")
    indices = labels.long()
    if labels.is_floating_point() and not bool((labels == indices).all()):
        raise ValueError(f"{name}: got labels that are not whole numbers, expected class indices.")
    smallest, largest = int(indices.min()), int(indices.max())
    if smallest < 0 or largest >= nb_classes:
        hint = "; labels that count from 1 are given as y - 1." if (smallest, largest) == (1, nb_classes) else "."
        raise ValueError(f"{name}: got labels from {smallest} to {largest}, expected 0 to {nb_classes - 1}{hint}")
    return indices


def plain_tensor(values: Any, name: str) -> Tensor:
    """Real numbers, or booleans, as a dense tensor without a history of gradients.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(values, Tensor):
        return torch.from_numpy(_numeric_array(values, name))
    tensor = values.detach()
    if tensor.is_complex():
        raise ValueError(f"{name}: got values of type {tensor.dtype}, expected numbers.")
    if tensor.is_quantized or tensor.layout != torch.strided or tensor.device.type == "meta":
        kinds = {tensor.is_quantized: "quantised", tensor.device.type == "meta": "meta"}
        raise ValueError(f"{name}: got a {kinds.get(True, 'sparse')} tensor, expected a dense one with values.")
    return tensor


def _numeric_array(values: Any, name: str) -> np.ndarray[Any, Any]:
    try:
        array = np.asarray(values)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:  # such as lists of different lengths
        raise ValueError(f"{name}: got a {type(values).__name__} that is no array, expected numbers.") from error
    if array.dtype.kind not in "fiub" or array.dtype == np.longdouble:
        raise ValueError(f"{name}: got values of type {array.dtype}, expected numbers.")
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    # torch takes neither reversed views nor foreign byte orders, and warns of read-only memory.
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native if native.flags.writeable and native.flags.c_contiguous else native.copy()

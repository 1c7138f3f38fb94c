"""The labels that training takes: class indices, or class probabilities where the loss takes these."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ...bridge import label_tensor
from ...labels import warn_of_missing_classes

SUM_TOLERANCE = 1e-3
"""The largest distance from 1 of the sum of a row of probabilities."""

EXPECTED = 10
"""Classes without images are warned of only if equally common classes would have at least this many each."""

_OF_INDICES = (nn.NLLLoss, nn.MultiMarginLoss)


def training_labels(y: Any, classifier: PyTorchClassifier, *, samples: int) -> Tensor:
    """Labels as int64 class indices [N], or rows of class probabilities as float32 [N, C].

    Args:
        y: as `label_tensor` takes them, or non-negative rows [N, C] that sum to 1.
        classifier: its loss must take probabilities if rows are not one-hot.
        samples: the required number of labels.

    Raises:
        ValueError: as `label_tensor`; rows that are no probabilities, or a loss that takes none.
    """
    rows = _read_rows(y, classifier.nb_classes)
    if rows is None:
        return label_tensor(y, classifier.nb_classes, samples=samples)
    if len(rows) != samples:
        raise ValueError(f"y: got {len(rows)} labels for {samples} samples, expected one for each.")
    sums = rows.sum(dim=1)
    wrong = ~((rows >= 0).all(dim=1) & ((sums - 1).abs() <= SUM_TOLERANCE))  # NaN is wrong too
    if bool(wrong.any()):
        first = int(wrong.nonzero()[0])
        shown = ", ".join(f"{value:g}" for value in rows[first, :4].tolist())
        more = ", ..." if rows.shape[1] > 4 else ""
        raise ValueError(
            f"y: got [{shown}{more}] in row {first}, expected class indices, one-hot rows, or probabilities, not "
            f"negative and with sum 1."
        )
    loss = classifier.loss
    binary = isinstance(loss, nn.BCELoss | nn.BCEWithLogitsLoss) and classifier.nb_classes == 2
    ignoring = isinstance(loss, nn.CrossEntropyLoss) and loss.ignore_index >= 0
    if isinstance(loss, _OF_INDICES) or binary or ignoring:
        name = type(loss).__name__ + (" with an ignore_index" if ignoring else "")
        raise ValueError(f"y: got rows that are not one-hot, which {name} does not take, expected class indices.")
    return rows.float()


def _read_rows(y: Any, nb_classes: int) -> Tensor | None:
    """``y`` as rows [N, C] in float64; None where it has another form, or is one-hot."""
    given = y.detach() if isinstance(y, Tensor) else None
    if given is None:
        try:
            array = np.asarray(y)
        except ValueError:  # of rows of different lengths, which are no labels either
            return None
        if array.dtype.kind != "f" or array.dtype == np.longdouble:
            return None
        given = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float64))
    if not given.is_floating_point() or given.dim() != 2 or given.shape[1] != nb_classes or nb_classes < 2:
        return None
    one_hot = ((given == 0) | (given == 1)).all() and (given.sum(dim=1) == 1).all()
    return None if one_hot or not len(given) else given.double()


class ClassCensus:
    """Counts the samples of each class, to warn of classes without any."""

    def __init__(self, nb_classes: int) -> None:
        self._counts = torch.zeros(nb_classes, dtype=torch.float64, device="cpu")
        self._samples = 0

    def count(self, y: Tensor) -> None:
        """Count labels: int64 [N], or class probabilities [N, C]."""
        if y.dim() == 2:
            self._counts += y.double().sum(dim=0).cpu()
        else:
            self._counts += torch.bincount(y, minlength=len(self._counts)).cpu()
        self._samples += len(y)

    def warn(self) -> None:
        """Warn of classes without samples, if there are enough samples to expect some."""
        if self._samples >= EXPECTED * len(self._counts):
            missing = torch.nonzero(self._counts == 0)[:, 0].tolist()
            warn_of_missing_classes("y", missing, len(self._counts))

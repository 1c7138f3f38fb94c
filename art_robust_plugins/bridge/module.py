"""An ART classifier as a differentiable torch module."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from .estimators import check_certified, check_classifier, find_own_forward
from .networks import device_of
from .outputs import class_logits, probe_outputs
from .preprocessing import preprocessing_operations
from .ranges import input_range
from .straight_through import StraightThrough


class EstimatorModule(nn.Module):
    """An ART classifier as a plain, differentiable torch module that returns logits.

    ``forward`` takes a batch x [N, C, H, W] (or [N, F] for flat inputs), maps it from [0, 1] to the classifier's
    ``clip_values`` (see `InputRange`), applies ART's preprocessing (defences, then mean and standard deviation), and
    the network. A classifier with ``channels_first=False`` gets its images as [N, H, W, C], permuted by the module.
    Whatever floating-point type the network computes in, its outputs have the type of x (with ``fit``, in the
    network's own where that is wider). The network gets a copy of its input, which it may change.

    If the classifier wraps its network, as ART's ``HuggingFaceClassifierPyTorch`` does with a processor, this module
    calls the wrapper. Anything that a subclass computes in ``predict`` itself is not included: see
    `overrides_predict`.

    Args:
        classifier: an ART ``PyTorchClassifier``.
        unit_range: the input is in [0, 1] and [N, C, H, W], and a binary network's one output becomes the logits of
            two classes; False for the classifier's own range, layout and outputs.
        fit: use the preprocessing that ART applies in ``fit`` and in ``predict`` rather than that of ``predict``.
        probabilities: accept a network whose outputs are softmax probabilities.
        straight_through: accept NumPy preprocessing, with its own estimate of the gradient (see `StraightThrough`).

    Raises:
        TypeError: when ``classifier`` is not a ``PyTorchClassifier``.
        ValueError: for preprocessing that is not torch, that ART cannot chain, or that makes several inputs of one, any
            postprocessing, a network that fails or whose output is not [N, nb_classes], softmax outputs, with ``fit``
            weights that are not float32; and, with ``unit_range``, ``clip_values`` that are missing or infinite.

    Example:
        >>> from art.estimators.classification import PyTorchClassifier
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> classifier = PyTorchClassifier(network, nn.CrossEntropyLoss(), (1, 2, 2), 3, clip_values=(0, 255))
        >>> EstimatorModule(classifier)(torch.rand(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        classifier: PyTorchClassifier,
        *,
        unit_range: bool = True,
        fit: bool = False,
        probabilities: bool = False,
        straight_through: bool = False,
    ) -> None:
        super().__init__()
        check_classifier(classifier)
        check_certified(classifier)
        self.network: nn.Module = classifier.model
        if fit:
            _check_weights(self.network)
        self._operations = preprocessing_operations(classifier, fit=fit, straight_through=straight_through)
        self._training = fit
        self._wrapped = find_own_forward(classifier)
        self._turn = unit_range and not classifier.channels_first and len(classifier.input_shape) == 3
        self._range = input_range(classifier) if unit_range else None
        outputs = probe_outputs(classifier, self._operations, probabilities=probabilities)
        self.single = outputs.shape[1] == 1
        one = self.single and unit_range
        self._logits: Callable[[Tensor], Tensor] | None = partial(class_logits, classifier) if one else None

    @property
    def device(self) -> torch.device:
        """The device of the network's weights."""
        return device_of(self.network)

    @property
    def straight_through(self) -> list[str]:
        """The names of the defences whose gradient is an estimate."""
        return [operation.name for operation in self._operations if isinstance(operation, StraightThrough)]

    def to_estimator(self, x: Tensor) -> Tensor:
        """This module's inputs as the estimator takes them: in its range and order of axes."""
        x = x.movedim(1, -1) if self._turn else x
        return x if self._range is None else self._range.from_unit(x)

    def from_estimator(self, x: Tensor) -> Tensor:
        """The inverse of `to_estimator`."""
        x = x if self._range is None else self._range.to_unit(x)
        return x.movedim(-1, 1) if self._turn else x

    def forward(self, x: Tensor) -> Tensor:
        dtype, count = x.dtype, len(x)
        # A copy: networks and defences that change their input in place would change the caller's data.
        x = self.to_estimator(x).clone()
        for operation in self._operations:
            x = operation(x)
        outputs: Tensor = self.network(x) if self._wrapped is None else self._wrapped(x)
        # ART's predict too converts outputs to float32, and a single output of each sample to a column. A loss may take
        # more precise outputs.
        dtype = torch.promote_types(dtype, outputs.dtype) if self._training else dtype
        outputs = (outputs if outputs.dim() > 1 else outputs.reshape(count, 1)).to(dtype)
        return outputs if self._logits is None else self._logits(outputs)


def _check_weights(network: nn.Module) -> None:
    other = next((p.dtype for p in network.parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
    if other is not None:
        raise ValueError(
            f"classifier: the network's weights are {other}, expected torch.float32 for training, as network.float() "
            f"makes them."
        )

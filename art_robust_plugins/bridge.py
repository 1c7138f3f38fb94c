"""An ART estimator as a torch module, and back: ranges, preprocessing, labels, modes.

Everything that this package must know about ART's `PyTorchClassifier` stands here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from art.defences.preprocessor.preprocessor import Preprocessor, PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from art.preprocessing.standardisation_mean_std.utils import broadcastable_mean_std
from torch import Tensor, nn
from torch.nn import functional

from .threat import Bound

RANGE_TOLERANCE = 1e-6
"""How far a value may lie outside clip_values, as a share of their width, before it is refused."""

PATIENCE = timedelta(minutes=10)
"""How long one of several processes waits for the others, unless it says otherwise."""


class EstimatorModule(nn.Module):
    """An ART classifier as a plain, differentiable torch module that returns logits.

    ``forward`` takes a batch x [N, C, H, W] (or [N, F] for flat inputs), maps it from [0, 1] to the classifier's
    ``clip_values``, applies ART's torch preprocessing (defences, then mean and standard deviation), and the network.
    The network gets a copy of its input, which it may change. A classifier with ``channels_first=False`` gets its
    images as [N, H, W, C]: the module turns them.

    Where the classifier runs its network in a way of its own, as ART's ``HuggingFaceClassifierPyTorch`` does with a
    processor before it, so does this module. What a subclass computes in ``predict`` itself is not part of it: see
    `overrides_predict`.

    Args:
        classifier: an ART ``PyTorchClassifier``.
        unit_range: the input is in [0, 1] and [N, C, H, W]; False for the classifier's own range and layout.
        fit: use the preprocessing that ART applies in ``fit`` and in ``predict`` rather than that of ``predict``.
        probabilities: accept a network whose outputs are softmax probabilities.

    Raises:
        TypeError: when ``classifier`` is not a ``PyTorchClassifier``.
        ValueError: for preprocessing that is not torch or makes several inputs of one, any postprocessing, a network
            whose output is not [N, nb_classes], softmax outputs; and, with ``unit_range``, ``clip_values`` that are
            missing or not the same for all features.

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
    ) -> None:
        super().__init__()
        check_classifier(classifier)
        self.network: nn.Module = classifier.model
        other = next(
            (p.dtype for p in self.network.parameters() if p.is_floating_point() and p.dtype != torch.float32), None
        )
        if other is not None:
            raise ValueError(f"classifier: the network's weights are {other}, expected torch.float32.")
        self._operations = preprocessing_operations(classifier, fit=fit)
        self._wrapped = _own_forward(classifier)
        self._turn = unit_range and not classifier.channels_first and len(classifier.input_shape) == 3
        self.scale, self.shift = 1.0, 0.0
        if unit_range:
            low, high = uniform_range(classifier)
            self.scale, self.shift = high - low, low
        _check_outputs(classifier, self._operations, probabilities=probabilities, column=not unit_range)

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return device_of(self.network)

    def to_estimator(self, x: Tensor) -> Tensor:
        """Images of this module's input as the estimator takes them: its range, its order of axes."""
        x = x if self.scale == 1 and self.shift == 0 else x * self.scale + self.shift
        return x.movedim(1, -1) if self._turn else x

    def from_estimator(self, x: Tensor) -> Tensor:
        """The inverse of `to_estimator`."""
        x = x.movedim(-1, 1) if self._turn else x
        return x if self.scale == 1 and self.shift == 0 else ((x - self.shift) / self.scale).clamp(0, 1)

    def forward(self, x: Tensor) -> Tensor:
        # A copy: networks and defences that change their input in place would change the caller's data.
        x = self.to_estimator(x).clone()
        for operation in self._operations:
            x = operation(x)
        logits: Tensor = self.network(x) if self._wrapped is None else self._wrapped(x)
        return logits


def check_classifier(classifier: object) -> None:
    """Refuse what is not an ART `PyTorchClassifier`, and postprocessing, which hides the logits."""
    if not isinstance(classifier, PyTorchClassifier):
        raise TypeError(f"classifier: got {type(classifier).__name__}, expected an ART PyTorchClassifier.")
    if classifier.postprocessing_defences:
        names = ", ".join(type(defence).__name__ for defence in classifier.postprocessing_defences)
        raise ValueError(
            f"classifier: postprocessing_defences ({names}) change the outputs after the network, expected none."
        )


def overrides_predict(classifier: PyTorchClassifier) -> bool:
    """Whether ``predict``, or a part of it, is the classifier's own, and may compute more than ART's."""
    parts = ("predict", "_apply_preprocessing", "_apply_postprocessing")
    return any(
        part in vars(classifier) or getattr(type(classifier), part) is not getattr(PyTorchClassifier, part)
        for part in parts
    )


def warn_of_own_predict(classifier: PyTorchClassifier) -> None:
    """Warn where ``predict`` may compute more than the network that is trained."""
    if overrides_predict(classifier):
        warnings.warn(
            f"classifier: {type(classifier).__name__} has a predict of its own, whose additions to the network are not "
            f"trained; the accuracies of the training are those of the network alone.",
            stacklevel=3,
        )


def _own_forward(classifier: PyTorchClassifier) -> Callable[[Tensor], Any] | None:
    """The wrapper of the network that ``predict`` runs, where it may do more than the network; else None.

    ART's own wrapper runs the parts of a ``Sequential`` one by one, and so passes over what a subclass of it computes
    in ``forward``. Wrappers of subclasses may hold a processor. (Hooks on a ``Sequential``, which ART passes over too,
    mostly look on: they are called.)
    """
    network, wrapper = classifier.model, classifier._model
    kind = PyTorchClassifier._make_model_wrapper
    plain = (
        type(wrapper).__qualname__ == f"{kind.__qualname__}.<locals>.ModelWrapper"
        and type(wrapper).__module__ == kind.__module__
        and not _is_patched(wrapper)
        and (
            not isinstance(network, nn.Sequential)
            or (type(network).forward is nn.Sequential.forward and "forward" not in vars(network))
        )
    )
    return None if plain else partial(_run_wrapper, wrapper)


def _run_wrapper(wrapper: nn.Module, x: Tensor) -> Any:
    return wrapper(x)[-1]


def _is_patched(module: nn.Module) -> bool:
    """Whether a call of this very module does more than its class's ``forward``."""
    return "forward" in vars(module) or bool(module._forward_hooks or module._forward_pre_hooks)


def device_of(network: nn.Module) -> torch.device:
    """The device of a network's first parameter or buffer; ART's own note of it may be out of date."""
    tensor = next(chain(network.parameters(), network.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def processes_of(device: torch.device) -> PartialState:
    """The processes that work together, as Accelerate finds them; gloo on a CPU.

    Raises:
        ConnectionError: not all of them came within `PATIENCE`.
    """
    try:
        return PartialState(cpu=device.type == "cpu", timeout=PATIENCE)
    except torch.distributed.DistError as error:
        raise ConnectionError(
            f"processes: not all {os.environ.get('WORLD_SIZE')} came together within {PATIENCE.seconds // 60} minutes, "
            f"expected as many as WORLD_SIZE says, on machines that reach each other."
        ) from error


def preprocessing_operations(classifier: PyTorchClassifier, *, fit: bool) -> list[Callable[[Tensor], Tensor]]:
    """ART's preprocessing that belongs to the network, as differentiable functions of a batch.

    With ``fit``, those of ``predict`` that also apply in ``fit``; see `augmentations` for those of ``fit`` alone.
    """
    operations: list[Callable[[Tensor], Tensor]] = []
    for defence in classifier.preprocessing_operations:
        _check_torch(defence)
        if not defence.apply_predict or (fit and not defence.apply_fit):
            continue
        if isinstance(defence, StandardisationMeanStdPyTorch):
            if np.any(defence.mean != 0) or np.any(defence.std != 1):
                operations.append(_standardisation(defence, classifier))
        else:
            operations.append(_first_of(defence))
    return operations


def augmentations(classifier: PyTorchClassifier) -> list[PreprocessorPyTorch]:
    """ART's defences that act in training only (``apply_fit`` without ``apply_predict``): they change the data.

    Raises:
        ValueError: one of them comes after a defence that belongs to the network, and cannot act on the data first.
    """
    found: list[PreprocessorPyTorch] = []
    network: list[str] = []
    for defence in classifier.preprocessing_operations:
        _check_torch(defence)
        if not defence.apply_fit:
            continue
        if defence.apply_predict:
            network.append(type(defence).__name__)
        elif network:
            raise ValueError(
                f"classifier: the training-only defence {type(defence).__name__} comes after {network[0]}, expected it "
                f"before all defences that also act in predict."
            )
        else:
            found.append(defence)
    return found


def preprocessing_modules(classifier: PyTorchClassifier) -> list[nn.Module]:
    """The torch modules with weights that ART's preprocessing holds, such as a learned map of the input."""
    held = [value for operation in classifier.preprocessing_operations for value in vars(operation).values()]
    return [value for value in dict.fromkeys(v for v in held if isinstance(v, nn.Module)) if value.state_dict()]


def _check_torch(defence: object) -> None:
    if not isinstance(defence, PreprocessorPyTorch):
        raise ValueError(
            f"classifier: the preprocessing {type(defence).__name__} is not a PreprocessorPyTorch, so no gradient can "
            f"pass through it; expected its PyTorch version."
        )


def _first_of(defence: PreprocessorPyTorch) -> Callable[[Tensor], Tensor]:
    def operation(x: Tensor) -> Tensor:
        result: Tensor = defence.forward(x, None)[0]
        if len(result) != len(x):
            raise ValueError(
                f"classifier: the preprocessing {type(defence).__name__} makes {len(result)} inputs of {len(x)}, "
                f"expected one of each; with nb_samples=1 it is a randomised network, for the suite 'rand'."
            )
        return result

    return operation


def _standardisation(
    defence: StandardisationMeanStdPyTorch, classifier: PyTorchClassifier
) -> Callable[[Tensor], Tensor]:
    """ART's standardisation with its constants kept on the device (ART copies them there for every batch)."""
    mean, std = (values.float() for values in _mean_std(defence, classifier))

    def operation(x: Tensor) -> Tensor:
        nonlocal mean, std
        if mean.device != x.device:
            mean, std = mean.to(x.device), std.to(x.device)
        return (x - mean) / std

    return operation


def standardisation(classifier: PyTorchClassifier) -> tuple[Tensor, Tensor] | None:
    """The mean and standard deviation of ART's ``preprocessing``, when that is all that acts in ``predict``.

    Both float64, on the CPU, shaped to broadcast against ``input_shape``; the exact values of ART's float32 ones.
    None where nothing acts, as with ART's default of (0, 1). Several standardisations count as one.

    Raises:
        ValueError: any other preprocessing acts in ``predict``, or constants that are not finite, do not fit
            ``input_shape``, or divide by 0.
    """
    mean, std = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    for defence in classifier.preprocessing_operations:
        if not defence.apply_predict:
            continue
        own_mean, own_std = standardisation_of(defence, classifier)
        mean, std = mean + std * own_mean, std * own_std
    return (mean, std) if bool((mean != 0).any() or (std != 1).any()) else None


def standardisation_of(defence: Preprocessor, classifier: PyTorchClassifier) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation of one operation that acts in ``predict``, as `standardisation` gives them."""
    if type(defence) is not StandardisationMeanStdPyTorch:  # a subclass may compute something else
        raise ValueError(
            f"classifier: the preprocessing {type(defence).__name__} acts in predict, expected none but ART's "
            f"StandardisationMeanStdPyTorch and this package's WeightMapPreprocessor."
        )
    mean, std = _mean_std(defence, classifier)
    shape = tuple(classifier.input_shape)
    try:
        fits = mean.expand(shape).shape == std.expand(shape).shape
    except RuntimeError:
        fits = False
    if not fits or not bool((mean.isfinite() & std.isfinite() & (std != 0)).all()):
        raise ValueError(
            f"classifier: the preprocessing has mean {defence.mean} and standard deviation {defence.std}, expected "
            f"finite numbers that broadcast against {shape}, and none that divides by 0."
        )
    return mean, std


def _mean_std(defence: StandardisationMeanStdPyTorch, classifier: PyTorchClassifier) -> tuple[Tensor, Tensor]:
    """The constants on the axes along which ART applies them to one sample, in float64."""
    probe = np.empty((1, *classifier.input_shape), dtype=np.float32)
    mean, std = (torch.as_tensor(v).double() for v in broadcastable_mean_std(probe, defence.mean, defence.std))
    batched = mean.dim() == probe.ndim and mean.shape[0] == 1
    return (mean[0], std[0]) if batched else (mean, std)


@torch.no_grad()
def _check_outputs(
    classifier: PyTorchClassifier, operations: list[Callable[[Tensor], Tensor]], *, probabilities: bool, column: bool
) -> None:
    """One forward pass of two inputs in the classifier's range: the shape of the outputs, and whether they are softmax.

    With ``column``, a network of two classes may have one output.
    """
    network = classifier.model
    low, high = clip_range(classifier)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, *classifier.input_shape, generator=generator, device="cpu").to(device_of(network))
    if low is not None and high is not None:
        x = x * (high - low) + low
    with preserved(network):
        network.eval()
        # Randomised networks must not move the caller's random stream.
        with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
            for operation in operations:
                x = operation(x)
            outputs = (_own_forward(classifier) or network)(x)
    expected = (2, classifier.nb_classes)
    allowed = {expected, (2, 1)} if column and classifier.nb_classes == 2 else {expected}
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) not in allowed:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise ValueError(f"classifier: the network's output for 2 inputs is {shape}, expected a tensor {expected}.")
    if not probabilities and outputs_are_probabilities(outputs):
        raise ValueError(
            "classifier: the network's outputs are softmax probabilities, expected logits; "
            "remove the softmax, the loss applies it."
        )


def outputs_are_probabilities(outputs: Tensor) -> bool:
    """Whether every row [C] of ``outputs`` [N, C] is a distribution: not negative, with sum 1."""
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        return False
    sums = outputs.double().sum(dim=1)
    return bool((outputs >= 0).all() and ((sums - 1).abs() < 1e-4).all())


def clip_range(classifier: PyTorchClassifier) -> tuple[Bound | None, Bound | None]:
    """The classifier's ``clip_values`` as numbers, as tensors when they differ by feature, or (None, None)."""
    if classifier.clip_values is None:
        return None, None
    low, high = (np.asarray(values, dtype=np.float32) for values in classifier.clip_values)
    if low.min() == low.max() and high.min() == high.max():
        return float(low.min()), float(high.max())
    device = device_of(classifier.model)
    return torch.as_tensor(low, device=device), torch.as_tensor(high, device=device)


def uniform_range(classifier: PyTorchClassifier) -> tuple[float, float]:
    """``clip_values`` as two numbers; attacks need them to map images to [0, 1]."""
    low, high = clip_range(classifier)
    if not isinstance(low, float) or not isinstance(high, float):
        came = "none" if low is None else "a range per feature"
        raise ValueError(f"classifier: clip_values are {came}, expected one (low, high) for all features.")
    return low, high


def image_tensor(x: Any, classifier: PyTorchClassifier, *, name: str = "x") -> Tensor:
    """Check a batch of inputs against the classifier's shape and range; float32, shape [N, *input_shape].

    Accepts an array or a tensor; a tensor stays on its device.

    Raises:
        ValueError: wrong rank or size, no samples, NaN or infinity, values outside ``clip_values``.
    """
    tensor = x.detach() if isinstance(x, Tensor) else torch.from_numpy(_numeric_array(x, name))
    shape, expected = tuple(tensor.shape), tuple(classifier.input_shape)
    if shape[1:] != expected or not shape:
        wanted = ", ".join(str(size) for size in expected)
        raise ValueError(f"{name}: got an array of shape {shape}, expected (N, {wanted}).")
    if shape[0] == 0:
        raise ValueError(f"{name}: got no samples, expected at least one.")
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name}: got values of type {tensor.dtype}, expected numbers.")
    tensor = tensor.float()
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
        if bool(((tensor < low - slack_tensor) | (tensor > high + slack_tensor)).any()):
            raise ValueError(f"{name}: got values outside the classifier's clip_values, expected values within them.")
    return tensor


def label_tensor(y: Any, nb_classes: int, *, samples: int | None = None, name: str = "y") -> Tensor:
    """Labels as int64 class indices [N], from indices [N] or [N, 1] or one-hot rows [N, nb_classes].

    Raises:
        ValueError: another shape, a row that is not one-hot, an index outside 0 .. nb_classes - 1, or a length other
            than ``samples``.
    """
    labels = y.detach() if isinstance(y, Tensor) else torch.from_numpy(_numeric_array(y, name))
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
        raise ValueError(f"{name}: got labels from {smallest} to {largest}, expected 0 to {nb_classes - 1}.")
    return indices


def _numeric_array(values: Any, name: str) -> np.ndarray[Any, Any]:
    array = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.dtype == np.longdouble:
        raise ValueError(f"{name}: got values of type {array.dtype}, expected numbers.")
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    # torch takes neither reversed views nor foreign byte orders, and warns of read-only memory.
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return native if native.flags.writeable and native.flags.c_contiguous else native.copy()


def loss_of(classifier: PyTorchClassifier, logits: Tensor, y: Tensor) -> Tensor:
    """The classifier's own loss of ``logits`` [N, C] for labels ``y``, in the form that this loss takes them.

    ``y`` is int64 [N], or class probabilities [N, C] where an augmentation made them. Cross-entropy, NLL and
    multi-margin losses take indices, binary ones 0 or 1 as a column, any other loss one-hot rows: as ART does.
    """
    loss: Tensor
    if y.dim() == 2 or (classifier._reduce_labels and classifier._int_labels):
        loss = classifier.loss(logits, y)
    elif classifier._reduce_labels:
        loss = classifier.loss(logits, y.to(logits.dtype).view(-1, *[1] * (logits.dim() - 1)))
    else:
        loss = classifier.loss(logits, functional.one_hot(y, classifier.nb_classes).to(logits.dtype))
    return loss


def class_logits(classifier: PyTorchClassifier, outputs: Tensor) -> Tensor:
    """The network's outputs as logits [N, C] of its classes; the one output of a binary network gives two columns.

    Under ``BCELoss`` that output is the probability of class 1, otherwise its logit.
    """
    if outputs.shape[1] > 1:
        return outputs
    # A probability of exactly 0 or 1 counts as the nearest other one, whose logit is finite.
    positive = (
        torch.logit(outputs, torch.finfo(outputs.dtype).eps) if isinstance(classifier.loss, nn.BCELoss) else outputs
    )
    return torch.cat([torch.zeros_like(positive), positive], dim=1)


@contextmanager
def preserved(network: nn.Module) -> Iterator[None]:
    """Restore, at the end, each submodule's train or eval mode and each parameter's ``requires_grad`` and ``grad``."""
    # Frozen TorchScript has no modes.
    modes = [(module, module.training) for module in network.modules() if hasattr(module, "training")]
    # Copies of TorchScript have parameters that are no leaves, and have no gradients.
    parameters = [
        (p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone())
        for p in network.parameters()
        if p.is_leaf
    ]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, gradient, value in parameters:
            parameter.requires_grad_(requires_grad)
            if gradient is not None and value is not None:
                gradient.copy_(value)
            parameter.grad = gradient

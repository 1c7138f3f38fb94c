"""An ART estimator as a torch module, and back: ranges, preprocessing, labels, modes.

Everything that this package must know about ART's `PyTorchClassifier` stands here.
"""

from __future__ import annotations

import math
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
from art.preprocessing.standardisation_mean_std.numpy import StandardisationMeanStd
from art.preprocessing.standardisation_mean_std.pytorch import StandardisationMeanStdPyTorch
from art.preprocessing.standardisation_mean_std.utils import broadcastable_mean_std
from torch import Tensor, nn
from torch.nn import functional

from .certified_estimators import check_certified
from .input_range import RANGE_TOLERANCE, InputRange, bounded_range, read_clip_values
from .network_outputs import check_outputs
from .randomness import restored_random_states
from .straight_through import StraightThrough
from .threat import Bound, ThreatModel, check_radius

PATIENCE = timedelta(minutes=10)
"""How long one of several processes waits for the others, unless it says otherwise."""


class EstimatorModule(nn.Module):
    """An ART classifier as a plain, differentiable torch module that returns logits.

    ``forward`` takes a batch x [N, C, H, W] (or [N, F] for flat inputs), maps it from [0, 1] to the classifier's
    ``clip_values`` (see `InputRange`), applies ART's preprocessing (defences, then mean and standard deviation), and
    the network. A classifier with ``channels_first=False`` gets its images as [N, H, W, C]: the module turns them.
    Whatever floating-point type the network computes in, its outputs come in the type of x.
    The network gets a copy of its input, which it may change.

    Where the classifier runs its network in a way of its own, as ART's ``HuggingFaceClassifierPyTorch`` does with a
    processor before it, so does this module. What a subclass computes in ``predict`` itself is not part of it: see
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
        self._wrapped = _own_forward(classifier)
        self._turn = unit_range and not classifier.channels_first and len(classifier.input_shape) == 3
        self._range = input_range(classifier) if unit_range else None
        outputs = _check_outputs(classifier, self._operations, probabilities=probabilities)
        self.single = outputs.shape[1] == 1
        one = self.single and unit_range
        self._logits: Callable[[Tensor], Tensor] | None = partial(class_logits, classifier) if one else None

    @property
    def device(self) -> torch.device:
        """Where the network's weights are."""
        return device_of(self.network)

    @property
    def straight_through(self) -> list[str]:
        """The names of the defences whose gradient is an estimate."""
        return [operation.name for operation in self._operations if isinstance(operation, StraightThrough)]

    def to_estimator(self, x: Tensor) -> Tensor:
        """Images of this module's input as the estimator takes them: its range, its order of axes."""
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
        # As ART's predict brings all outputs to float32, and a single output for each sample to a column.
        outputs = (outputs if outputs.dim() > 1 else outputs.reshape(count, 1)).to(dtype)
        return outputs if self._logits is None else self._logits(outputs)


def check_classifier(classifier: object) -> None:
    """Refuse what is not an ART `PyTorchClassifier`, and postprocessing, which hides the logits."""
    if not isinstance(classifier, PyTorchClassifier):
        raise TypeError(f"classifier: got {type(classifier).__name__}, expected an ART PyTorchClassifier.")
    if classifier.postprocessing_defences:
        names = ", ".join(type(defence).__name__ for defence in classifier.postprocessing_defences)
        raise ValueError(
            f"classifier: postprocessing_defences ({names}) change the outputs after the network, expected none."
        )


def _check_weights(network: nn.Module) -> None:
    other = next((p.dtype for p in network.parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
    if other is not None:
        raise ValueError(
            f"classifier: the network's weights are {other}, expected torch.float32 for training, as network.float() "
            f"makes them."
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


def preprocessing_operations(
    classifier: PyTorchClassifier, *, fit: bool, straight_through: bool = False
) -> list[Callable[[Tensor], Tensor]]:
    """ART's preprocessing that belongs to the network, as differentiable functions of a batch.

    With ``fit``, those of ``predict`` that also apply in ``fit``; see `augmentations` for those of ``fit`` alone. With
    ``straight_through``, NumPy defences too, with an estimated gradient.
    """
    operations: list[Callable[[Tensor], Tensor]] = []
    if straight_through:
        _check_chain(classifier.preprocessing_operations)
    for defence in classifier.preprocessing_operations:
        if not straight_through:
            _check_torch(defence)
        if not defence.apply_predict or (fit and not defence.apply_fit):
            continue
        if not isinstance(defence, PreprocessorPyTorch):
            operations.append(StraightThrough(defence))
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


def _check_chain(operations: list[Preprocessor]) -> None:
    """Refuse NumPy defences in lists that ART's ``predict`` refuses too, at its first call."""
    plain = [type(operation).__name__ for operation in operations if not isinstance(operation, PreprocessorPyTorch)]
    standardised = bool(operations) and isinstance(
        operations[-1], StandardisationMeanStd | StandardisationMeanStdPyTorch
    )
    if plain and len(operations) > 1 + standardised:
        names = ", ".join(type(operation).__name__ for operation in operations)
        raise ValueError(
            f"classifier: ART applies no list of preprocessing with a NumPy defence ({plain[0]} among {names}), "
            f"expected that defence alone before mean and standard deviation; one Preprocessor whose __call__ and "
            f"estimate_gradient call several is one."
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
    classifier: PyTorchClassifier, operations: list[Callable[[Tensor], Tensor]], *, probabilities: bool
) -> Tensor:
    """One forward pass of two inputs in the classifier's range: the outputs, their shape and type, and no softmax."""
    network = classifier.model
    x = random_inputs(classifier, 2)
    # Randomised networks must not move the caller's random streams.
    with preserved(network), restored_random_states([x.device] if x.device.type == "cuda" else []):
        network.eval()
        for operation in operations:
            x = operation(x)
        try:
            outputs = (_own_forward(classifier) or network)(x)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the network raises
            reason = str(error).strip().split("\n")[0].rstrip(".")
            weights = {p.dtype for p in network.parameters() if p.is_floating_point()} - {torch.float32}
            advice = ""
            if x.dtype != torch.float32:
                advice = "; its preprocessing makes them of this type: let its __call__ end in .astype('float32')"
            elif weights:
                advice = f"; its weights are {min(map(str, weights))}: use network.float(), or convert in forward"
            raise ValueError(
                f"classifier: the network fails on inputs {tuple(x.shape)} of type {x.dtype} "
                f"({type(error).__name__}: {reason}), expected one that takes them{advice}."
            ) from error
    # Losses of class indices have none for a single output.
    check_outputs(outputs, classifier.nb_classes, single=not (classifier._reduce_labels and classifier._int_labels))
    outputs = outputs if outputs.dim() > 1 else outputs[:, None]
    if not probabilities and outputs_are_probabilities(outputs):
        raise ValueError(
            "classifier: the network's outputs are softmax probabilities, expected logits; "
            "remove the softmax, the loss applies it."
        )
    checked: Tensor = outputs
    return checked


def random_inputs(classifier: PyTorchClassifier, count: int) -> Tensor:
    """Random inputs [count, *input_shape] in the classifier's range, on its device; the same ones every time."""
    low, high = clip_range(classifier)
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(count, *classifier.input_shape, generator=generator, device="cpu").to(device_of(classifier.model))
    if low is None or high is None or not all(bool(torch.as_tensor(end).isfinite().all()) for end in (low, high)):
        return x
    return x * (high - low) + low


def outputs_are_probabilities(outputs: Tensor) -> bool:
    """Whether every row [C] of ``outputs`` [N, C] is a distribution: not negative, with sum 1."""
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        return False
    sums = outputs.double().sum(dim=1)
    return bool((outputs >= 0).all() and ((sums - 1).abs() < 1e-4).all())


def clip_range(classifier: PyTorchClassifier) -> tuple[Bound | None, Bound | None]:
    """The classifier's ``clip_values`` as numbers, as tensors when they differ by feature, or (None, None).

    Raises:
        ValueError: NaN, a low that is not below its high, arrays that do not fit ``input_shape``.
    """
    low, high = read_clip_values(classifier.clip_values, tuple(classifier.input_shape))
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        device = device_of(classifier.model)
        return low.to(device), high.to(device)
    return low, high


def check_threat(
    threat: ThreatModel, classifier: PyTorchClassifier, *, name: str = "eps", value: float | None = None
) -> None:
    """Refuse a threat whose ball holds every input within the classifier's ``clip_values``, where it has some.

    ``name`` and ``value`` are those of `check_radius`.

    Raises:
        ValueError: for such a radius, which is likely in other units.
    """
    low, high = clip_range(classifier)
    if low is not None and high is not None:
        check_radius(threat, low, high, math.prod(classifier.input_shape), name=name, value=value)


def input_range(classifier: PyTorchClassifier) -> InputRange:
    """The classifier's ``clip_values`` as a range that attacks can search.

    Raises:
        ValueError: as `clip_range`, and for limits that are missing or infinite.
    """
    return bounded_range(*clip_range(classifier))


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


def predict_outputs(classifier: PyTorchClassifier, x: Tensor) -> Tensor:
    """The outputs of the estimator's own ``predict`` for one batch of samples ``x`` [N, ...] on the CPU, in float32."""

    def convert(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        # ART hands outputs to NumPy, which has no bfloat16, before it brings them to float32: here they are before.
        last = outputs[-1] if isinstance(outputs, list) and outputs else None
        if not isinstance(last, Tensor) or not last.is_floating_point() or last.dtype in _NUMPY_HAS:
            return None
        return [*outputs[:-1], last.float()]

    handle = classifier._model.register_forward_hook(convert)
    try:
        outputs = torch.from_numpy(classifier.predict(x.numpy(), batch_size=len(x)))
    finally:
        handle.remove()
    return outputs.float()


_NUMPY_HAS = (torch.float16, torch.float32, torch.float64)


def loss_of(classifier: PyTorchClassifier, logits: Tensor, y: Tensor) -> Tensor:
    """The classifier's own loss of ``logits`` [N, C] for labels ``y``, in the form that this loss takes them.

    ``y`` is int64 [N], or class probabilities [N, C]. Cross-entropy, NLL and multi-margin losses take indices, binary
    ones 0 or 1 as a column where the network has one output, and any other loss one-hot rows: as ART does. Binary
    losses of several outputs take one-hot rows too, one class against the rest.
    """
    loss: Tensor
    if y.dim() == 2 or (classifier._reduce_labels and classifier._int_labels):
        loss = classifier.loss(logits, y)
    elif classifier._reduce_labels and logits.shape[1] == 1:
        loss = classifier.loss(logits, y.to(logits.dtype).view(-1, *[1] * (logits.dim() - 1)))
    else:
        loss = classifier.loss(logits, functional.one_hot(y, classifier.nb_classes).to(logits.dtype))
    return loss


def class_logits(classifier: PyTorchClassifier, outputs: Tensor) -> Tensor:
    """The network's outputs as logits [N, C] of its classes; the one output of a binary network gives two columns.

    Under ``BCELoss`` that output is the probability of class 1, otherwise its logit.
    """
    if outputs.shape[1] > 1 or classifier.nb_classes != 2:
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

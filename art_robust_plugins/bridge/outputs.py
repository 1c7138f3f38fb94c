"""The check of a network's outputs, for everything that takes a network, with advice when it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional

from ..checks import describe_error
from ..randomness import restored_random_states
from .estimators import find_own_forward
from .networks import device_of, preserve
from .ranges import clip_range

_ITS_LOSS = "a single output goes with BCEWithLogitsLoss (a logit) or BCELoss (a probability)"


def check_outputs(outputs: object, classes: int, *, single: bool, otherwise: str = _ITS_LOSS) -> None:
    """Refuse outputs for two inputs that are not logits [2, classes].

    Args:
        outputs: what the network returned.
        classes: how many classes there are.
        single: a network of two classes may have one output, [2, 1] or [2].
        otherwise: advice for a single output where it is not accepted.

    Raises:
        ValueError: for other outputs; the sentence names a wrapper where they hold logits.
    """
    expected: tuple[int, ...] = (2, classes)
    shapes = {expected, (2, 1), (2,)} if single and classes == 2 else {expected}
    if isinstance(outputs, Tensor) and tuple(outputs.shape) in shapes:
        if not outputs.is_floating_point():
            raise ValueError(
                f"classifier: the network's outputs are {outputs.dtype}, expected logits in floating point, float32 "
                f"or what converts to it; a class that was already chosen has no logits."
            )
        if outputs.layout != torch.strided:
            raise ValueError(
                f"classifier: the network's outputs are of layout {outputs.layout}, expected a dense tensor, as "
                f"outputs.to_dense() makes it."
            )
        return
    found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    advice = ""
    if isinstance(outputs, Tensor):
        if classes == 2 and tuple(outputs.shape) in {(2, 1), (2,)}:
            advice = f"; {otherwise}"
    else:
        inside = describe_logits(outputs, lambda tensor: tuple(tensor.shape) in shapes)
        advice = f"; wrap the network in a torch module whose forward(self, x) returns {inside}"
    raise ValueError(f"classifier: the network's output for 2 inputs is {found}, expected a tensor {expected}{advice}.")


def describe_logits(outputs: object, fits: Callable[[Tensor], bool]) -> str:
    """How a module around the network reaches the first tensor in ``outputs`` that ``fits``, as code or in words."""
    path = next(_paths_to_logits(outputs, fits), None)
    return "one tensor of logits" if path is None else f"self.network(x){path}"


def _paths_to_logits(outputs: object, fits: Callable[[Tensor], bool], depth: int = 3) -> Iterator[str]:
    """How to reach the tensors that fit within ``outputs``, as code."""
    if isinstance(outputs, Tensor):
        if fits(outputs):
            yield ""
    elif depth:
        for step, value in _parts(outputs):
            yield from (step + rest for rest in _paths_to_logits(value, fits, depth - 1))


def _parts(outputs: Any) -> Iterator[tuple[str, object]]:
    if isinstance(outputs, Mapping):
        for key, value in outputs.items():
            attribute = isinstance(key, str) and key.isidentifier() and getattr(outputs, key, None) is value
            yield (f".{key}" if attribute else f"[{key!r}]"), value
    elif isinstance(outputs, tuple) and hasattr(outputs, "_fields"):
        for name in outputs._fields:
            yield f".{name}", getattr(outputs, name)
    elif isinstance(outputs, tuple | list):
        for index, value in enumerate(outputs):
            yield f"[{index}]", value
    elif is_dataclass(outputs):
        for field in fields(outputs):
            yield f".{field.name}", getattr(outputs, field.name)
    else:
        for name, value in getattr(outputs, "__dict__", {}).items():
            yield f".{name}", value


@torch.no_grad()
def probe_outputs(
    classifier: PyTorchClassifier, operations: list[Callable[[Tensor], Tensor]], *, probabilities: bool
) -> Tensor:
    """Run two inputs of the classifier's range, and refuse outputs of another shape or type, or after a softmax."""
    network = classifier.model
    x = random_inputs(classifier, 2)
    # Randomised networks must not advance the caller's random state.
    with preserve(network), restored_random_states([x.device] if x.device.type == "cuda" else []):
        network.eval()
        for operation in operations:
            x = operation(x)
        try:
            outputs = (find_own_forward(classifier) or network)(x)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever the network raises
            weights = {p.dtype for p in network.parameters() if p.is_floating_point()} - {torch.float32}
            advice = ""
            if x.dtype != torch.float32:
                advice = "; its preprocessing makes them of this type: let its __call__ end in .astype('float32')"
            elif weights:
                advice = f"; its weights are {min(map(str, weights))}: use network.float(), or convert in forward"
            raise ValueError(
                f"classifier: the network fails on inputs {tuple(x.shape)} of type {x.dtype} "
                f"({describe_error(error)}), expected one that takes them{advice}."
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
    shape = (count, *classifier.input_shape)
    x = torch.rand(shape, generator=generator, device="cpu", dtype=torch.float32).to(device_of(classifier.model))
    if (
        low is None
        or high is None
        or not all(bool(torch.as_tensor(end, device="cpu").isfinite().all()) for end in (low, high))
    ):
        return x
    return x * (high - low) + low


def outputs_are_probabilities(outputs: Tensor) -> bool:
    """Whether every row [C] of ``outputs`` [N, C] is a distribution: non-negative, with sum 1."""
    if outputs.dim() != 2 or outputs.shape[1] < 2:
        return False
    sums = outputs.double().sum(dim=1)
    return bool((outputs >= 0).all() and ((sums - 1).abs() < 1e-4).all())


def predict_outputs(classifier: PyTorchClassifier, x: Tensor) -> Tensor:
    """The outputs of the estimator's own ``predict`` for one batch of samples ``x`` [N, ...] on the CPU, in float32.

    Raises:
        ValueError: for an overridden ``predict`` that returns no numbers [N, nb_classes].
    """

    def convert(module: nn.Module, inputs: Any, outputs: Any) -> Any:
        # ART converts outputs to NumPy, which has no bfloat16, before it converts them to float32: so this comes first.
        last = outputs[-1] if isinstance(outputs, list) and outputs else None
        if not isinstance(last, Tensor) or not last.is_floating_point() or last.dtype in _NUMPY_HAS:
            return None
        return [*outputs[:-1], last.float()]

    handle = classifier._model.register_forward_hook(convert)
    try:
        predicted: Any = classifier.predict(x.numpy(), batch_size=len(x))
    finally:
        handle.remove()
    return _read_predicted(classifier, predicted, len(x))


def _read_predicted(classifier: PyTorchClassifier, predicted: Any, count: int) -> Tensor:
    """Convert the result of ``predict``, array, tensor or lists, to float32: [count, nb_classes], or one column."""
    try:
        found = predicted.detach().cpu().double().numpy() if isinstance(predicted, Tensor) else np.asarray(predicted)
    except (TypeError, ValueError, RuntimeError):  # ragged lists, tensors that are not dense
        found = np.asarray(None)
    widths = {classifier.nb_classes, 1} if classifier.nb_classes == 2 else {classifier.nb_classes}
    if found.dtype.kind not in "fiu" or found.ndim != 2 or len(found) != count or found.shape[1] not in widths:
        what = f"an array {found.shape} of {found.dtype}" if found.dtype.kind != "O" else type(predicted).__name__
        raise ValueError(
            f"classifier: predict of {type(classifier).__name__} returned {what} for {count} inputs, expected numbers "
            f"({count}, {classifier.nb_classes}), a score for each class."
        )
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


_NUMPY_HAS = (torch.float16, torch.float32, torch.float64)


def loss_of(classifier: PyTorchClassifier, logits: Tensor, y: Tensor) -> Tensor:
    """The classifier's own loss of ``logits`` [N, C] for labels ``y``, in the form that this loss takes them.

    ``y`` is int64 [N], or class probabilities [N, C]. Cross-entropy, NLL and multi-margin losses take indices, binary
    ones 0 or 1 as a column where the network has one output, and any other loss one-hot rows: as ART does. Binary
    losses of several outputs take one-hot rows too, one class against the rest.
    """
    loss: Tensor
    if y.dim() == 2:
        loss = classifier.loss(logits, y.to(logits.dtype))
    elif classifier._reduce_labels and classifier._int_labels:
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

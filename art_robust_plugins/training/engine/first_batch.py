"""Checks of network, loss and optimizer on the first batch of a run, before any weight has changed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ...bridge import loss_of, preprocessing_modules
from ...bridge.estimators import find_own_forward
from ...randomness import cuda_devices, restored_random_states
from .first_step import check_outputs, restore_buffers
from .loss_checks import check_scalar
from .method import TrainingMethod
from .own_code import is_own

_OF_LOG_PROBABILITIES = (nn.NLLLoss, nn.KLDivLoss)
_SUM_TOLERANCE = 0.05


class FirstBatch:
    """Refuses, on the first batch, a network or loss that cannot be trained."""

    def __init__(self, method: TrainingMethod) -> None:
        self.method, self.classifier = method, method.classifier
        self._outputs: Tensor | None = None

    @contextmanager
    def watch(self, x: Tensor, y: Tensor) -> Iterator[None]:
        """A context in which the gradients of the batch are computed, in training mode.

        Args:
            x: the images [N, ...].
            y: their labels, or rows of probabilities.

        Raises:
            ValueError: for outputs of another kind or shape than in evaluation mode, for outputs that are no
                log-probabilities where the loss takes these, and for a loss that fails.
        """
        handle = None
        # A wrapper of the network may change its inputs and outputs, so the network by itself is not checked.
        if find_own_forward(self.classifier) is None:
            if self.method.options.compile != "no":  # a hook on the module would be compiled with it
                self._try_network(x[:16])
            else:
                handle = self.classifier.model.register_forward_hook(self._check_outputs)
        try:
            yield
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:
            self._explain_failure(x, y, error)
            raise
        finally:
            self._outputs = None
            if handle is not None:
                handle.remove()

    def _try_network(self, x: Tensor) -> None:
        modules = [self.classifier.model, *preprocessing_modules(self.classifier)]
        handle = self.classifier.model.register_forward_hook(self._check_outputs)
        try:
            with torch.no_grad(), restored_random_states(cuda_devices()), restore_buffers(modules):
                self.method.estimator_module(x)
        finally:
            handle.remove()

    def _check_outputs(self, module: nn.Module, inputs: tuple[Any, ...], outputs: object) -> None:
        tensor = check_outputs(outputs)
        given = inputs[0] if inputs else None
        if not isinstance(given, Tensor) or given.dim() == 0:
            return
        count, classes = len(given), self.classifier.nb_classes
        single = {(count, 1), (count,)} if self.method.estimator_module.single else set()
        if tuple(tensor.shape) not in (single or {(count, classes)}):
            raise ValueError(
                f"classifier: the network's output for {count} inputs in training mode is {tuple(tensor.shape)}, "
                f"expected {(count, 1) if single else (count, classes)} as in evaluation mode."
            )
        self._outputs = tensor.detach()
        self._check_log_probabilities(self._outputs)

    def _check_log_probabilities(self, outputs: Tensor) -> None:
        loss = self.classifier.loss
        if not isinstance(loss, _OF_LOG_PROBABILITIES) or outputs.dim() != 2:
            return
        sums = outputs.double().logsumexp(dim=1)
        if not bool((sums.abs() > _SUM_TOLERANCE).any()):
            return
        name, largest = type(loss).__name__, sums[sums.abs().argmax()].exp().item()
        message = (
            f"classifier: its {name} takes log-probabilities, got outputs of the network whose exponentials sum to "
            f"{largest:.3g}, expected 1; let the network end in LogSoftmax(dim=1), or take CrossEntropyLoss."
        )
        if is_own(getattr(type(self.method).training_loss, "__module__", None)):
            warnings.warn(message, stacklevel=2)  # a user's method may normalise them before its loss
        else:
            raise ValueError(message)

    def _explain_failure(self, x: Tensor, y: Tensor, error: Exception) -> None:
        """Raise an error that names the classifier's loss, if the loss is what fails for the network's outputs."""
        outputs, name = self._outputs, type(self.classifier.loss).__name__
        if outputs is None or len(outputs) != len(y) or str(error).startswith("classifier: "):
            return
        outputs = outputs if outputs.dim() > 1 else outputs[:, None]
        try:
            with restored_random_states(cuda_devices()):
                loss = loss_of(self.classifier, outputs.float().requires_grad_(), y)
        except Exception as again:  # a user's loss may raise anything
            reason = (
                f"{type(again).__name__}: {str(again).strip().splitlines()[0] if str(again).strip() else 'no text'}"
            )
            raise ValueError(
                f"classifier: its loss {name} fails for outputs {tuple(outputs.shape)} and the labels of {len(y)} "
                f"samples ({reason.rstrip('.')}), expected one that takes them."
            ) from error
        check_scalar(loss, len(y), trained=True)


class WeightMarks:
    """For each weight the entry with the largest first gradient: an entry that the optimizer should change."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._marks: list[tuple[Tensor, Tensor, Tensor]] = []
        for group in optimizer.param_groups:
            for weight in group["params"]:
                gradient = weight.grad
                if gradient is None or gradient.layout != torch.strided or not gradient.numel():
                    continue
                place = gradient.detach().abs().flatten().argmax()
                at = gradient.detach().flatten()[place]
                self._marks.append((weight, place, torch.where(at == 0, torch.nan, weight.detach().flatten()[place])))

    def warn_if_still(self, steps: int) -> None:
        """Warn if the optimizer has changed none of these entries in ``steps`` steps at learning rates above 0."""
        rates = [float(group.get("lr", 1.0)) for group in self._optimizer.param_groups]
        known = [(weight, place, value) for weight, place, value in self._marks if not bool(value.isnan())]
        if not known or not all(rate > 0 for rate in rates):
            return
        if _are_same(known):
            warnings.warn(
                f"classifier: {steps} steps of its optimizer {type(self._optimizer).__name__} at learning rate "
                f"{rates[0]:g} changed no weight that had a gradient, expected step() to move them; look at the "
                f"learning rate, and whether step() works without a closure.",
                stacklevel=2,
            )


def _are_same(marks: Sequence[tuple[Tensor, Tensor, Tensor]]) -> bool:
    return all(bool(weight.detach().flatten()[place] == value) for weight, place, value in marks)

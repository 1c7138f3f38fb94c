"""Accuracy on validation data, clean and under attack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional

from ...bridge import EstimatorModule, class_logits, clip_range, compact_images, device_of, label_tensor
from ...threat import ThreatModel
from ..processes import Processes


class Validator:
    """Measures a classifier's accuracy on clean data and, with a threat, under PGD of a few steps.

    Args:
        classifier: the accuracy of its ``predict``, preprocessing included, is measured.
        data: a pair (x, y); y as indices or one-hot rows.
        threat: the ball of the attack, or None for clean accuracy alone.
        steps: of the attack, each of length 2.5 eps / steps, from the same random starts every time.
        processes: the processes that share each batch; None for a single one.

    Attributes:
        data: x [N, ...], float32 or uint8, and y [N] on the classifier's device.

    Raises:
        ValueError: ``data`` is no such pair, or the classifier cannot predict.
    """

    def __init__(
        self,
        classifier: PyTorchClassifier,
        data: tuple[Any, Any],
        *,
        threat: ThreatModel | None = None,
        steps: int = 10,
        processes: Processes | None = None,
    ) -> None:
        if not isinstance(data, Sequence) or len(data) != 2:
            raise ValueError(f"validation_data: got {type(data).__name__}, expected a pair (x, y).")
        device = device_of(classifier.model)
        x = compact_images(data[0], classifier, name="validation_data[0]").to(device)
        y = label_tensor(data[1], classifier.nb_classes, samples=len(x), name="validation_data[1]")
        self.classifier, self.threat, self.steps, self.processes = classifier, threat, steps, processes
        self._predict = EstimatorModule(classifier, unit_range=False, probabilities=True)
        self.input_range = clip_range(classifier)
        self.data = x, y.to(device)

    def validate(self, batch_size: int = 500) -> dict[str, float]:
        """``validation_accuracy`` and, with a threat, ``validation_robust_accuracy``, between 0 and 1.

        The network is in evaluation mode afterwards. The attack's random starts depend on ``batch_size``.
        """
        (x, y), threat = self.data, self.threat
        low, high = self.input_range
        self.classifier.model.eval()
        correct = torch.zeros((), device=x.device)
        robust = torch.zeros((), device=x.device)
        generator = torch.Generator(x.device).manual_seed(0)
        for start in range(0, len(x), batch_size):
            images, labels = x[start : start + batch_size].float(), y[start : start + batch_size]
            begin = None if threat is None else threat.random_start(images, low, high, generator)
            share = None if self.processes is None else self.processes.share_of(len(images))
            if share is not None:
                own = slice(share.rows.start, share.rows.start + share.size)
                images, labels, begin = images[own], labels[own], None if begin is None else begin[own]
            if not len(images):
                continue
            correct += self._count_correct(images, labels)
            if threat is not None and begin is not None:
                robust += self._count_correct(self._attack(threat, images, labels, begin), labels)
        counts = torch.stack([correct, robust])
        if self.processes is not None:
            self.processes.sum(counts)
        result = {"validation_accuracy": counts[0].item() / len(x)}
        if threat is not None:
            result["validation_robust_accuracy"] = counts[1].item() / len(x)
        return result

    def _logits(self, images: Tensor) -> Tensor:
        return class_logits(self.classifier, self._predict(images))

    def _attack(self, threat: ThreatModel, images: Tensor, labels: Tensor, start: Tensor) -> Tensor:
        low, high = self.input_range

        def cross_entropy(adversarial: Tensor) -> Tensor:
            return functional.cross_entropy(self._logits(adversarial), labels, reduction="sum")

        step_size = 2.5 * threat.eps / self.steps
        return threat.ascend(cross_entropy, images, start, steps=self.steps, step_size=step_size, low=low, high=high)

    @torch.no_grad()
    def _count_correct(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self._logits(images)
        # NaN belongs to no class.
        return ((logits.argmax(dim=1) == labels) & ~logits.isnan().any(dim=1)).sum()


@contextmanager
def without_weight_gradients(modules: Iterable[nn.Module]) -> Iterator[None]:
    """A context within which weights of these modules get no gradients, so that an attack needs less memory."""
    trained = [p for module in modules for p in module.parameters() if p.requires_grad and p.is_leaf]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)

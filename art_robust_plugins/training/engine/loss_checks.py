"""Checks of the classifier's loss: one number for a batch, and the mean over samples where batches are split."""

from __future__ import annotations

import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn

from ...bridge import loss_of, outputs_are_probabilities
from ...checks import describe_error
from ...randomness import restored_random_states

_NORMALISED = (nn.CrossEntropyLoss, nn.NLLLoss)
"""Losses that divide by the sum of the samples' weights, which may be 0."""


def check_reduction(loss: object) -> None:
    """Refuse a class in place of a loss, and a loss that gives a number for each sample.

    Raises:
        ValueError: for such a loss.
    """
    if isinstance(loss, type):
        raise ValueError(f"classifier: its loss is the class {loss.__name__}, expected an object: {loss.__name__}().")
    if getattr(loss, "reduction", "mean") == "none":
        raise ValueError(f"classifier: its {type(loss).__name__} has reduction 'none', expected 'mean'.")


def check_scalar(loss: object, samples: int, *, trained: bool = False) -> Tensor:
    """Refuse a loss of a batch that is not one real number.

    Args:
        loss: the value of the method's or the classifier's loss.
        samples: the number of samples in the batch.
        trained: whether it must have a gradient.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(loss, Tensor) or loss.dim() != 0:
        found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__name__}"
        raise ValueError(
            f"classifier: the loss of {samples} samples is {found}, expected one number, such as the mean over them."
        )
    if not loss.is_floating_point():
        raise ValueError(f"classifier: the loss of {samples} samples is {loss.dtype}, expected a real number.")
    if trained and not loss.requires_grad:
        raise ValueError(
            f"classifier: the loss of {samples} samples has no gradient, expected one that depends on the network "
            f"(without detach(), .data or .item() between them)."
        )
    return loss


def check_averages(classifier: PyTorchClassifier, outputs: Tensor, reason: str) -> None:
    """Refuse a loss whose value for a batch is not the mean of those for its samples.

    The gradient of such a loss is not the average over the parts that a batch is split into. The check evaluates the
    loss on samples of all classes, whole and in parts: class weights, an ``ignore_index``, a sum, or a term that
    couples samples makes the values differ.

    Args:
        classifier: its loss is checked.
        outputs: some outputs of its network; the check uses outputs of the same kind.
        reason: the option that splits batches.

    Raises:
        ValueError: for such a loss, or one that takes no such outputs.
    """
    name = type(classifier.loss).__name__
    refusal = (
        f"classifier: {reason} average over samples, expected a loss whose value for a batch is the mean over its "
        f"samples, but {name} is not (reduction 'mean', without weights and ignore_index)."
    )
    if _normalises(classifier.loss, classifier.nb_classes):
        raise ValueError(refusal)
    count, classes = 3 * max(classifier.nb_classes, 4), classifier.nb_classes
    generator = torch.Generator(device="cpu").manual_seed(0)
    drawn = 3 * torch.randn(count, outputs.shape[1], generator=generator, device="cpu").to(outputs.device)
    if outputs_are_probabilities(outputs):
        drawn = drawn.softmax(dim=1)
    elif bool(((outputs >= 0) & (outputs <= 1)).all()):
        drawn = drawn.sigmoid()
    # Sorted by class, so that the parts have different classes.
    y = (torch.arange(count, device="cpu") * classes // count).to(outputs.device)
    cut = count // 3 - 1
    devices = [outputs.device] if outputs.device.type == "cuda" else []
    try:
        with torch.no_grad(), restored_random_states(devices):
            whole, again = loss_of(classifier, drawn, y), loss_of(classifier, drawn, y)
            parts = [loss_of(classifier, drawn[rows], y[rows]) for rows in (slice(cut), slice(cut, None))]
    except Exception as error:  # a user's loss may raise anything
        raise ValueError(
            f"classifier: its {name} fails for {count} samples of all classes ({describe_error(error)}), "
            f"expected one that does not, as {reason} average over samples."
        ) from error
    whole = check_scalar(whole, count)
    mean = (cut * parts[0] + (count - cut) * parts[1]) / count
    # A loss that draws random numbers has no single value to compare.
    if bool(whole == again) and not torch.allclose(whole.float(), mean.float(), rtol=3e-5, atol=1e-6):
        raise ValueError(refusal)


def _normalises(loss: object, nb_classes: int) -> bool:
    """Whether a loss divides by the sum of the samples' weights, which are not all 1."""
    if not isinstance(loss, _NORMALISED):
        return False
    return loss.weight is not None or 0 <= loss.ignore_index < nb_classes


def uncounted_classes(loss: object, nb_classes: int) -> Tensor | None:
    """The classes that the loss ignores: bool [C], or None if it ignores none."""
    if not isinstance(loss, _NORMALISED) or loss.reduction != "mean":
        return None
    uncounted = torch.zeros(nb_classes, dtype=torch.bool)
    if 0 <= loss.ignore_index < nb_classes:
        uncounted[loss.ignore_index] = True
    if loss.weight is not None:
        uncounted |= (loss.weight == 0).cpu()
    return uncounted if bool(uncounted.any()) else None


def check_counted(y: Tensor, uncounted: Tensor | None) -> None:
    """Refuse a batch whose labels the loss ignores altogether: its mean would be 0 / 0.

    Args:
        y: int64 [N], or class probabilities [N, C], which are not checked.
        uncounted: see `uncounted_classes`.

    Raises:
        ValueError: for such a batch.
    """
    if uncounted is None or y.dim() == 2 or not bool(uncounted.to(y.device)[y].all()):
        return
    classes = ", ".join(map(str, sorted(set(y.tolist()))))
    raise ValueError(
        f"y: got a batch of {len(y)} labels all of class {classes}, which the loss ignores (ignore_index or a weight "
        f"of 0), so that its mean over the others is NaN; expected another class in each batch, as in larger ones."
    )

"""Checks before any attack that the function that is judged is the function that is attacked.

Attacks follow the network after ART's preprocessing, verdicts come from ``predict``: both must be the same function.
And an image must have one answer, whatever images were classified before it or beside it. An estimator that breaks the
first rule is refused; one that breaks the second gets a flag, see ``answers.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise

import torch
from art.estimators.certification.derandomized_smoothing.derandomized import DeRandomizedSmoothingMixin
from art.estimators.certification.randomized_smoothing.randomized_smoothing import RandomizedSmoothingMixin
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from ...bridge import overrides_predict
from ...checks import quote_error
from ...randomness import seed_everything
from ...threat import Bound, ThreatModel
from .differences import RANDOM_DIFFERENCE, measure_difference, measure_differences

Outputs = Callable[[Tensor], Tensor]
"""Images [n, ...] in the estimator's range -> outputs [n, classes], on the CPU."""

# The number of the evaluation's images that are checked; the same number is generated.
IMAGES = 8
# The passes of a randomised network that are averaged, and the standard errors by which means may differ.
PASSES = 10
ERRORS = 8.0
# Rounding depends on a pass's shape: results differ by up to this share of the length (bfloat16, TensorFloat-32).
SHAPE_DIFFERENCE = 1e-2
# The number of these images that are also classified alone.
_ALONE = 4


def check_single_network(estimator: PyTorchClassifier) -> None:
    """Refuse smoothed classifiers, whose votes and abstentions are no logits.

    Raises:
        ValueError: for such an estimator.
    """
    if isinstance(estimator, RandomizedSmoothingMixin | DeRandomizedSmoothingMixin):
        raise ValueError(
            f"classifier: got {type(estimator).__name__}, whose predict votes over many passes, may abstain and has "
            f"no gradient, expected a PyTorchClassifier with logits; evaluate its network in one, and report the "
            f"radii of its own certify."
        )


def make_probes(x: Tensor, threat: ThreatModel, low: Bound, high: Bound) -> Tensor:
    """Images to compare two functions on: some of ``x`` [N, ...], others near them, others from the whole range."""
    few = x[:IMAGES]
    generator = torch.Generator().manual_seed(0)
    near = threat.random_start(few, low, high, generator)
    anywhere = torch.rand(few.shape, generator=generator, device="cpu") * (high - low) + low
    return torch.cat([few, near, anywhere])


def check_same_function(estimator: PyTorchClassifier, predict: Outputs, network: Outputs, images: Tensor) -> None:
    """Refuse an estimator whose ``predict`` computes something else than its network after the preprocessing.

    For a randomised estimator the means over `PASSES` passes are compared.

    Args:
        estimator: the estimator, which the error's sentence names.
        predict: its ``predict``.
        network: the function that attacks follow.
        images: in the estimator's range, see `make_probes`.

    Raises:
        ValueError: the outputs differ.
    """
    one, another, followed = predict(images), predict(images), network(images)
    if one.shape != followed.shape:
        _refuse(estimator, f"their shape is {tuple(one.shape)}, not {tuple(followed.shape)}")
    apart = measure_differences(one, followed)
    if not bool((apart > RANDOM_DIFFERENCE).any()):
        return
    if _count_differing([one, another]) or _count_differing([followed, network(images)]):
        if not overrides_predict(estimator):  # the network itself differs from pass to pass, which a flag reports
            return
        judged = torch.stack([one, another, *(predict(images) for _ in range(PASSES - 2))]).double()
        attacked = torch.stack([followed, *(network(images) for _ in range(PASSES - 1))]).double()
        if _count_differing(judged) >= PASSES - 2 and not _count_differing(attacked):
            _refuse(estimator, "its passes differ, those of the network do not")
        apart = _measure_beyond_chance(judged, attacked)
    count = int((apart > RANDOM_DIFFERENCE).sum())
    if count:
        _refuse(estimator, f"they differ by up to {apart.max():.1e} of their length, at {count} of {len(apart)} images")


def _count_differing(passes: Iterable[Tensor]) -> int:
    """Count the passes [n, classes] that differ from the one before."""
    return sum(measure_difference(one, another) > RANDOM_DIFFERENCE for one, another in pairwise(passes))


def _measure_beyond_chance(one: Tensor, another: Tensor) -> Tensor:
    """The `measure_differences` [n] between the means over passes [P, n, classes]; 0 where it may be chance."""
    error = ((one.var(dim=0) + another.var(dim=0)) / len(one)).sqrt()
    mean, other = one.mean(dim=0), another.mean(dim=0)
    chance = (mean - other).abs() <= ERRORS * error
    return measure_differences(mean, torch.where(chance, mean, other))


def _refuse(estimator: PyTorchClassifier, what: str) -> None:
    raise ValueError(
        f"classifier: predict of {type(estimator).__name__} gives other outputs than its network after the "
        f"preprocessing ({what}), expected the same; make what predict adds a part of the network, and evaluate "
        f"that in a PyTorchClassifier."
    )


def measure_repeat_difference(predict: Outputs, x: Tensor) -> float:
    """The largest difference between `PASSES` passes of the same images of ``x`` [N, ...], as some vary only rarely."""
    first = predict(x[:IMAGES])
    return max(measure_difference(first, predict(x[:IMAGES])) for _ in range(PASSES - 1))


def measure_seeded_difference(predict: Outputs, x: Tensor, seed: int) -> float:
    """The difference between two passes of the same images of ``x`` [N, ...] with the same random numbers."""
    outputs = []
    for _ in range(2):
        seed_everything(seed)
        outputs.append(predict(x[:IMAGES]))
    return measure_difference(*outputs)


def measure_memory(unrestored: Outputs, x: Tensor, low: Bound, high: Bound) -> float:
    """The difference between outputs for the same images when other images pass in between.

    Args:
        unrestored: the estimator's ``predict``, whose state stays as each pass leaves it.
        x: images [N, ...].
        low: the smallest value of an image.
        high: the largest.
    """
    few = x[:IMAGES]
    before = unrestored(few)
    unrestored(low + high - few)
    return measure_difference(before, unrestored(few))


def measure_company(
    predict: Callable[[Tensor, int], Tensor], x: Tensor, outputs: Tensor, low: Bound, high: Bound, most: int
) -> float:
    """The difference between a deterministic network's outputs for an image in different batches; 0 if it is rounding.

    First, some images pass in two batches of the same size with different others: these passes round alike, so that any
    difference counts. The other comparisons (the image alone, in another order, in the evaluation's own batch) round
    differently. All images of ``outputs`` are compared with their passes in reverse order.

    Args:
        predict: images and the size of a pass -> outputs.
        x: the evaluation's images [N, ...].
        outputs: those of the first batch [n, classes], in the evaluation's own passes.
        low: the smallest value of an image.
        high: the largest.
        most: the largest size of a pass; for 1, two images pass here, as in the other checks of a network.

    Returns:
        a share of the outputs' length; infinity for a network that fails for a single image.
    """
    most = max(most, 2)
    few = x[: min(IMAGES, most // 2)]
    n, size = len(few), min(len(few) + IMAGES, most)
    noise = torch.rand(size - n, *x.shape[1:], generator=torch.Generator().manual_seed(0), device="cpu")
    among = torch.cat([few, noise * (high - low) + low])
    usual = predict(among, size)[:n]
    found = [0.0]
    for value in (low, high):
        company = measure_difference(usual, predict(torch.cat([few, torch.zeros_like(noise) + value]), size)[:n])
        found.append(company if company > RANDOM_DIFFERENCE else 0.0)
    try:
        alone = predict(few[:_ALONE], 1)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError):  # such as batch norm's, which needs more than one value
        return float("inf")
    turned = predict(among.flip(0), size).flip(0)[:n]
    reverse = predict(x[: len(outputs)].flip(0), most).flip(0)
    for one, another in ((usual, alone), (usual, turned), (usual, outputs[:n]), (outputs, reverse)):
        shape = measure_difference(one[: len(another)], another)
        found.append(shape if shape > SHAPE_DIFFERENCE else 0.0)
    return max(found)


def find_undecided(outputs: Tensor) -> Tensor:
    """Which rows of ``outputs`` [N, classes] are the same for all classes, bool [N]: an abstention is no class."""
    return (outputs == outputs[:, :1]).all(dim=1) & (outputs.shape[1] > 1)


def find_ties(outputs: Tensor, y: Tensor) -> Tensor:
    """Which rows have their largest output at their label ``y`` [N] and at another class too, bool [N]."""
    largest = outputs == outputs.amax(dim=1, keepdim=True)
    return (largest.sum(dim=1) > 1) & largest.gather(1, y[:, None])[:, 0]


def find_gradient_obstacle(model: Callable[[Tensor], Tensor], x: Tensor) -> str | None:
    """The reason why the logits have no gradient with respect to ``x`` [N, ...], as a clause; None if they have one."""
    x = x.clone().requires_grad_()
    try:
        with torch.enable_grad():
            outputs = model(x)
            if outputs.requires_grad and torch.autograd.grad(outputs.sum(), x, allow_unused=True)[0] is not None:
                return None
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        reason = quote_error(error)
        return f"the gradient of the logits cannot be computed ({reason})"
    return "no gradient of the logits reaches the input"

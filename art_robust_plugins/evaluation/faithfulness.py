"""Whether an evaluation judges what it means to judge, looked at before any attack.

Attacks follow the network after ART's preprocessing, verdicts come from ``predict``: both must compute the same. And an
image must have one answer, whatever passed before it and beside it. What contradicts the first is refused; what
contradicts the second becomes a `Flag`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
from art.estimators.certification.derandomized_smoothing.derandomized import DeRandomizedSmoothingMixin
from art.estimators.certification.randomized_smoothing.randomized_smoothing import RandomizedSmoothingMixin
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..bridge import overrides_predict
from ..randomness import seed_everything
from ..threat import Bound, ThreatModel
from .diagnostics import CHANCE, RANDOM_DIFFERENCE, Flag, difference, differences

Outputs = Callable[[Tensor], Tensor]
"""Images [n, ...] in the estimator's range -> outputs [n, classes], on the CPU."""

# How many images of the evaluation are looked at; as many are made beside them.
IMAGES = 8
# Passes of a randomised network whose means are compared, and the standard errors by which they may differ.
PASSES = 10
ERRORS = 8.0
# Passes of another shape round otherwise: in bfloat16, or with TensorFloat-32, by up to this share of the length.
SHAPE_DIFFERENCE = 1e-2
# How many of these images also pass alone.
_ALONE = 4
# How many names an evidence lists.
_NAMED = 3


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


def probes(x: Tensor, threat: ThreatModel, low: Bound, high: Bound) -> Tensor:
    """Images to compare two functions on: some of ``x`` [N, ...], others near them, others from the whole range."""
    few = x[:IMAGES]
    generator = torch.Generator().manual_seed(0)
    near = threat.random_start(few, low, high, generator)
    anywhere = torch.rand(few.shape, generator=generator, device="cpu") * (high - low) + low
    return torch.cat([few, near, anywhere])


def check_same_function(estimator: PyTorchClassifier, predict: Outputs, network: Outputs, images: Tensor) -> None:
    """Refuse an estimator whose ``predict`` computes something else than its network after the preprocessing.

    Of a randomised one the means over `PASSES` passes are compared.

    Args:
        estimator: whose sentence it is.
        predict: its ``predict``.
        network: what attacks follow.
        images: in the estimator's range, see `probes`.

    Raises:
        ValueError: the outputs differ.
    """
    one, another, followed = predict(images), predict(images), network(images)
    if one.shape != followed.shape:
        _refuse(estimator, f"their shape is {tuple(one.shape)}, not {tuple(followed.shape)}")
    apart = differences(one, followed)
    if not bool((apart > RANDOM_DIFFERENCE).any()):
        return
    if difference(one, another) > RANDOM_DIFFERENCE or difference(followed, network(images)) > RANDOM_DIFFERENCE:
        if not overrides_predict(estimator):  # the network itself differs from pass to pass: flags tell
            return
        judged = torch.stack([one, another, *(predict(images) for _ in range(PASSES - 2))]).double()
        attacked = torch.stack([followed, *(network(images) for _ in range(PASSES - 1))]).double()
        if _differing(judged) >= PASSES - 2 and not _differing(attacked):
            _refuse(estimator, "its passes differ, those of the network do not")
        apart = _beyond_chance(judged, attacked)
    count = int((apart > RANDOM_DIFFERENCE).sum())
    if count:
        _refuse(estimator, f"they differ by up to {apart.max():.1e} of their length, at {count} of {len(apart)} images")


def _differing(passes: Tensor) -> int:
    """How many passes [P, n, classes] differ from the one before."""
    return sum(difference(one, another) > RANDOM_DIFFERENCE for one, another in pairwise(passes))


def _beyond_chance(one: Tensor, another: Tensor) -> Tensor:
    """The `differences` [n] between the means over passes [P, n, classes], without those that may be chance."""
    error = ((one.var(dim=0) + another.var(dim=0)) / len(one)).sqrt()
    mean, other = one.mean(dim=0), another.mean(dim=0)
    chance = (mean - other).abs() <= ERRORS * error
    return differences(mean, torch.where(chance, mean, other))


def _refuse(estimator: PyTorchClassifier, what: str) -> None:
    raise ValueError(
        f"classifier: predict of {type(estimator).__name__} gives other outputs than its network after the "
        f"preprocessing ({what}), expected the same; make what predict adds a part of the network, and evaluate "
        f"that in a PyTorchClassifier."
    )


class _GradientWatch(TorchFunctionMode):
    """Notes whether anything within takes gradients: by autograd, torch.func or forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        takers = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        self.seen = self.seen or func in takers or getattr(func, "__name__", "") == "_make_dual"
        return func(*args, **(kwargs or {}))


def takes_gradients(run: Callable[[], object]) -> bool:
    """Whether ``run``, a pass without gradients of its own, takes some inside."""
    watch = _GradientWatch()
    with watch:
        run()
    return watch.seen


def repeat_difference(predict: Outputs, x: Tensor) -> float:
    """The largest difference between `PASSES` passes of the same images, of ``x`` [N, ...]: some are random rarely."""
    first = predict(x[:IMAGES])
    return max(difference(first, predict(x[:IMAGES])) for _ in range(PASSES - 1))


def seeded_difference(predict: Outputs, x: Tensor, seed: int) -> float:
    """The difference between two passes of the same images, of ``x`` [N, ...], with the same random numbers."""
    outputs = []
    for _ in range(2):
        seed_everything(seed)
        outputs.append(predict(x[:IMAGES]))
    return difference(*outputs)


def memory_difference(unrestored: Outputs, x: Tensor, low: Bound, high: Bound) -> float:
    """How far outputs for the same images lie apart when other images passed between: what the network remembers.

    Args:
        unrestored: the estimator's ``predict``, whose state stays as each pass leaves it.
        x: images [N, ...].
        low: the smallest value of an image.
        high: the largest.
    """
    few = x[:IMAGES]
    before = unrestored(few)
    unrestored(low + high - few)
    return difference(before, unrestored(few))


def batch_difference(
    predict: Callable[[Tensor, int], Tensor], x: Tensor, outputs: Tensor, low: Bound, high: Bound
) -> float:
    """How far a deterministic network's outputs for an image lie apart in different company; 0 where that is rounding.

    Images of one batch change sides with others of the same number first: these passes round alike, so that any
    difference tells. The other comparisons, with a pass of the image alone, in another order, and in the evaluation's
    own batch, round differently.

    Args:
        predict: images and how many of them pass at once -> outputs.
        x: the evaluation's images [N, ...].
        outputs: theirs, in the evaluation's own batches.
        low: the smallest value of an image.
        high: the largest.

    Returns:
        a share of the outputs' length; infinity for a network that takes no image alone.
    """
    few = x[:IMAGES]
    n, size = len(few), len(few) + IMAGES
    noise = torch.rand(IMAGES, *x.shape[1:], generator=torch.Generator().manual_seed(0), device="cpu")
    among = torch.cat([few, noise * (high - low) + low])
    usual = predict(among, size)[:n]
    found = [0.0]
    for value in (low, high):
        company = difference(usual, predict(torch.cat([few, torch.zeros_like(noise) + value]), size)[:n])
        found.append(company if company > RANDOM_DIFFERENCE else 0.0)
    try:
        alone = predict(few[:_ALONE], 1)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError):  # such as of batch norm, which finds no deviation in one value
        return float("inf")
    turned = predict(among.flip(0), size).flip(0)[:n]
    for one, another in ((usual[:_ALONE], alone), (usual, turned), (usual, outputs[:n])):
        shape = difference(one, another)
        found.append(shape if shape > SHAPE_DIFFERENCE else 0.0)
    return max(found)


def undecided(outputs: Tensor) -> Tensor:
    """Which rows of ``outputs`` [N, classes] are the same for all classes, bool [N]: an abstention is no class."""
    return (outputs == outputs[:, :1]).all(dim=1) & (outputs.shape[1] > 1)


def tied(outputs: Tensor, y: Tensor) -> Tensor:
    """Which rows have the output of their label ``y`` [N] and of another class for the largest, bool [N]."""
    largest = outputs == outputs.amax(dim=1, keepdim=True)
    return (largest.sum(dim=1) > 1) & largest.gather(1, y[:, None])[:, 0]


def flags_of(state: Mapping[str, Any], points: int) -> list[Flag]:
    """The signs in an evaluation's state that an image has more than one answer, or none.

    Args:
        state: the evaluation's state.
        points: how many points were evaluated.
    """
    flags = []
    evidence = []
    if state["gradients"]:
        evidence.append("A clean pass takes gradients inside.")
    if state["moved"]:
        evidence.append(f"A clean pass changed {_listed(state['moved'])} of the network.")
    if state["memory"] > RANDOM_DIFFERENCE:
        evidence.append(
            f"The same images give outputs that differ by {state['memory']:.1e} of their length when other images "
            f"passed between."
        )
    if state["seeded_difference"] > RANDOM_DIFFERENCE:
        evidence.append(
            f"Two passes of the same images with the same random numbers differ by {state['seeded_difference']:.1e} of "
            f"the outputs' length: the network remembers earlier passes, or draws from a generator of its own."
        )
    for name, progress in state["attacks"].items():
        new = sorted(progress["moved"] - set(state["moved"]))
        if new:
            evidence.append(f"While {name} ran, {_listed(new)} of the network changed.")
    if evidence:
        flags.append(
            Flag(
                "dynamic",
                "severe",
                " ".join(evidence),
                "Attacks meet a network that changes, and the standard evaluation is not made for it: evaluate it "
                "without its adaptation too, and attack it with an attack that knows of it. Its weights and buffers "
                "were put back before each verdict and at the end.",
            )
        )
    if state["batch_difference"]:
        apart = state["batch_difference"]
        flags.append(
            Flag(
                "batch-dependent",
                "severe",
                "The network takes no image alone."
                if apart == float("inf")
                else f"The same image in other company gives outputs that differ by {apart:.1e} of their length.",
                "Batch norm in training mode does this, and any other statistic over a batch: take it from the image, "
                "or fix it. As it is, each number holds for this batch_size, physical_batch_size and order alone.",
            )
        )
    for kind, name, what, advice in (
        (
            "undecided",
            "no-decision",
            "are the same for all classes",
            "An abstention is no class: they count as misclassified.",
        ),
        (
            "tied",
            "ties",
            "are largest at the label and at another class",
            "The first of such classes counts, as in AutoAttack's own code, which is no merit of the network: let its "
            "outputs be rounded less.",
        ),
    ):
        clean, found = state[kind], sum(progress["counts"][kind] for progress in state["attacks"].values())
        if clean + found > (CHANCE if kind == "tied" else 0):
            flags.append(
                Flag(
                    name,
                    "severe" if kind == "undecided" else "warning",
                    f"The outputs for {clean} of {points} clean images and for {found} candidates {what}.",
                    advice,
                )
            )
    return flags


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more

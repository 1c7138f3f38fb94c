"""`evaluate`: the front door of the evaluation, one call for any network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn

from ..bridge import as_estimator, check_no_conventions, copy_to, is_plain, rename_model
from ..checks import find_caller_level
from ..choices import BATCH_SIZE
from ..keywords import explain_keywords
from ..threat import ThreatModel, parse_norm, parse_radius
from .evaluator import Evaluator
from .libraries import Attack, Backend
from .report import EvaluationReport
from .samples import collect_samples, read_samples
from .transfer import transfer

ENOUGH_IMAGES = 20
"""The accuracy on fewer images than this says little."""


@explain_keywords
def evaluate(
    model: nn.Module | PyTorchClassifier,
    x: Any,
    y: Any = None,
    norm: str | float | None = None,
    eps: float | str | None = None,
    *,
    attacks: str | Attack | Sequence[str | Attack] = "standard",
    transfers: Mapping[str, nn.Module | PyTorchClassifier] | None = None,
    bounds: Any = None,
    mean: Any = None,
    std: Any = None,
    nb_classes: int | None = None,
    device: Any = None,
    backend: Backend = "native",
    batch_size: int = BATCH_SIZE,
    physical_batch_size: int | None = None,
    seed: int = 0,
    state_dir: str | Path | None = None,
    verbose: bool = True,
) -> EvaluationReport:
    """Attack a trained network, with AutoAttack unless told otherwise, and report its robust accuracy.

    `Evaluator` in one call, for any network; see there for what the numbers mean. The network is evaluated in
    evaluation mode, and left as it was: its mode, weights, buffers, gradients, and the random generators. On a CPU with
    glibc, an evaluation of large images has freed blocks of 1 MiB and more returned to the system from then on.

    Args:
        model: a plain ``nn.Module`` that maps a batch [N, ...] to logits [N, classes] (or to an object with the
            attribute ``logits``, as Hugging Face's), or an ART ``PyTorchClassifier``.
        x: images [N, ...] in ``bounds``, an array or a tensor on any device; or, without y, a ``Dataset``, a
            ``DataLoader`` or any other iterable of batches (x, y), which is read once, in its order.
        y: labels from 0, as class indices [N] or one-hot rows [N, classes]; None where ``x`` brings them.
        norm: of the threat: ``"Linf"``, ``"L2"`` or ``"L1"``, in any spelling that `parse_norm` knows. Required.
        eps: the radius of the threat in the units of ``x``: a number, or a fraction as text: ``"8/255"``. Required.
        attacks: as for `Evaluator`: a suite, an attack's name, an `Attack`, or a sequence of these.
        transfers: other networks by name, whose gradients are followed as well, see `transfer`; plain ones take
            images as ``model`` does.
        bounds: of a plain network, the range of ``x``: two numbers, or two arrays; None for (0, 1).
        mean: of a plain network, what is subtracted from ``x`` first, a number or one for each channel.
        std: of a plain network, what the difference is divided by.
        nb_classes: of a plain network, how many outputs it must have; None for as many as it has.
        device: of a plain network, where to compute, on a copy; None for where it is.
        backend: as for `Evaluator`.
        batch_size: as for `Evaluator`: the points of a logical batch, which fixes the random numbers.
        physical_batch_size: as for `Evaluator`: the most points in a pass.
        seed: as for `Evaluator`.
        state_dir: as for `Evaluator`: a folder from which a stopped evaluation goes on.
        verbose: show progress bars.

    Returns:
        the report: ``report.robust_accuracy``, ``print(report)``, ``report.save(folder)``.

    Raises:
        TypeError: a ``model`` that is neither a network nor an ART classifier, data of another kind.
        ValueError: an argument that does not fit; the sentence begins with its name, and says what would.
        ImportError: the library of an attack is not installed.

    Warns:
        UserWarning: the network is no better than guessing, or a radius is far below one level of a wide range.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))  # class 1 is where x[1] > x[0]
        >>> _ = nn.init.eye_(network[1].weight)
        >>> x = np.array([[[[0.9, 0.2]]], [[[0.3, 0.4]]]])
        >>> report = evaluate(network, x, [0, 1], "Linf", 0.1, attacks="apgd-ce", verbose=False)
        >>> report.clean_accuracy, report.robust_accuracy  # Linf 0.1 closes a gap of 0.2, and not one of 0.7
        (1.0, 0.5)
    """
    _check_order(x, y, norm, eps)
    threat = ThreatModel(parse_norm(norm), parse_radius(eps))  # type: ignore[arg-type]
    conventions = {"bounds": bounds, "mean": mean, "std": std, "nb_classes": nb_classes}
    with rename_model(), torch.inference_mode(False):
        if is_plain(model):
            images, labels = collect_samples(x, y)
            estimator = as_estimator(copy_to(model, device), images, **conventions)
        else:
            assert isinstance(model, PyTorchClassifier)
            check_no_conventions(model, **conventions, device=device)
            images, labels, estimator = x, y, model
        if transfers:
            images, labels = read_samples(images, labels, estimator)
            sources = _make_sources(transfers, images, conventions)
            attacks = [*([attacks] if isinstance(attacks, str | Attack) else attacks), *sources]
        evaluator = Evaluator(
            estimator,
            threat,
            attacks=attacks,
            backend=backend,
            batch_size=batch_size,
            physical_batch_size=physical_batch_size,
            seed=seed,
            state_dir=state_dir,
            verbose=verbose,
        )
        report = evaluator.evaluate(images, labels)
    warn_of_guessing(report)
    return report


def _check_order(x: Any, y: Any, norm: Any, eps: Any) -> None:
    """Refuse arguments in each other's places."""
    if _is_taken(parse_radius, norm) and not _is_taken(parse_norm, norm) and _is_taken(parse_norm, eps):
        raise ValueError(f"norm: got {norm!r}, and eps {eps!r}, expected the norm first and then the radius.")
    if isinstance(y, str):
        raise ValueError(f"y: got {y!r}, expected labels, or None for data that bring their own.")
    axes, others = getattr(x, "ndim", None), getattr(y, "ndim", None)
    if axes is not None and others is not None and (axes <= 1 < others or axes <= 2 < others):
        raise ValueError(
            f"x: got the shape {tuple(x.shape)}, and y {tuple(y.shape)}, expected images first and then labels."
        )


def _is_taken(parse: Any, value: Any) -> bool:
    try:
        parse(value)
    except ValueError:
        return False
    return True


def _make_sources(
    transfers: Mapping[str, nn.Module | PyTorchClassifier], images: Any, conventions: Mapping[str, Any]
) -> list[Attack]:
    if not isinstance(transfers, Mapping) or not all(isinstance(name, str) for name in transfers):
        raise ValueError(
            f"transfers: got a {type(transfers).__name__}, expected networks by name, {{'plain': network}}."
        )
    sources = []
    for name, source in transfers.items():
        with rename_model(f"transfers[{name!r}]"):
            own = conventions if is_plain(source) else {}
            sources.append(transfer(as_estimator(source, images, **own), name))
    return sources


def warn_of_guessing(report: EvaluationReport) -> None:
    """Warn of a network that is no better than guessing: it likely gets its images in another form."""
    points, classes = len(report.labels), np.unique(report.labels)
    if points < ENOUGH_IMAGES or len(classes) < 2:
        return
    chance = 1 / len(classes)
    if report.clean_accuracy > chance + 2 * math.sqrt(chance * (1 - chance) / points):
        return
    outputs = report.settings["classes"]
    warnings.warn(
        f"model: it is right on {report.clean_accuracy:.1%} of {points} clean images, no better than guessing; check "
        f"bounds=, mean= and std=, the order of the channels, and that labels {classes[0]} to {classes[-1]} are those "
        f"of its {outputs} outputs.",
        stacklevel=find_caller_level(),
    )

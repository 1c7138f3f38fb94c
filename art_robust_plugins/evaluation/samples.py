"""The points of an evaluation, from arrays, from a ``Dataset``, or from batches, as a ``DataLoader`` yields them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from itertools import chain, islice
from typing import Any

import torch
from art.data_generators import DataGenerator, PyTorchDataGenerator
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from ..bridge import image_tensor, input_range, label_tensor, plain_tensor
from ..randomness import cuda_devices, restored_random_states

_READ_AT_ONCE = 256
_SHUFFLING = (RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler)


def collect_samples(x: Any, y: Any) -> tuple[Any, Any]:
    """Samples and labels as they come, before any estimator is known; those of a ``Dataset`` or of batches are joined.

    Args:
        x: as for `read_samples`.
        y: as for `read_samples`.

    Raises:
        TypeError: ``x`` is neither an array nor an iterable of batches.
        ValueError: labels missing or twice, batches in a random order, not all of them, or of several shapes.
    """
    if not _is_batched(x, y):
        return x, y
    return _join(x, lambda images, targets: (images.cpu(), targets.cpu()))


def read_samples(x: Any, y: Any, estimator: PyTorchClassifier) -> tuple[Tensor, Tensor]:
    """Samples [N, *input_shape] in float32, limited to the estimator's range, and labels [N] in int64, on the CPU.

    Args:
        x: an array or a tensor; or, with ``y`` None, a ``Dataset`` of pairs, or an iterable of batches (x, y).
        y: labels, or None.
        estimator: the data must have its shape, range and classes.

    Raises:
        TypeError: ``x`` is neither an array nor an iterable of batches.
        ValueError: data that do not fit, labels missing or twice, batches in a random order, or not all of them.
    """
    if not _is_batched(x, y):
        samples = image_tensor(x, estimator)
        labels = label_tensor(y, estimator.nb_classes, samples=len(samples))
        return input_range(estimator).clip(samples.cpu()), labels.cpu().clone()

    def convert(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        samples = image_tensor(images, estimator).cpu()
        return samples, label_tensor(targets, estimator.nb_classes, samples=len(samples)).cpu()

    samples, labels = _join(x, convert)
    return input_range(estimator).clip(samples), labels


def _join(x: Any, convert: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The samples and labels of all batches of ``x``, each batch through ``convert``.

    Raises:
        ValueError: no batches, or batches of several shapes.
    """
    # A DataLoader draws a random number for its workers.
    with restored_random_states(cuda_devices()):
        parts = [convert(images, targets) for images, targets in _batches(x)]
    if not parts:
        raise ValueError(f"x: got a {type(x).__name__} without samples, expected at least one.")
    for name, pieces in zip(("x", "y"), zip(*parts, strict=True), strict=True):
        shapes = list(dict.fromkeys(tuple(piece.shape[1:]) for piece in pieces))
        if len(shapes) > 1:
            raise ValueError(f"{name}: got batches of shapes (N, ...) with {shapes[0]} and {shapes[1]}, expected one.")
    samples, labels = (torch.cat(same) for same in zip(*parts, strict=True))
    return samples, labels


def _is_batched(x: Any, y: Any) -> bool:
    """Whether ``x`` brings its labels ``y`` itself.

    Raises:
        ValueError: labels missing or twice.
    """
    batched = isinstance(x, Dataset | DataLoader | DataGenerator | Iterator)
    if batched and y is not None:
        raise ValueError(f"y: got labels beside a {type(x).__name__} as x, expected None: it brings its own.")
    if not batched and y is None and hasattr(x, "__array__"):
        raise ValueError(
            f"y: got None beside {type(x).__name__} samples, expected their labels; without them, x is a Dataset or a "
            f"DataLoader of pairs (x, y)."
        )
    return y is None


def _batches(x: Any) -> Iterator[tuple[Tensor, Tensor]]:
    if isinstance(x, PyTorchDataGenerator):
        x = x.iterator
    if isinstance(x, Dataset):
        x = DataLoader(x, batch_size=_READ_AT_ONCE)
    if isinstance(x, DataLoader):
        _check_loader(x)
    elif not isinstance(x, Iterable) or isinstance(x, Mapping | str | bytes | DataGenerator):
        arrays = "; give its arrays, as in evaluate(data.x_test, data.y_test)" if hasattr(x, "x_test") else ""
        raise TypeError(
            f"x: got {type(x).__name__}, expected samples, a Dataset, a DataLoader, or an iterable of batches (x, y)"
            f"{arrays}."
        )
    batches = iter(x)
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except (TypeError, RuntimeError) as error:
            reason = str(error).strip().split("\n")[-1].rstrip(".")
            # These errors come from samples that are no arrays (PIL images) or have several sizes.
            if not any(sign in reason for sign in ("collate", "stack expects")):
                raise
            raise ValueError(
                f"x: its samples cannot be joined to batches ({reason}), expected tensors of one size, as a "
                f"Dataset with transform=ToTensor() gives them."
            ) from error
        if not isinstance(batch, list | tuple) or len(batch) != 2:
            size = f" with {len(batch)} entries" if isinstance(batch, list | tuple | Mapping) else ""
            advice = (
                "arrays are given as evaluate(x, y)"
                if hasattr(batch, "__array__")
                else "a generator such as ((b['image'], b['label']) for b in batches) makes pairs of others"
            )
            raise ValueError(f"x: got a batch of type {type(batch).__name__}{size}, expected a pair (x, y); {advice}.")
        samples, labels = plain_tensor(batch[0], "x"), plain_tensor(batch[1], "y")
        if labels.dim() == 0:
            raise ValueError(
                f"x: got an array of shape {tuple(samples.shape)} with a single label, expected batches (x, y) of "
                f"several; torch.utils.data.DataLoader(list(pairs), batch_size=256) makes them of single pairs."
            )
        if samples.dim() == 0 or len(samples) != len(labels):
            count = len(samples) if samples.dim() else "single"
            raise ValueError(f"y: got {len(labels)} labels for {count} samples in a batch, expected one for each.")
        yield samples, labels


def _check_loader(loader: DataLoader[Any]) -> None:
    """Refuse a loader that leaves samples out, or reads them in another order than the data's."""
    batches: Any = loader.batch_sampler
    sampler = getattr(batches, "sampler", loader.sampler)
    if isinstance(sampler, _SHUFFLING):
        raise ValueError(
            f"x: got a DataLoader whose {type(sampler).__name__} draws from its data, expected shuffle=False: a report "
            f"names points by their place in the data, and an evaluation that was stopped finds them there again."
        )
    # If the loader was given a batch_sampler, it knows more than the loader.
    drops = bool(getattr(batches, "drop_last", False))
    if isinstance(loader.dataset, IterableDataset):
        if drops:
            raise ValueError(
                f"x: got a DataLoader of a {type(loader.dataset).__name__} with drop_last=True, which may leave out "
                f"its last samples, expected drop_last=False."
            )
        return
    if not isinstance(loader.dataset, Sized):
        raise ValueError(
            f"x: got a DataLoader of a {type(loader.dataset).__name__}, which has no length, expected a dataset with "
            f"__len__, or an IterableDataset."
        )
    count = len(loader.dataset)
    if drops and count % batches.batch_size:
        raise ValueError(
            f"x: got a DataLoader with drop_last=True, which leaves out {count % batches.batch_size} samples, "
            f"expected drop_last=False."
        )
    _check_order(sampler if batches is None else batches, sampler, count)


def _check_order(source: Iterable[Any], sampler: Iterable[Any], count: int) -> None:
    """Refuse a sampler or batch sampler that does not yield 0 to ``count`` - 1 in their order."""
    name = type(source if isinstance(sampler, SequentialSampler) else sampler).__name__
    if any(isinstance(each, Iterator) for each in (source, sampler)):
        raise ValueError(
            f"x: got a DataLoader whose sampler is a {name}, which can be read but once, expected one whose order can "
            f"be looked at first, such as a list."
        )
    taken = source if source is sampler else chain.from_iterable(source)
    # One more than the number of samples: a sampler may be endless.
    places = list(islice(taken, count + 1))
    if len(places) != count or any(place != number for number, place in enumerate(places)):
        raise ValueError(
            f"x: got a DataLoader whose {name} leaves samples out, or takes them in another order or twice, expected "
            f"all {count} in their order; of some of them, make a torch.utils.data.Subset."
        )

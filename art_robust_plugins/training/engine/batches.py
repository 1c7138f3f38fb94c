"""The sources of training batches: arrays, or anything that yields batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from random import Random
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from art.data_generators import DataGenerator
from art.estimators.classification import PyTorchClassifier
from torch import Tensor
from torch.utils.data import DataLoader

from ...bridge import compact_images, device_of, image_tensor
from ..processes import Processes
from .prefetch import Batch, prefetch
from .settings import checksum
from .targets import ClassCensus, training_labels

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, Random)
# How deep in a loader's data set a generator is looked for, and in how long a list.
_DEPTH, _SHORT = 4, 32


class BatchSource(Protocol):
    """The interface through which the loop gets its batches."""

    steps: int | None
    """Batches in an epoch; None for a stream, whose length is known only when it ends."""
    sizes: set[int]
    """The batch sizes that occur, as far as they are known in advance."""
    settings: dict[str, int]
    """Settings that must be the same in a resumed run."""
    generators: Sequence[torch.Generator]
    """The loader's own random generators; checkpoints hold their states."""
    whole: Batch | None
    """All the data, if they are in memory; else None."""
    origin: object
    """The loader or generator that yields the batches; None for arrays."""
    rows: Tensor | None
    """Which samples of ``whole`` the latest batch holds: int64 [N]; None where that is unknown."""

    def epoch(self, order: torch.Generator, processes: Processes, census: ClassCensus | None) -> Iterator[Batch]:
        """The batches of an epoch on the device: x [N, ...], y [N] or [N, C]; ``census`` is shown their labels."""


def load_images(x: Any, classifier: PyTorchClassifier) -> Tensor:
    """All images [N, ...] on the classifier's device, checked; float32, or uint8 where that is what they are.

    Raises:
        ValueError: see `compact_images`.
    """
    return compact_images(x, classifier).to(device_of(classifier.model))


class ArrayBatches:
    """Batches sliced on the device from images [N, ...] and labels that are already there.

    Images in uint8 stay so, and each batch is made of numbers in float32.
    """

    def __init__(self, images: Tensor, labels: Tensor, batch_size: int, *, shuffle: bool, drop_last: bool) -> None:
        self.images, self.labels, self.batch_size, self.shuffle = images, labels, batch_size, shuffle
        self.steps: int | None = count_steps(len(images), batch_size, drop_last)
        self.sizes = batch_sizes(len(images), batch_size, drop_last)
        self.settings = {"samples": len(images), "batch_size": batch_size}
        self.generators: Sequence[torch.Generator] = ()
        self.whole: Batch | None = (images, labels)
        self.origin: object = None
        self.rows: Tensor | None = None

    def epoch(self, order: torch.Generator, processes: Processes, census: ClassCensus | None) -> Iterator[Batch]:
        samples, size = len(self.images), self.batch_size
        index = torch.randperm(samples, generator=order) if self.shuffle else torch.arange(samples)
        index = index.to(self.images.device)
        for step in range(self.steps or 0):
            self.rows = rows = index[step * size : (step + 1) * size]
            yield self.images[rows].float(), self.labels[rows]


class LoadedBatches:
    """Batches (x, y) of a loader or generator, checked and moved to the device.

    Args:
        classifier: is trained on the batches.
        iterate: starts an epoch and returns its iterator.
        origin: the loader or generator.
        steps: batches in an epoch, or None.
    """

    def __init__(
        self, classifier: PyTorchClassifier, iterate: Callable[[], Iterator[Any]], origin: object, steps: int | None
    ) -> None:
        self.classifier, self.iterate, self.origin, self.steps = classifier, iterate, origin, steps
        self.device = device_of(classifier.model)
        self.sizes: set[int] = set()
        self.settings: dict[str, int] = {}
        self.generators: Sequence[torch.Generator] = ()
        self.whole: Batch | None = None
        self.rows: Tensor | None = None

    @classmethod
    def from_loader(cls, classifier: PyTorchClassifier, loader: Iterable[Any]) -> LoadedBatches:
        """The batches of a ``DataLoader``, or of anything that can be iterated every epoch."""
        try:
            steps = len(loader)  # type: ignore[arg-type]
        except TypeError:  # a stream: its length is known only when it ends
            steps = None
        batches = cls(classifier, lambda: iter(loader), loader, steps)
        batches.sizes, batches.generators = _known_sizes(loader), _find_generators(loader)
        return batches

    @classmethod
    def from_generator(cls, classifier: PyTorchClassifier, generator: DataGenerator) -> LoadedBatches:
        """The batches of an ART generator: it is iterated each epoch if it can be, else asked for `size` samples."""
        if isinstance(generator, Iterable):
            return cls(classifier, lambda: iter(generator), generator, None)
        if generator.size is None:
            raise ValueError("generator: its size is None, expected the number of samples of an epoch.")
        steps = -(-generator.size // generator.batch_size)
        return cls(classifier, lambda: (generator.get_batch() for _ in range(steps)), generator, steps)

    def epoch(self, order: torch.Generator, processes: Processes, census: ClassCensus | None) -> Iterator[Batch]:
        # Batches are compared on the host: labels need not be read back from the device.
        return prefetch(_compare(self._check(census), processes), self.device)

    def _check(self, census: ClassCensus | None) -> Iterator[Batch]:
        empty = True
        for batch in self.iterate():
            empty = False
            if not isinstance(batch, Sequence) or len(batch) != 2:
                raise ValueError(f"loader: got a batch of type {type(batch).__name__}, expected a pair (x, y).")
            x = image_tensor(batch[0], self.classifier)
            y = training_labels(batch[1], self.classifier, samples=len(x))
            if census is not None:
                census.count(y)
            yield x, y
        if empty:
            raise ValueError("loader: got no batch in an epoch, expected at least one.")


def count_steps(samples: int, batch_size: int, drop_last: bool) -> int:
    """Batches in an epoch."""
    return samples // batch_size if drop_last else -(-samples // batch_size)


def batch_sizes(samples: int, batch_size: int, drop_last: bool) -> set[int]:
    """The numbers of samples that the batches of an epoch have."""
    whole, last = divmod(samples, batch_size)
    return ({batch_size} if whole else set()) | ({last} if last and not drop_last else set())


def _known_sizes(loader: object) -> set[int]:
    """`batch_sizes` of a ``DataLoader`` that forms its own batches; unknown in advance for any other loader."""
    if not isinstance(loader, DataLoader) or loader.batch_size is None:
        return set()
    try:
        samples = len(loader.sampler)  # type: ignore[arg-type]
    except TypeError:  # a stream
        return set()
    return batch_sizes(samples, loader.batch_size, loader.drop_last)


def _find_generators(loader: object) -> list[torch.Generator]:
    """The distinct generators that a loader and its samplers draw from."""
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    found = [getattr(owner, "generator", None) for owner in owners]
    return list({id(each): each for each in found if isinstance(each, torch.Generator)}.values())


def find_lost_numbers(loader: object, tracked: Sequence[torch.Generator]) -> str | None:
    """Which random numbers of a loader go on from epoch to epoch where no checkpoint sees them, as a clause; or None.

    Args:
        loader: of the data; None for arrays.
        tracked: the generators whose states a checkpoint holds.
    """
    if getattr(loader, "num_workers", 0) > 0:
        # Other workers begin each epoch with copies of the data set, which are all alike.
        return "the loader has persistent workers" if getattr(loader, "persistent_workers", False) else None
    known = {id(generator) for generator in tracked}
    level = [getattr(loader, "dataset", None), getattr(loader, "collate_fn", None)]
    for _ in range(_DEPTH):
        if any(isinstance(held, _GENERATORS) and id(held) not in known for held in level):
            return "the loader's data set holds a random generator"
        level = [held for owner in level for held in _list_held(owner)]
    return None


def _list_held(owner: object) -> list[object]:
    """The attributes of an object, or the entries of a short container."""
    if isinstance(owner, partial):
        return [owner.func, *owner.args, *owner.keywords.values()]
    if isinstance(owner, list | tuple | dict):
        held = list(owner.values()) if isinstance(owner, dict) else list(owner)
        return held if len(held) <= _SHORT else []
    if isinstance(owner, Tensor | np.ndarray | type | ModuleType):
        return []
    return list(getattr(owner, "__dict__", {}).values())


def _compare(batches: Iterator[Batch], processes: Processes) -> Iterator[Batch]:
    """Yield the batches, and refuse any that differs between processes, or an epoch that ends in only some of them."""
    if processes.count == 1:
        yield from batches
        return
    samples, labels = "loader, samples in a batch (0 after the last)", "loader, checksum of a batch's labels"
    for x, y in batches:
        processes.check_same({samples: len(x), labels: checksum(y)})
        yield x, y
    processes.check_same({samples: 0, labels: 0})

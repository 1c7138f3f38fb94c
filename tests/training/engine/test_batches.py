"""Arrays, generators and loaders in one loop."""

from __future__ import annotations

import contextlib
import functools
import random
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.data_generators import DataGenerator, NumpyDataGenerator, PyTorchDataGenerator
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from art_robust_plugins import StandardTrainer, TrainingOptions
from art_robust_plugins.training.engine.batches import ArrayBatches, find_lost_numbers, load_images

from ..builders import same, weights
from . import small
from .digits import X, Y, classifier


class Custom(DataGenerator):
    """A generator that can only be asked for the next batch."""

    def __init__(self) -> None:
        super().__init__(size=100, batch_size=32)
        self.asked = 0

    def get_batch(self) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(32 * (self.asked % 4), 32 * (self.asked % 4) + 32)
        self.asked += 1
        return X[:100][rows], Y[:100][rows]


def test_three_ways_in_one_loop() -> None:
    """The same batches in the same order give the same weights, wherever they come from."""
    results = []
    options = TrainingOptions(seed=0, shuffle=False)
    dataset = TensorDataset(torch.from_numpy(X[:100]), torch.from_numpy(Y[:100]))
    loader = DataLoader(dataset, batch_size=32)
    sources = {
        "fit": lambda t: t.fit(X[:100], Y[:100], batch_size=32, nb_epochs=2, verbose=False),
        "fit_loader": lambda t: t.fit_loader(loader, nb_epochs=2, verbose=False),
        "numpy": lambda t: t.fit_generator(
            NumpyDataGenerator(X[:100], np.eye(10)[Y[:100]], 32, drop_remainder=False), nb_epochs=2, verbose=False
        ),
        "torch": lambda t: t.fit_generator(PyTorchDataGenerator(loader, 100, 32), nb_epochs=2, verbose=False),
        "custom": lambda t: t.fit_generator(Custom(), nb_epochs=2, verbose=False),
    }
    for run in sources.values():
        trained = classifier()
        trained.model[6].p = 0.0  # a loader draws from the random stream that dropout draws from
        run(StandardTrainer(trained, options=options))
        results.append(weights(trained))
    assert all(same(results[0], other) for other in results[1:])


def test_images_in_uint8_stay_so_and_train_as_their_numbers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a checkpoint was written by a training on the same numbers in float32."""
    held: list[torch.dtype] = []
    epoch = ArrayBatches.epoch

    def watch(self: ArrayBatches, *arguments: Any) -> Iterator[Any]:
        held.append(self.images.dtype)
        return epoch(self, *arguments)

    monkeypatch.setattr(ArrayBatches, "epoch", watch)
    levels = (X[:100] * 16).round().astype(np.uint8)

    def fit(x: np.ndarray, epochs: int, *, resume: bool, folder: Path) -> list[Tensor]:
        trained = small.classifier(clip_values=(0, 16))
        options = TrainingOptions(seed=0, checkpoint_dir=folder, resume=resume)
        StandardTrainer(trained, options=options).fit(x, Y[:100], batch_size=32, nb_epochs=epochs, verbose=False)
        return weights(trained)

    whole = fit(levels, 2, resume=False, folder=tmp_path / "whole")
    assert held == [torch.uint8, torch.uint8]
    fit(levels.astype(np.float32), 1, resume=False, folder=tmp_path / "parts")
    assert same(fit(levels, 2, resume=True, folder=tmp_path / "parts"), whole)
    assert held[2:] == [torch.float32, torch.uint8]


def test_a_whole_epoch_sees_each_sample_once_and_drop_last_leaves_out_the_rest() -> None:
    seen: list[Tensor] = []

    class Watching(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(x)
            return super().training_loss(x, y)

    Watching(classifier()).fit(X[:100], Y[:100], batch_size=32, nb_epochs=1, verbose=False)
    assert [len(x) for x in seen] == [32, 32, 32, 4]
    assert sorted(torch.cat(seen).flatten(1).tolist()) == sorted(X[:100].reshape(100, -1).tolist())
    seen.clear()
    Watching(classifier(), options=TrainingOptions(drop_last=True)).fit(X[:100], Y[:100], batch_size=32, nb_epochs=1)
    assert [len(x) for x in seen] == [32, 32, 32]


def test_streams_have_no_length() -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            yield from zip(torch.from_numpy(X[:50]), Y[:50].tolist(), strict=True)

    trainer = StandardTrainer(classifier())
    trainer.fit_loader(DataLoader(Stream(), batch_size=16), nb_epochs=2, verbose=False)
    assert len(trainer.history) == 2


def test_loaders_are_checked() -> None:
    trainer = StandardTrainer(classifier())
    with pytest.raises(TypeError, match="generator: got list,"):
        trainer.fit_generator([(X, Y)], verbose=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="loader: got list_iterator,"):
        trainer.fit_loader(iter([(X, Y)]), verbose=False)
    with pytest.raises(ValueError, match=r"loader: got a batch of type Tensor,"):
        trainer.fit_loader([torch.zeros(3)], verbose=False)
    with pytest.raises(ValueError, match="loader: got no batch in an epoch"):
        trainer.fit_loader([], verbose=False)
    with pytest.raises(ValueError, match="validation_data: got none "):
        StandardTrainer(classifier(), options=TrainingOptions(keep_best=True)).fit(X, Y, verbose=False)


def test_a_sampler_of_its_own_random_numbers_resumes(tmp_path: Path) -> None:
    def run(folder: Path, *ends: int) -> dict[str, torch.Tensor]:
        for epochs in ends:
            draws = torch.Generator().manual_seed(5)
            sampler = torch.utils.data.WeightedRandomSampler(torch.ones(60), 60, generator=draws)
            data = torch.utils.data.TensorDataset(torch.from_numpy(X[:60]), torch.from_numpy(Y[:60]))
            loader = torch.utils.data.DataLoader(data, batch_size=20, sampler=sampler)
            trained = classifier()
            options = TrainingOptions(seed=0, checkpoint_dir=folder, resume=True)
            StandardTrainer(trained, options=options).fit_loader(loader, nb_epochs=epochs, verbose=False)
        return trained.model.state_dict()

    whole, parts = run(tmp_path / "whole", 3), run(tmp_path / "parts", 1, 3)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


class Drawing(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """Adds noise of a generator of its own."""

    def __init__(self, generator: Any, *, nested: bool) -> None:
        self.held = [types.SimpleNamespace(generator=generator)] if nested else generator

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(X[index]), int(Y[index])


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "generator", [torch.Generator(), np.random.default_rng(0), np.random.RandomState(0), random.Random(0), None]
)
def test_numbers_that_no_checkpoint_holds_are_told_when_a_run_is_resumed(
    tmp_path: Path, generator: Any, nested: bool
) -> None:
    loader = torch.utils.data.DataLoader(Drawing(generator, nested=nested), batch_size=10)
    options = TrainingOptions(seed=0, checkpoint_dir=tmp_path, resume=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        StandardTrainer(classifier(), options=options).fit_loader(loader, nb_epochs=1, verbose=False)
    with pytest.warns(UserWarning, match="data set holds") if generator else contextlib.nullcontext():
        StandardTrainer(classifier(), options=options).fit_loader(loader, nb_epochs=2, verbose=False)


def test_persistent_workers_are_told_and_a_sampler_that_a_checkpoint_holds_is_not() -> None:
    data = torch.utils.data.TensorDataset(torch.zeros(4))
    generator = torch.Generator()
    assert find_lost_numbers(None, ()) is None
    assert find_lost_numbers(torch.utils.data.DataLoader(data, num_workers=1), ()) is None
    workers = torch.utils.data.DataLoader(data, num_workers=1, persistent_workers=True)
    assert find_lost_numbers(workers, ()) == "the loader has persistent workers"
    copied = torch.utils.data.DataLoader(Drawing(generator, nested=False), num_workers=1)
    assert find_lost_numbers(copied, ()) is None  # each epoch begins with the same copy
    assert find_lost_numbers(torch.utils.data.DataLoader(Drawing(random, nested=False)), ()) is None  # the module
    collate = functools.partial(lambda _, batch: batch, {"draws": generator})
    collating = torch.utils.data.DataLoader(data, collate_fn=collate)
    assert find_lost_numbers(collating, ()) == "the loader's data set holds a random generator"
    drawing = torch.utils.data.DataLoader(Drawing(generator, nested=False))
    assert find_lost_numbers(drawing, ()) == "the loader's data set holds a random generator"
    assert find_lost_numbers(drawing, [generator]) is None


@pytest.mark.parametrize("limits", [(0, 255), (np.zeros((1, 8, 8)), np.full((1, 8, 8), 255.0))], ids=["one", "each"])
def test_images_in_uint8_are_checked_as_they_are(limits: Any) -> None:
    trained = small.classifier(clip_values=limits)
    x = (X[:5] * 15).astype(np.uint8)
    assert load_images(x, trained).dtype == torch.uint8
    narrow = small.classifier(clip_values=tuple(np.float32(limit) * np.float32(0.01) for limit in limits))
    with pytest.raises(ValueError, match=r"^x: got values .*clip_values"):
        load_images(x, narrow)

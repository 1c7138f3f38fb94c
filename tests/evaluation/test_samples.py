"""Data from arrays, datasets, loaders and batches: the same points in the same order, and sentences for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator, PyTorchDataGenerator
from art.estimators.classification import PyTorchClassifier
from builders import make_tiny
from numpy.testing import assert_array_equal
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from art_robust_plugins import ThreatModel
from art_robust_plugins.data import load_data
from art_robust_plugins.evaluation import Evaluator, sweep
from art_robust_plugins.evaluation.samples import read_samples

N = 11
X = torch.rand(N, 1, 4, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(N) % 3
PAIRS = TensorDataset(X, Y)


class Items(Dataset[Any]):
    """Samples made one by one."""

    def __init__(self, item: Callable[[int], Any]) -> None:
        self.item = item

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        return self.item(index)


class Endless(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return cycle(range(N))


class Unsized(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return PAIRS[index]


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(zip(X, Y, strict=True))


@pytest.fixture
def estimator() -> PyTorchClassifier:
    torch.manual_seed(0)
    return make_tiny()


SOURCES: dict[str, Callable[[], Any]] = {
    "loader": lambda: DataLoader(PAIRS, 4),
    "loader with a worker": lambda: DataLoader(PAIRS, 4, num_workers=1),
    "loader of batches": lambda: DataLoader(PAIRS, batch_sampler=BatchSampler(range(N), 4, False)),
    "loader of a list of batches": lambda: DataLoader(PAIRS, batch_sampler=[[*range(7)], [*range(7, N)]]),
    "loader with a sampler of one's own": lambda: DataLoader(PAIRS, 4, sampler=torch.arange(N)),
    "loader of a stream": lambda: DataLoader(Stream(), 4),
    "dataset": lambda: PAIRS,
    "subset": lambda: Subset(PAIRS, range(N)),
    "stream": Stream,
    "numbers": lambda: Items(lambda i: (X[i].numpy(), int(Y[i]))),
    "one-hot": lambda: Items(lambda i: (X[i], torch.eye(3)[Y[i]])),
    "list": lambda: [(X[:4], Y[:4]), (X[4:].numpy(), Y[4:].tolist())],
    "iterator": lambda: ((X[i : i + 2], Y[i : i + 2]) for i in range(0, N, 2)),
    "ART's generator": lambda: PyTorchDataGenerator(DataLoader(PAIRS, 4), N, 4),
}


@pytest.mark.parametrize("source", SOURCES)
def test_all_sources_give_the_same_points(source: str, estimator: PyTorchClassifier) -> None:
    x = SOURCES[source]()
    state = torch.get_rng_state()
    samples, labels = read_samples(x, None, estimator)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(samples, X)
    assert torch.equal(labels, Y)


def test_an_evaluation_of_a_loader_is_that_of_its_arrays(estimator: PyTorchClassifier, tmp_path: Any) -> None:
    evaluator = Evaluator(
        estimator, ThreatModel("Linf", 0.05), attacks="apgd-ce", batch_size=4, state_dir=tmp_path, verbose=False
    )
    arrays = evaluator.evaluate(X, Y)
    loader = evaluator.evaluate(DataLoader(PAIRS, 3))  # the state of the arrays is taken up
    assert_array_equal(loader.robust, arrays.robust)
    assert_array_equal(loader.adversarial, arrays.adversarial)
    reports = sweep(estimator, "Linf", [0.05], PAIRS, attacks="apgd-ce", batch_size=4, verbose=False)
    assert_array_equal(reports[0.05].robust, arrays.robust)


@pytest.mark.parametrize(
    ("x", "y", "sentence"),
    [
        (lambda: X, None, r"^y: got None .*Tensor"),
        (X.numpy, None, r"^y: got None .*ndarray"),
        (lambda: (X, Y), None, r"^x: got a batch of type Tensor.*evaluate\(x, y\)"),
        (lambda: PAIRS, Y, r"^y: got labels .*TensorDataset"),
        (lambda: DataLoader(PAIRS, 4), Y, r"^y: got labels .*DataLoader"),
        (lambda: DataLoader(PAIRS, 4, shuffle=True), None, r"^x: .*RandomSampler.*shuffle=False"),
        (
            lambda: DataLoader(PAIRS, 4, sampler=WeightedRandomSampler([1.0] * N, N)),
            None,
            r"^x: .*WeightedRandomSampler",
        ),
        (
            lambda: DataLoader(PAIRS, batch_sampler=BatchSampler(RandomSampler(PAIRS), 4, False)),
            None,
            r"^x: .*RandomSampler",
        ),
        (lambda: DataLoader(PAIRS, 4, drop_last=True), None, r"^x: .* 3 samples"),
        (
            lambda: DataLoader(PAIRS, batch_sampler=BatchSampler(SequentialSampler(PAIRS), 4, True)),
            None,
            r"^x: .* 3 samples",
        ),
        (lambda: DataLoader(Stream(), 4, drop_last=True), None, r"^x: .*Stream .*drop_last"),
        (lambda: DataLoader(PAIRS, 4, sampler=range(N)[::-1]), None, r"^x: .*range .* 11"),
        (lambda: DataLoader(PAIRS, 4, sampler=Endless()), None, r"^x: .*Endless .* 11"),
        (lambda: DataLoader(PAIRS, batch_sampler=[[0, 1], [2]]), None, r"^x: .*list .* 11.*Subset"),
        (
            lambda: DataLoader(PAIRS, batch_sampler=BatchSampler(SequentialSampler(PAIRS[:3][1]), 2, False)),
            None,
            r"^x: .*BatchSampler .* 11",
        ),
        (lambda: DataLoader(PAIRS, batch_sampler=iter([[*range(N)]])), None, r"^x: got "),
        (lambda: DataLoader(Unsized(), sampler=range(N)), None, r"^x: .*Unsized"),
        (lambda: DataLoader(PAIRS, batch_size=None), None, r"^x: got an array of shape \(1, 4, 4\)"),
        (lambda: zip(X, Y, strict=True), None, r"^x: got an array of shape \(1, 4, 4\)"),
        (lambda: Items(lambda i: {"image": X[i], "label": 0}), None, r"^x: got a batch of type dict .*2"),
        (lambda: Items(lambda i: (X[i], 0, 1)), None, r"^x: got a batch of type list .*3"),
        (lambda: Items(lambda i: (object(), 0)), None, r"^x: its samples .*object"),
        (lambda: Items(lambda i: (X[i, :, i % 2 :], 0)), None, r"^x: its samples "),
        (lambda: TensorDataset(X * 9, Y), None, r"^x: got values in .*clip_values \[0, 1\]"),
        (lambda: TensorDataset(X, Y + 5), None, r"^y: got labels from 5 to 7"),
        (lambda: [(X, Y[:3])], None, r"^y: got 3 labels for 11 samples"),
        (list, None, r"^x: got a list "),
        (lambda: 3, None, r"^x: got int,"),
        (lambda: "mnist", None, r"^x: got str,"),
        (lambda: {"x": X}, None, r"^x: got dict,"),
        (lambda: NumpyDataGenerator(X.numpy(), Y.numpy(), 4), None, r"^x: got NumpyDataGenerator"),
        (lambda: load_data("digits"), None, r"^x: got Dataset.*x_test"),
    ],
)
def test_other_data_are_refused(x: Any, y: Any, sentence: str, estimator: PyTorchClassifier) -> None:
    with pytest.raises((ValueError, TypeError), match=sentence):
        read_samples(x(), y, estimator)


def test_errors_of_the_users_own_code_are_left_alone(estimator: PyTorchClassifier) -> None:
    def item(index: int) -> Any:
        raise TypeError("mine")

    with pytest.raises(TypeError, match=r"^mine$"):
        read_samples(Items(item), None, estimator)


def test_nested_lists_are_arrays(estimator: PyTorchClassifier) -> None:
    samples, labels = read_samples(X.tolist(), Y.tolist(), estimator)
    np.testing.assert_allclose(samples.numpy(), X.numpy())
    assert torch.equal(labels, Y)

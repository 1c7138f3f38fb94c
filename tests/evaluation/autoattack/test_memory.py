"""An evaluation's memory: the attacks' own tensors follow the pass, and data are not copied without need."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import make_linear
from numpy.testing import assert_allclose, assert_array_equal
from torch import Tensor, nn

from art_robust_plugins import Evaluator, ThreatModel
from art_robust_plugins.evaluation import evaluator
from art_robust_plugins.evaluation.autoattack import batches, square_linf, square_points, square_windows
from art_robust_plugins.evaluation.autoattack.apgd import APGD
from art_robust_plugins.evaluation.autoattack.ascent import LinfAscent
from art_robust_plugins.evaluation.autoattack.batches import BatchedPasses
from art_robust_plugins.evaluation.autoattack.fab import FAB
from art_robust_plugins.evaluation.autoattack.square import Square
from art_robust_plugins.evaluation.autoattack.square_windows import WindowSearch
from art_robust_plugins.evaluation.samples import read_samples
from art_robust_plugins.evaluation.state import merge_changes
from art_robust_plugins.threat import Norm

from .test_shared_points import CLASSES, POINTS, SHAPE, network


def attack(physical: int) -> Tensor:
    model = network()
    x = torch.rand(POINTS, *SHAPE, generator=torch.Generator().manual_seed(1))
    made = APGD(model, ThreatModel("Linf", 0.08), steps=8, loss="dlr-targeted", targets=5, physical_batch_size=physical)
    found: Tensor = made(x, model(x).argmax(dim=1))
    assert 0 < int((found != x).flatten(1).any(dim=1).sum()) < POINTS
    return found


def test_an_ascent_has_as_many_rows_as_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    move = LinfAscent.move

    def watch(self: LinfAscent, *, first: bool) -> None:
        rows.append(len(self.at))
        move(self, first=first)

    monkeypatch.setattr(LinfAscent, "move", watch)
    expected = attack(POINTS)
    assert max(rows) == POINTS
    rows.clear()
    assert_array_equal(attack(5).numpy(), expected.numpy())
    assert max(rows) == 5


def test_an_ascent_that_does_not_fit_into_memory_is_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    expected, move, refused = attack(16), LinfAscent.move, []

    def fail(self: LinfAscent, *, first: bool) -> None:
        if len(self.at) > 5:
            refused.append(len(self.at))
            raise RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 8 bytes.")
        move(self, first=first)

    monkeypatch.setattr(LinfAscent, "move", fail)
    assert_array_equal(attack(16).numpy(), expected.numpy())
    assert refused[0] == 16
    assert all(5 < rows <= 8 for rows in refused[1:])
    assert len(refused) > 1


def search_squares(norm: Norm, physical: int) -> Tensor:
    model = network()
    x = torch.rand(POINTS, *SHAPE, generator=torch.Generator().manual_seed(1))
    threat = ThreatModel(norm, {"Linf": 0.08, "L2": 0.6, "L1": 4.0}[norm])
    made = Square(model, threat, queries=60, batch_size=16, physical_batch_size=physical)
    found: Tensor = made(x, model(x).argmax(dim=1))
    assert 0 < int((found != x).flatten(1).any(dim=1).sum()) < POINTS
    return found


def watch_proposals(monkeypatch: pytest.MonkeyPatch, norm: Norm, largest: int) -> list[int]:
    """Note how many images are made of proposals at once, and let memory run out where they are more than ``largest``.

    Proposals of as many images as a pass has are to be made at once, as of large ones.
    """
    rows: list[int] = []
    search, name = (square_linf.LinfSearch, "_make_images") if norm == "Linf" else (WindowSearch, "_fill_ball")
    make = getattr(search, name)

    def watch(self: Any, *given: Any) -> Any:
        made: Any = make(self, *given)
        rows.append(len(made[0] if isinstance(made, tuple) else made))
        if rows[-1] > largest:
            raise RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 8 bytes.")
        return made

    monkeypatch.setattr(search, name, watch)
    monkeypatch.setattr(square_points, "LARGEST_LOOK", 1)
    return rows


@pytest.mark.parametrize("norm", get_args(Norm))
def test_proposals_of_large_images_are_made_for_as_many_as_a_pass(monkeypatch: pytest.MonkeyPatch, norm: Norm) -> None:
    expected = search_squares(norm, POINTS)
    rows = watch_proposals(monkeypatch, norm, largest=POINTS)
    assert_allclose(search_squares(norm, 5).numpy(), expected.numpy(), rtol=0, atol=1e-6)
    assert max(rows) == 5


@pytest.mark.parametrize("norm", get_args(Norm))
def test_proposals_that_do_not_fit_into_memory_are_halved(monkeypatch: pytest.MonkeyPatch, norm: Norm) -> None:
    expected = search_squares(norm, POINTS)
    rows = watch_proposals(monkeypatch, norm, largest=5)
    assert_allclose(search_squares(norm, 12).numpy(), expected.numpy(), rtol=0, atol=1e-6)
    assert rows[0] == 12
    assert max(rows[1:]) == 6
    assert sum(row > 5 for row in rows) == 2


def test_blocks_of_large_images_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = search_squares("L2", POINTS)
    monkeypatch.setattr(square_windows, "LARGEST_BLOCK", 3 * 50 * POINTS)
    lengths: list[int] = []
    draw = WindowSearch._draw_block

    def watch(self: WindowSearch, remaining: Tensor, query: int, length: int) -> square_windows.Block:
        lengths.append(length)
        return draw(self, remaining, query, length)

    monkeypatch.setattr(WindowSearch, "_draw_block", watch)
    assert_allclose(search_squares("L2", POINTS).numpy(), expected.numpy(), rtol=0, atol=1e-6)
    assert max(lengths) <= 3


@pytest.mark.parametrize("restarts", [1, 2])
def test_untargeted_fab_searches_as_many_points_as_fill_some_passes(
    monkeypatch: pytest.MonkeyPatch, restarts: int
) -> None:
    model = network()
    x = torch.rand(POINTS, *SHAPE, generator=torch.Generator().manual_seed(1))
    y = model(x).argmax(dim=1)
    rows: list[int] = []
    run = FAB.run

    def watch(self: FAB, some: Any) -> list[tuple[Tensor, Tensor]]:
        rows.append(len(some.index))
        return run(self, some)

    monkeypatch.setattr(FAB, "run", watch)
    found = [
        FAB(model, ThreatModel("Linf", 0.06), targets=None, steps=8, restarts=restarts, physical_batch_size=size)(x, y)
        for size in (POINTS, 2)
    ]
    assert_allclose(found[1].numpy(), found[0].numpy(), rtol=0, atol=1e-6)
    assert rows[0] == POINTS
    assert max(rows[restarts:]) == 8


@pytest.mark.parametrize(("side", "size"), [(4, 250), (2048, 1)])
def test_on_a_cpu_a_pass_has_fewer_large_images(side: int, size: int) -> None:
    image = torch.empty(1, side, side).expand(1, 3, side, side)
    assert batches.limit_on_cpu(image, 250) == size
    assert batches.limit_on_cpu(image.to("meta"), 250) == 250


@pytest.mark.parametrize(("largest", "calls"), [(batches.LARGEST_PASS, 0), (100, 1)])
def test_an_evaluation_of_large_images_returns_freed_blocks(
    monkeypatch: pytest.MonkeyPatch, largest: int, calls: int
) -> None:
    called: list[bool] = []
    monkeypatch.setattr(evaluator, "return_large_blocks", lambda: called.append(True))
    # Images are large where fewer of them than a batch may pass at once: of 50 numbers each, two of three.
    monkeypatch.setattr(batches, "LARGEST_PASS", largest)
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(1))
    made = Evaluator(network(), ThreatModel("Linf", 0.01), attacks="apgd-ce", batch_size=3, verbose=False)
    report = made.evaluate(x, [0, 1, 2])
    assert len(report.labels) == 3
    assert len(called) == calls


@pytest.mark.parametrize("beyond", [0.0, 1e-7])
def test_images_within_the_range_are_not_copied(beyond: float) -> None:
    model = make_linear(50, CLASSES)
    classifier = PyTorchClassifier(model, nn.CrossEntropyLoss(), SHAPE, CLASSES, clip_values=(0.0, 1.0))
    x = torch.rand(3, *SHAPE)
    x[0, 0, 0, 0] = -beyond
    samples, _ = read_samples(x.numpy(), [0, 1, 2], classifier)
    assert (samples.data_ptr() == x.data_ptr()) == (beyond == 0.0)
    assert float(samples.min()) >= 0.0


def test_the_parts_of_a_batch_become_that_of_one_process() -> None:
    def change(broken: list[int], fooled: list[int], moved: list[str], **more: Any) -> dict[str, Any]:
        images = torch.tensor(broken)[:, None] + torch.zeros(len(broken), 2)
        return {
            **{"mark": "m", "attack": "a", "counts": {"seconds": 0.5, "nan": 1}, "moved": moved, "gradients": False},
            **{"widest": 0.1, "repeat_difference": 0.0, "farthest": 0.2, "fooled": torch.tensor(fooled)},
            **{"broken": torch.tensor(broken), "adversarial": images, **more},
        }

    merged = merge_changes(
        [change([1, 7], [7, 1], ["b"], farthest=0.3), change([4], [4, 2], ["a", "b"], gradients=True)]
    )
    assert merged["counts"] == {"seconds": 1.0, "nan": 2}
    assert (merged["moved"], merged["gradients"], merged["farthest"], merged["widest"]) == (["a", "b"], True, 0.3, 0.1)
    assert merged["broken"].tolist() == [1, 4, 7]
    assert merged["fooled"].tolist() == [1, 2, 4, 7]
    assert merged["adversarial"][:, 0].tolist() == [1, 4, 7]


def test_a_slice_that_is_larger_than_a_pass_shrinks_once_and_the_pass_stays() -> None:
    passes = BatchedPasses(nn.Identity(), 64)
    tried: list[int] = []

    def run(part: slice) -> tuple[Tensor]:
        tried.append(part.stop - part.start)
        if tried[-1] > 400:
            raise RuntimeError("[enforce fail] can't allocate memory: you tried to allocate 8 bytes.")
        return passes.run_over(
            tried[-1], lambda inner: (torch.arange(part.start + inner.start, part.start + inner.stop),)
        )

    for _ in range(5):
        (found,) = passes.run_over(682, run, rows=682)
        assert torch.equal(found, torch.arange(682))
    assert tried == [682, 341, 341] + [341, 341] * 4
    assert passes.size == 64

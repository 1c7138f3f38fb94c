"""Our square attack and FAB give every point the reference's verdict; the projections solve what they should."""

from __future__ import annotations

import importlib
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from builders import load_digits
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation.autoattack import losses
from art_robust_plugins.evaluation.autoattack.fab import FAB, find_first_of_each
from art_robust_plugins.evaluation.autoattack.losses import LOSSES, find_largest
from art_robust_plugins.evaluation.autoattack.projections import correct_to_l1_ball, project_onto_hyperplane
from art_robust_plugins.evaluation.autoattack.square import Square, find_image_shape
from art_robust_plugins.evaluation.autoattack.square_windows import build_tile
from art_robust_plugins.evaluation.libraries import reference_package

from ..builders import train_network
from ..reference import colour_digits, in_batches, needs_reference, verdicts


def correct(network: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The last 22 of the points that are classified correctly."""
    right = verdicts(network, x, y)
    return x[right][-22:], y[right][-22:]


def images_of(name: str) -> tuple[Tensor, Tensor]:
    if name == "residual":
        return colour_digits()
    x, y = load_digits()
    return torch.from_numpy(x), torch.from_numpy(y)


def reference(kind: str, network: nn.Module, threat: ThreatModel, **given: Any) -> Any:
    module, name = {"square": ("square", "SquareAttack"), "fab": ("fab_pt", "FABAttack_PT")}[kind]
    base = importlib.import_module(f"{reference_package()[0].__name__}.{module}")
    return getattr(base, name)(network, norm=threat.norm, eps=threat.eps, device="cpu", seed=3, **given)


class Counted(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.calls = network, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += len(x)
        return self.network(x)


@needs_reference
def test_square_on_logits_that_tie(network: nn.Module) -> None:
    """A tie goes to the first class, as argmax has it: such points are attacked, and count in the random numbers."""

    class Rounded(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (network(x) / 4).round()

    x, y = correct(Rounded(), *images_of("digits"))
    two = Rounded()(x).sort(dim=1).values[:, -2:]
    assert int((two[:, 0] == two[:, 1]).sum()) >= 1
    threat = ThreatModel("Linf", 0.1)
    theirs = reference("square", Rounded(), threat, n_queries=200, n_restarts=1, resc_schedule=False)
    expected = verdicts(Rounded(), in_batches(theirs, x, y, 11), y)
    ours = Square(Rounded(), threat, queries=200, seed=3, batch_size=11)
    assert torch.equal(verdicts(Rounded(), ours(x, y), y), expected)


def test_one_image_for_each_point_in_fab() -> None:
    assert find_first_of_each(torch.tensor([4, 2, 4, 2, 7])).tolist() == [1, 0, 4]
    assert find_first_of_each(torch.tensor([], dtype=torch.long)).tolist() == []


SQUARE = [
    ("digits", "Linf", 0.14),
    ("digits", "L2", 0.8),
    ("digits", "L1", 2.6),
    ("residual", "Linf", 0.05),
    ("residual", "L2", 2.5),
    ("residual", "L1", 14.0),
]


@needs_reference
@pytest.mark.parametrize(("name", "norm", "eps"), SQUARE)
def test_square(name: str, norm: str, eps: float, network: nn.Module, residual: nn.Module) -> None:
    model = Counted(residual if name == "residual" else network)
    x, y = correct(model, *images_of(name))
    threat = ThreatModel(norm, eps)
    model.calls = 0
    attack = reference("square", model, threat, n_queries=150, n_restarts=1, resc_schedule=False)
    expected = verdicts(model, in_batches(attack, x, y, 9), y)
    calls = model.calls
    for physical in (1, 7, 64) if (name, norm) == ("digits", "Linf") else (64,):
        model.calls = 0
        found = Square(model, threat, queries=150, seed=3, batch_size=9, physical_batch_size=physical)(x, y)
        assert model.calls < 1.15 * calls
        assert torch.equal(verdicts(model, found, y), expected)
        assert (threat.distance(found, x) <= eps * (1 + 1e-5)).all()
        assert (found.clamp(0, 1) - found).abs().max() <= 1e-6
    assert 0 < expected.sum() < len(x)


class Separate(nn.Module):
    """A network whose logits of an image do not depend, by rounding, on how many images are in the pass."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(10, size) / size**0.5)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x.flatten(1) * row for row in self.weight]
        return torch.stack([(part + 0.3 * part**2).sum(dim=1) for part in parts], dim=1)


@needs_reference
@pytest.mark.parametrize(
    ("norm", "eps", "shape"), [("L2", 0.5, (1, 8, 8)), ("L2", 0.8, (3, 10, 10)), ("L1", 2.0, (1, 8, 8))]
)
def test_square_finds_the_images_of_the_reference(norm: Any, eps: float, shape: tuple[int, ...]) -> None:
    """Bit for bit, also where some points are ahead of others when one breaks, and their queries are void."""
    torch.manual_seed(1)
    network = Separate(torch.Size(shape).numel())
    x = torch.rand(30, *shape)
    y = network(x).argmax(dim=1)
    threat = ThreatModel(norm, eps)
    theirs = reference("square", network, threat, n_queries=300, n_restarts=1, resc_schedule=False)
    expected = in_batches(theirs, x, y, 20)
    found = Square(network, threat, queries=300, seed=3, batch_size=20, physical_batch_size=60)(x, y)
    assert torch.equal(found, expected)
    assert 3 <= int((found != x).flatten(1).any(dim=1).sum()) <= 27


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize(("norm", "eps"), [("Linf", 0.14), ("L2", 0.8), ("L1", 2.6)])
def test_square_on_a_gpu_and_on_a_cpu(norm: Any, eps: float, network: nn.Module) -> None:
    x, y = correct(network, *images_of("digits"))
    copy = deepcopy(network).cuda()
    attacks = [Square(model, ThreatModel(norm, eps), queries=150, batch_size=9) for model in (network, copy)]
    found = [attacks[0](x, y), attacks[1](x.cuda(), y.cuda()).cpu()]
    assert torch.equal(verdicts(network, found[0], y), verdicts(network, found[1], y))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_change_onto_a_hyperplane_on_a_gpu(norm: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.rand(20, 700, generator=generator, dtype=torch.float64) for _ in range(2))
    w = 2 * w - 1
    offset = 0.7 * w.clamp_max(0).sum(dim=1)
    expected = project_onto_hyperplane(x, w, offset, norm)
    found = project_onto_hyperplane(x.cuda(), w.cuda(), offset.cuda(), norm).cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


def test_square_spends_no_query_on_proposals_that_change_nothing(network: nn.Module) -> None:
    x, y = correct(network, *images_of("digits"))
    model = Counted(network)
    found = Square(model, ThreatModel("Linf", 0.02), queries=3000)(x, y)
    assert model.calls < 0.3 * 3000 * len(x)
    assert verdicts(network, found, y).float().mean() > 0.8


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("shape", [(3, 2, 2), (1, 4, 9), (2, 14, 6), (12,), (13,)])
def test_square_takes_small_flat_and_oblong_inputs(norm: str, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.rand(6, *shape)
    network = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3))
    y = network(x).argmax(dim=1)
    threat = ThreatModel(norm, 0.3)
    found = Square(network, threat, queries=40)(x, y.int())
    assert found.shape == x.shape
    assert (threat.distance(found, x) <= 0.3 * (1 + 1e-5)).all()


def test_flat_inputs_are_images_with_sides_as_equal_as_possible() -> None:
    assert find_image_shape((3, 5, 7)) == (3, 5, 7)
    assert find_image_shape((784,)) == (1, 28, 28)
    assert find_image_shape((3072,)) == (1, 48, 64)
    assert find_image_shape((13,)) == (1, 1, 13)


@pytest.mark.parametrize("norm", ["L2", "L1"])
def test_a_tile_has_length_one_and_two_signs(norm: Any) -> None:
    for side in range(2, 9):
        pattern = build_tile(side, norm)
        assert torch.linalg.vector_norm(pattern, 2 if norm == "L2" else 1).item() == pytest.approx(1)
        assert (pattern[: side // 2] > 0).all()
        assert (pattern[side // 2 :] < 0).all()


FAB_CASES = [
    ("digits", "Linf", 0.11, 4),
    ("digits", "L2", 0.5, 4),
    ("digits", "L1", 1.4, 4),
    ("digits", "Linf", 0.11, None),
    ("digits", "L2", 0.5, None),
    ("digits", "L1", 1.4, None),
    ("residual", "Linf", 0.025, 2),
    ("residual", "L1", 6.0, None),
]


@needs_reference
@pytest.mark.parametrize(("name", "norm", "eps", "targets"), FAB_CASES)
def test_fab(name: str, norm: str, eps: float, targets: int | None, network: nn.Module, residual: nn.Module) -> None:
    model = residual if name == "residual" else network
    x, y = correct(model, *images_of(name))
    threat = ThreatModel(norm, eps)
    state = torch.get_rng_state()
    gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
    restarts = 1 if targets else 2
    for physical in (1, 64) if (name, norm) == ("digits", "Linf") else (7,):
        attack = FAB(
            model,
            threat,
            targets=targets,
            steps=12,
            restarts=restarts,
            seed=3,
            batch_size=9,
            physical_batch_size=physical,
        )
        found = attack(x, y)
        robust = verdicts(model, found, y)
        assert (threat.distance(found, x) <= eps * (1 + 1e-5)).all()
        assert torch.equal(torch.get_rng_state(), state)
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            assert torch.equal(parameter.grad, gradient)
        wanted = {"targeted": targets is not None, "n_target_classes": targets, "n_restarts": restarts, "n_iter": 12}
        expected = in_batches(reference("fab", model, threat, **wanted), x, y, 9)
        gradients = [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]
        state = torch.get_rng_state()
        assert torch.equal(robust, verdicts(model, expected, y))
    assert 0 < robust.sum() < len(x)


def test_fab_keeps_as_many_images_as_some_passes_hold(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not all targets of all points, each with several images, whatever the size of a pass."""
    x, y = correct(network, *images_of("digits"))
    held: list[int] = []
    run = FAB.run

    def record(attack: FAB, rows: Any) -> Any:
        held.append(len(rows.index))
        return run(attack, rows)

    monkeypatch.setattr(FAB, "run", record)
    found = [FAB(network, ThreatModel("Linf", 0.11), steps=6, physical_batch_size=size)(x, y) for size in (1, 9, 99)]
    assert held == [9] * 22 + [36] * 5 + [18] + [198]
    for other in found[1:]:
        assert torch.equal(verdicts(network, other, y), verdicts(network, found[0], y))


@needs_reference
@pytest.mark.parametrize("classes", [4, 2])
def test_fab_of_few_classes(classes: int) -> None:
    network = train_network(classes, steps=60).eval()
    x, y = correct(network, *(torch.from_numpy(values) for values in load_digits(classes)))
    threat = ThreatModel("Linf", 0.25)
    attack = reference("fab", network, threat, targeted=True, n_target_classes=classes - 1, n_iter=12)
    found = FAB(network, threat, targets=9, steps=12)(x, y)
    assert torch.equal(verdicts(network, found, y), verdicts(network, in_batches(attack, x, y, 22), y))


@pytest.mark.parametrize("number", [3, 4])
@pytest.mark.parametrize("levels", [2, 9, 10**6])
def test_the_largest_logits_are_those_of_a_sort(number: int, levels: int) -> None:
    """Their classes and gradients too: of a row with no equal logits, with some, or with many."""
    generator = torch.Generator().manual_seed(levels)
    logits = torch.randint(-levels, levels, (50, 100), generator=generator).float()
    logits[0, 7] = torch.nan
    for some in (logits, logits[:1]):
        expected, order = some.sort(dim=1)
        found = find_largest(some, number)
        torch.testing.assert_close(found[0], expected[:, -number:], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(found[1], order[:, -number:])


@pytest.mark.parametrize("loss", ["dlr", "dlr-targeted"])
def test_the_losses_of_many_classes_are_those_of_a_sort(loss: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    y, target = torch.randint(0, 100, (2, 20))
    results = []
    for few in (10, 1000):
        monkeypatch.setattr(losses, "FEW_CLASSES", few)
        logits = torch.randn(20, 100, generator=torch.Generator().manual_seed(1)).requires_grad_()
        values = LOSSES[loss](logits, y, target)
        results.append((values, *torch.autograd.grad(values.sum(), logits)))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


numbers = st.integers(0, 2**31)


@given(seed=numbers, size=st.integers(1, 40), reach=st.floats(0.05, 0.95), norm=st.sampled_from(["Linf", "L2", "L1"]))
@settings(max_examples=60)
def test_the_change_onto_a_hyperplane_is_the_smallest(seed: int, size: int, reach: float, norm: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, w, other = (torch.rand(8, size, generator=generator, dtype=torch.float64) for _ in range(3))
    w = 2 * w - 1
    low, high = w.clamp_max(0).sum(dim=1), w.clamp_min(0).sum(dim=1)
    offset = low + reach * (high - low)
    change = project_onto_hyperplane(x, w, offset, norm)
    assert torch.allclose((w * (x + change)).sum(dim=1), offset, atol=1e-8)
    assert (x + change >= -1e-9).all()
    assert (x + change <= 1 + 1e-9).all()
    # Any other point of the box, moved along the segment to a corner that lies beyond the hyperplane, is no nearer.
    beyond = torch.where((w * other).sum(dim=1, keepdim=True) > offset[:, None], (w < 0) * 1.0, (w > 0) * 1.0)
    at, end = (w * other).sum(dim=1), (w * beyond).sum(dim=1)
    share = ((offset - at) / (end - at)).clamp(0, 1)[:, None]
    on_plane = other + share * (beyond - other)
    threat = ThreatModel(norm, 1.0)
    assert (threat.distance(x + change, x) <= threat.distance(on_plane, x) + 1e-8).all()


def project_by_sorting(x: Any, w: Any, offset: float, norm: str) -> Any:
    """The oracle for one row: sort the kinks, or the coordinates, and go through all of them."""
    excess = float(w @ x) - offset
    w, excess = (w, excess) if excess >= 0 else (-w, -excess)
    farthest = np.where(w == 0, 0.0, np.where(w < 0, 1.0, 0.0) - x)
    if excess >= -(w @ farthest):
        return farthest
    if norm == "L1":
        change = np.zeros_like(x)
        for i in np.argsort(-np.abs(w), kind="stable"):
            change[i] = farthest[i] if excess >= -w[i] * farthest[i] else -excess / w[i]
            excess += w[i] * change[i]
            if excess <= 0:
                break
        return change
    used = w != 0
    slopes, direction = (np.abs(w), -np.sign(w)) if norm == "Linf" else (w**2, -w)
    stops = np.where(used, farthest / np.where(used, direction, 1.0), 0.0)
    kinks = np.sort(np.append(stops[used], 0.0))
    lost = np.minimum(kinks[:, None], stops) @ slopes
    steps = np.append(lost[1:] > lost[:-1], True)
    return direction * np.minimum(np.interp(excess, lost[steps], kinks[steps]), stops)


few_values = st.sampled_from([0.0, 1.0, 0.25, 0.5, 0.7])
few_weights = st.sampled_from([0.0, 1.0, -1.0, 0.5, -0.25, 3.0])
coordinates = st.lists(
    st.tuples(few_values | st.floats(0, 1), few_weights | st.floats(-2, 2).filter(lambda w: abs(w) > 1e-3)),
    min_size=1,
    max_size=130,
)


@given(coordinates=coordinates, reach=st.floats(-0.2, 1.2), norm=st.sampled_from(["Linf", "L2", "L1"]))
@settings(max_examples=200, deadline=None)
def test_the_change_onto_a_hyperplane_is_that_of_sorting(coordinates: Any, reach: float, norm: Any) -> None:
    """Ties, weights of 0, points on the border of the box, and hyperplanes that the box does not reach."""
    x, w = np.array(coordinates).T
    low, high = w.clip(None, 0).sum(), w.clip(0).sum()
    offset = low + reach * (high - low)
    rows = [torch.from_numpy(np.stack([each, each[::-1]])) for each in (x, w)]
    found = project_onto_hyperplane(*rows, torch.full((2,), offset, dtype=torch.float64), norm).numpy()
    for ours, *row in zip(found, *(each.numpy() for each in rows), strict=True):
        np.testing.assert_allclose(ours, project_by_sorting(*row, offset, norm), rtol=0, atol=1e-9)


def test_coordinates_of_equal_weight_are_taken_in_their_order_in_l1() -> None:
    """However many are looked at first: 700 coordinates of two weights, of which up to all have to move."""
    w = torch.where(torch.arange(700) % 3 == 0, 2.0, 1.0).double().expand(4, -1)
    x = torch.full_like(w, 0.5)
    offset = (w * x).sum(dim=1) - torch.tensor([10.2, 150.0, 233.0, 460.0], dtype=torch.float64)
    found = project_onto_hyperplane(x, w, offset, "L1")
    for row in range(4):
        expected = project_by_sorting(x[row].numpy(), w[row].numpy(), float(offset[row]), "L1")
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_the_change_onto_a_hyperplane_on_images(norm: Any) -> None:
    """On 3,072 coordinates, of which a few or nearly all stop at the box; a row on the hyperplane does not move."""
    torch.manual_seed(0)
    x = torch.rand(6, 3072, dtype=torch.float64)
    w = torch.randn(6, 3072, dtype=torch.float64)
    w = w**3 + 1e-4 * w.sign()
    product, least = (w * x).sum(dim=1), w.clamp_max(0).sum(dim=1)
    offset = product + torch.tensor([0, 1e-9, 1e-3, 0.1, 0.9, 0.999], dtype=torch.float64) * (least - product)
    found = project_onto_hyperplane(x, w, offset, norm)
    assert not found[0].any()
    for row in range(6):
        expected = project_by_sorting(x[row].numpy(), w[row].numpy(), float(offset[row]), norm)
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=0, atol=1e-9)


@given(seed=numbers, size=st.integers(2, 40), radius=st.floats(0.01, 5))
@settings(max_examples=60)
def test_the_projection_on_the_l1_ball_and_the_box(seed: int, size: int, radius: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(8, size, generator=generator, dtype=torch.float64)
    delta = torch.randn(8, size, generator=generator, dtype=torch.float64)
    found = x + delta + correct_to_l1_ball(x, delta, radius)
    assert ((found - x).abs().sum(dim=1) <= radius + 1e-9).all()
    assert (found >= -1e-12).all()
    assert (found <= 1 + 1e-12).all()
    # The projection on a convex set makes an obtuse angle with every point of the set.
    other = torch.rand(8, size, generator=generator, dtype=torch.float64) - x
    other = x + other * (radius / other.abs().sum(dim=1, keepdim=True)).clamp_max(1)
    assert (((x + delta - found) * (other - found)).sum(dim=1) <= 1e-8).all()

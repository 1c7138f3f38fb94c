import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from art_robust_plugins.threat import ThreatModel, clip

NORMS = ("Linf", "L2", "L1")
ORDER = {"Linf": math.inf, "L2": 2, "L1": 1}
SHAPE = (4, 2, 3, 3)

norms = st.sampled_from(NORMS)
radii = st.floats(1e-3, 10)
seeds = st.integers(0, 2**32 - 1)


def draw(seed, shape=SHAPE, scale=1.0):
    """Gaussian values of which about a third are zero or equal, as in images."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    return torch.where(torch.rand(shape, generator=generator) < 0.3, values.sign() * scale, values)


def lengths(delta, norm):
    return np.linalg.norm(delta.flatten(1).numpy(), ORDER[norm], axis=1)


def l1_projection_by_bisection(row, radius):
    """The threshold t for which sum(max(|row| - t, 0)) = radius, found by halving."""
    if np.abs(row).sum() <= radius:
        return row
    low, high = 0.0, np.abs(row).max()
    for _ in range(200):
        middle = (low + high) / 2
        if np.maximum(np.abs(row) - middle, 0).sum() > radius:
            low = middle
        else:
            high = middle
    return np.sign(row) * np.maximum(np.abs(row) - high, 0)


# What a threat model is


@pytest.mark.parametrize(
    ("eps", "value"), [("8/255", 8 / 255), (" 1 / 4", 0.25), ("0.5", 0.5), (0.3, 0.3), (2, 2.0), (np.float32(0.5), 0.5)]
)
def test_eps_as_number_or_fraction(eps, value):
    assert ThreatModel("L2", eps).eps == value
    assert type(ThreatModel("L2", eps).eps) is float


@pytest.mark.parametrize(
    ("spelling", "norm"),
    [
        ("Linf", "Linf"),
        (np.inf, "Linf"),
        ("inf", "Linf"),
        (2, "L2"),
        ("2", "L2"),
        (2.0, "L2"),
        (1, "L1"),
        ("L1", "L1"),
        ("linf", "Linf"),
        (" L_2", "L2"),
        ("l-1", "L1"),
        ("L∞", "Linf"),
        (np.int64(2), "L2"),
    ],
)
def test_norms_as_art_spells_them(spelling, norm):
    assert ThreatModel(spelling, 1) == ThreatModel(norm, 1)


@pytest.mark.parametrize("norm", ["Lx", "L3", 3, True, 2.0000001, "", None, 0])
def test_other_norms_are_refused(norm):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        ThreatModel(norm, 1)
    assert str(refusal.value).startswith(f"norm: got {norm!r},")


@pytest.mark.parametrize("eps", [0, -0.1, math.nan, math.inf, "8/0", "8:255", "", "1e400", "nan", None, [1], "-1/255"])
def test_other_radii_are_refused(eps):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        ThreatModel("Linf", eps)
    assert str(refusal.value).startswith(f"eps: got {eps!r},")


def test_text_and_scaling():
    assert str(ThreatModel("Linf", 8 / 255)) == "Linf 8/255"
    assert str(ThreatModel("L2", 0.5)) == "L2 0.5"
    assert [ThreatModel("Linf", "8/255").radius_text, ThreatModel("L2", 0.5).radius_text] == ["8/255", "0.5"]
    assert ThreatModel("L1", 2).scaled(1.5) == ThreatModel("L1", 3)
    assert hash(ThreatModel("L1", 2)) == hash(ThreatModel(1, "2"))


@settings(max_examples=50)
@given(norms, seeds)
def test_distance_is_the_norm_of_the_difference(norm, seed):
    a, b = draw(seed), draw(seed + 1)
    np.testing.assert_allclose(ThreatModel(norm, 1).distance(a, b), lengths(a - b, norm), rtol=1e-12)


# Projection


@settings(max_examples=150)
@given(norms, radii, seeds, st.sampled_from([1e-3, 1.0, 30.0]))
def test_a_projection_lies_in_the_ball_and_in_the_range(norm, eps, seed, scale):
    threat = ThreatModel(norm, eps)
    center = draw(seed).clamp(0, 1)
    x = center + draw(seed + 1, scale=scale)
    projected = threat.project(x, center, 0, 1)
    # Differences of numbers as large as x are rounded with them.
    assert (lengths(projected - center, norm) <= eps * (1 + 1e-12) + 1e-13 * (1 + scale)).all()
    assert projected.min() >= 0
    assert projected.max() <= 1
    torch.testing.assert_close(threat.project(projected, center, 0, 1), projected, rtol=1e-12, atol=1e-12)


@settings(max_examples=100)
@given(norms, radii, seeds)
def test_a_projection_leaves_the_inside_alone(norm, eps, seed):
    threat = ThreatModel(norm, eps)
    center, delta = draw(seed), draw(seed + 1)
    inside = delta * torch.as_tensor(0.999 * eps / lengths(delta, norm).clip(1e-30)).view(-1, 1, 1, 1)
    torch.testing.assert_close(threat.project(center + inside, center), center + inside, rtol=1e-14, atol=1e-14)


@settings(max_examples=100)
@given(norms, radii, seeds)
def test_a_projection_is_the_nearest_point_of_the_ball(norm, eps, seed):
    """For every z of the ball: (x - p) . (z - p) <= 0."""
    threat = ThreatModel(norm, eps)
    center = torch.zeros(SHAPE, dtype=torch.float64)
    x = draw(seed, scale=3)
    projected = threat.project(x, center)
    for other in range(5):
        z = draw(seed + 1 + other)
        z = z * torch.as_tensor(eps / lengths(z, norm).clip(1e-30)).view(-1, 1, 1, 1)
        products = ((x - projected) * (z - projected)).flatten(1).sum(dim=1)
        assert (products <= 1e-9 * max(1, eps**2)).all()


@settings(max_examples=100)
@given(radii, seeds, st.integers(1, 40), st.sampled_from([0.01, 1.0, 100.0]))
def test_the_l1_projection_against_bisection(eps, seed, dimension, scale):
    x = draw(seed, (6, dimension), scale)
    x[0] = 0
    projected = ThreatModel("L1", eps).project(x, torch.zeros_like(x)).numpy()
    expected = np.stack([l1_projection_by_bisection(row, eps) for row in x.numpy()])
    np.testing.assert_allclose(projected, expected, rtol=1e-9, atol=1e-9 * scale)


@pytest.mark.parametrize("norm", NORMS)
def test_float32_projections_stay_within_rounding_of_the_ball(norm):
    threat = ThreatModel(norm, 8 / 255)
    center = torch.rand(16, 3, 32, 32)
    projected = threat.project(center + draw(0, center.shape).float(), center, 0, 1)
    assert threat.distance(projected.double(), center.double()).max() <= threat.eps * (1 + 1e-4)


def test_the_range_may_differ_by_feature():
    low, high = torch.tensor([[0.0], [-1.0]]), torch.tensor([[1.0], [0.5]])
    x = torch.tensor([[[3.0, -3.0], [3.0, -3.0]]])
    assert torch.equal(clip(x, low, high), torch.tensor([[[1.0, 0.0], [0.5, -1.0]]]))
    assert torch.equal(clip(x, low, None), torch.tensor([[[3.0, 0.0], [3.0, -1.0]]]))
    assert torch.equal(clip(x, -2, high), torch.tensor([[[1.0, -2.0], [0.5, -2.0]]]))
    assert clip(x, None, None) is x


# Random start


@pytest.mark.parametrize("norm", NORMS)
def test_a_random_start_lies_in_the_ball_and_in_the_range(norm):
    threat = ThreatModel(norm, 0.3)
    x = torch.rand(200, 3, 4, 4, dtype=torch.float64)
    start = threat.random_start(x, 0, 1)
    assert start.shape == x.shape
    assert start.dtype == x.dtype
    assert start.min() >= 0
    assert start.max() <= 1
    assert threat.distance(start, x).max() <= 0.3 * (1 + 1e-12)
    assert threat.distance(start, x).min() > 0


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_a_random_start_is_uniform(norm, dimension):
    """In a uniform ball (r / eps) ** d is uniform on [0, 1], coordinates have mean 0, and all have the same spread."""
    n = 20_000
    x = torch.zeros(n, dimension, dtype=torch.float64)
    threat = ThreatModel(norm, 2.0)
    start = threat.random_start(x, generator=torch.Generator().manual_seed(1))
    share = (threat.distance(start, x) / 2) ** dimension
    steps = torch.arange(1, n + 1, dtype=torch.float64) / n
    # The Kolmogorov-Smirnov statistic; 1.95 / sqrt(n) is exceeded once in a thousand.
    assert (share.sort().values - steps).abs().max() < 1.95 / math.sqrt(n)
    assert start.mean(dim=0).abs().max() < 4 * start.std() / math.sqrt(n)
    spread = start.std(dim=0)
    assert spread.max() / spread.min() < 1.05


@pytest.mark.parametrize("norm", NORMS)
def test_a_random_start_repeats_with_its_generator(norm):
    threat, x = ThreatModel(norm, 1), torch.rand(3, 7)
    first, second = (threat.random_start(x, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, threat.random_start(x, generator=torch.Generator().manual_seed(6)))


# Steepest ascent


@settings(max_examples=100)
@given(norms, radii, seeds)
def test_the_step_has_its_length_and_no_step_climbs_higher(norm, size, seed):
    threat = ThreatModel(norm, 1)
    gradient = torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    step = threat.steepest_ascent(gradient, size)
    assert step.shape == gradient.shape
    np.testing.assert_allclose(lengths(step, norm), size, rtol=1e-12)
    climb = (step * gradient).flatten(1).sum(dim=1)
    dual = {"Linf": 1, "L2": 2, "L1": math.inf}[norm]
    np.testing.assert_allclose(climb, size * np.linalg.norm(gradient.flatten(1), dual, axis=1), rtol=1e-12)
    for other in range(10):
        rival = draw(seed + 1 + other)
        rival = rival * torch.as_tensor(size / lengths(rival, norm).clip(1e-30)).view(-1, 1, 1, 1)
        assert ((rival * gradient).flatten(1).sum(dim=1) <= climb * (1 + 1e-12)).all()


@pytest.mark.parametrize("norm", NORMS)
def test_no_gradient_no_step(norm):
    gradient = torch.zeros(2, 5)
    gradient[1, 3] = -1e-30
    step = ThreatModel(norm, 1).steepest_ascent(gradient, 0.5)
    assert not step[0].any()
    assert torch.equal(step[1], torch.tensor([0, 0, 0, -0.5, 0]))


@settings(max_examples=40)
@given(norms, st.floats(0.05, 1), seeds)
def test_ascent_climbs_a_concave_objective_within_its_ball(norm, eps, seed):
    threat = ThreatModel(norm, eps)
    x = draw(seed).clamp(0, 1)
    peak = draw(seed + 1)

    def objective(z):
        return -((z - peak) ** 2).sum()

    size = eps / 20
    found = threat.ascend(objective, x, x, steps=60, step_size=size, low=0, high=1)
    assert not found.requires_grad
    assert (lengths(found - x, norm) <= eps * (1 + 1e-12)).all()
    assert found.min() >= 0
    assert found.max() <= 1
    assert objective(found) >= objective(x) - SHAPE[0] * 18 * size**2
    if norm == "Linf":
        # The nearest point of a box is found coordinate by coordinate; the last steps go to and fro around it.
        best = torch.maximum(torch.minimum(peak, (x + eps).clamp(max=1)), (x - eps).clamp(min=0))
        torch.testing.assert_close(found, best, rtol=0, atol=1.01 * size)


@pytest.mark.parametrize("norm", NORMS)
def test_ascent_leaves_network_and_start_alone(norm):
    network = torch.nn.Linear(6, 3)
    x = torch.rand(4, 6)
    start = x.clone()
    with torch.no_grad():
        found = ThreatModel(norm, 0.1).ascend(lambda z: network(z).square().sum(), x, start, steps=3, step_size=0.05)
    assert all(parameter.grad is None for parameter in network.parameters())
    assert torch.equal(start, x)
    assert not start.requires_grad
    assert not torch.equal(found, x)
    assert network(found).square().sum() > network(x).square().sum()


@pytest.mark.parametrize("norm", NORMS)
def test_ascent_of_a_linear_objective_reaches_the_best_point(norm):
    threat = ThreatModel(norm, 0.5)
    x = torch.zeros(3, 8, dtype=torch.float64)
    slope = draw(3, x.shape) + 0.01 * draw(4, x.shape)
    found = threat.ascend(lambda z: (slope * z).sum(), x, x, steps=10, step_size=0.25)
    torch.testing.assert_close(found, threat.steepest_ascent(slope, 0.5), rtol=0, atol=1e-12)


def test_no_steps_give_the_start():
    x = torch.rand(2, 3)
    assert torch.equal(ThreatModel("L2", 1).ascend(torch.sum, x, x + 0.1, steps=0, step_size=1), x + 0.1)


def test_l1_ascent_moves_coordinates_that_have_room():
    """On binary images most coordinates stand at a limit of the range: the best five of the others are the optimum."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 2, (4, 1, 8, 8), generator=generator).double()
    weights = torch.randn(1, 8, 8, generator=generator, dtype=torch.float64)
    room = torch.where(weights > 0, 1 - x, x) * weights.abs()
    optimum = room.flatten(1).topk(5, dim=1).values.sum(dim=1)
    threat = ThreatModel("L1", 5.0)
    found = threat.ascend(lambda z: (weights * z).sum(), x, x, steps=10, step_size=1.25, low=0.0, high=1.0)
    gain = (weights * (found - x)).flatten(1).sum(dim=1)
    assert (threat.distance(found, x) <= 5.0 + 1e-9).all()
    assert (gain >= 0.7 * optimum).all()  # a step spreads over coordinates once the ball is full

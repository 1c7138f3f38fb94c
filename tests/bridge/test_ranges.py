"""The range of inputs: what is read from clip_values, what is refused, the map from the cube that attacks search."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from art_robust_plugins import ThreatModel
from art_robust_plugins.bridge import EstimatorModule, InputRange, bounded_range, clip_range, read_clip_values
from art_robust_plugins.evaluation import Evaluator
from art_robust_plugins.threat import check_radius

from .builders import classifier

SHAPE = (3, 4, 5)
CHANNELS = np.array([0.5, 1.0, 2.0], dtype=np.float32).reshape(3, 1, 1)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ((np.nan, 1), "nan"),
        ((0, np.nan), "nan"),
        ((1.0, 0.0), "1, 0"),
        ((0.0, 1e-50), "0, 0"),
        ((0.5, 0.5), "0.5, 0.5"),
        ((np.zeros((3, 1, 1)), np.array([1.0, 0.0, 1.0]).reshape(3, 1, 1)), "0, 0"),
        ((np.zeros(3), np.ones(3)), r"\(3,\)"),
        ((np.zeros((2, 1, 1)), np.ones((2, 1, 1))), r"\(2, 1, 1\)"),
        ((np.zeros((2, *SHAPE)), np.ones((2, *SHAPE))), r"\(2, 3, 4, 5\)"),
        ((0, 1, 2), r"\(\) and \(\) and \(\)"),
        (("low", "high"), r"\(\) and \(\)"),
        (3, "3"),
    ],
)
def test_ranges_that_are_none(values: object, named: str) -> None:
    with pytest.raises(ValueError, match=f"^classifier: clip_values .*{named}"):
        read_clip_values(values, SHAPE)


@pytest.mark.parametrize("values", [None, (-np.inf, np.inf), (0, np.inf), (-np.inf, 1)])
def test_ranges_that_attacks_cannot_search(values: object) -> None:
    """The sentence is of clip_values, not of an eps of 0."""
    estimator = classifier(shape=SHAPE, clip_values=values)
    for attempt in (EstimatorModule, lambda classifier: Evaluator(classifier, ThreatModel("Linf", 0.1))):
        with pytest.raises(ValueError, match=r"^classifier: clip_values are (None|.*inf)"):
            attempt(estimator)
    EstimatorModule(estimator, unit_range=False)


def test_ranges_that_are_one_for_all() -> None:
    for values in [(0, 2), (np.zeros(SHAPE), np.full(SHAPE, 2.0)), (np.zeros((1, 3, 1, 1)), np.full((1, 3, 1, 1), 2))]:
        assert read_clip_values(values, SHAPE) == (0.0, 2.0)


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 1, 1), SHAPE, (1, *SHAPE)])
def test_a_range_for_each_channel(shape: tuple[int, ...]) -> None:
    low, high = (np.broadcast_to(limit.reshape(3, 1, 1), SHAPE) for limit in (-CHANNELS, CHANNELS))
    if shape not in (SHAPE, (1, *SHAPE)):
        low, high = (limit[:, :1, :1] for limit in (low, high))
    found = clip_range(classifier(shape=SHAPE, clip_values=(low.reshape(shape), high.reshape(shape))))
    assert torch.equal(found[0].expand(SHAPE), -torch.from_numpy(CHANNELS).expand(SHAPE))
    assert torch.equal(found[1].expand(SHAPE), torch.from_numpy(CHANNELS).expand(SHAPE))


limits = st.tuples(st.floats(-3, 3, width=32), st.floats(0.125, 4, width=32))


@given(st.lists(limits, min_size=2, max_size=6), st.integers(0, 1000), st.sampled_from(["Linf", "L2", "L1"]))
@settings(deadline=None, max_examples=60)
def test_the_cube_holds_the_range_and_no_more(features: list[tuple[float, float]], seed: int, norm: str) -> None:
    """Inputs of the range come back from the cube; what the cube maps to is in the range, and no farther away."""
    low = torch.tensor([feature[0] for feature in features])
    high = low + torch.tensor([feature[1] for feature in features])
    box, generator = InputRange(low, high), torch.Generator().manual_seed(seed)
    x = low + (high - low) * torch.rand(8, len(low), generator=generator)
    unit = box.to_unit(x)
    assert bool(((unit >= 0) & (unit <= 1)).all())
    torch.testing.assert_close(box.from_unit(unit), x, rtol=1e-5, atol=1e-5)
    other = torch.rand(8, len(low), generator=generator)
    assert bool(box.holds(box.from_unit(other)).all())
    threat = ThreatModel(norm, 1.0)
    distance = threat.distance(box.from_unit(other), box.from_unit(unit))
    assert bool((distance <= box.width * threat.distance(other, unit) * (1 + 1e-5) + 1e-5).all())


def test_the_radius_that_holds_every_image_counts_each_feature() -> None:
    low, high = torch.zeros(3, 1, 1), torch.from_numpy(2 * CHANNELS)  # widths 1, 2, 4, each 20 times
    for norm, whole in [("Linf", 4.0), ("L2", (20 * 21) ** 0.5), ("L1", 140.0)]:
        check_radius(ThreatModel(norm, whole * 0.999), low, high, 60)
        with pytest.raises(ValueError, match=r"^eps: got "):
            check_radius(ThreatModel(norm, whole * 1.001), low, high, 60)


def test_a_range_of_one_width_is_only_moved() -> None:
    box = bounded_range(torch.tensor([0.0, 5.0]), torch.tensor([2.0, 7.0]))
    assert box.even
    assert box.width == 2
    assert box.hull == (0.0, 7.0)
    assert torch.equal(box.from_unit(torch.tensor([[0.5, 0.5]])), torch.tensor([[1.0, 6.0]]))

"""Signs in two bits: nothing is lost, whatever the shape and the layout, and they are added where they belong."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from art_robust_plugins.training.instruments.signs import PackedSigns
from art_robust_plugins.training.memory_format import layout_of
from art_robust_plugins.training.methods.layerwise import perturb

LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}


def numbers(shape: tuple[int, ...], seed: int) -> Tensor:
    """Some of each sign, of all sizes down to the least."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randint(-1, 2, shape, generator=generator)
    return sign * 10.0 ** torch.randint(-40, 30, shape, generator=generator)


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=5).map(tuple),
    st.booleans(),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.int8]),
    st.integers(0, 2**16),
)
@settings(max_examples=200)
def test_what_is_packed_is_unpacked(shape: tuple[int, ...], last: bool, dtype: torch.dtype, seed: int) -> None:
    values = numbers(shape, seed).sign().to(dtype)
    layout = LAYOUTS.get(len(shape), torch.contiguous_format) if last else torch.contiguous_format
    signs = PackedSigns.of(values, layout)
    assert torch.equal(signs.unpack(), values.to(torch.int8))
    if math.prod(shape[1:]) % 4 == 0:  # nothing fills up the last byte
        assert signs.unpack().is_contiguous(memory_format=layout)
    assert (len(signs), *signs.shape) == shape
    assert signs.packed.numel() * signs.packed.element_size() == shape[0] * math.ceil(math.prod(shape[1:]) / 4)


def test_signs_of_numbers_of_all_sizes() -> None:
    values = torch.tensor([[0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, math.inf, -math.inf, math.nan, 1.0, -1.0]])
    found = PackedSigns.of(values, torch.contiguous_format).unpack()
    assert found.tolist() == [[0, 0, 1, -1, 1, -1, 1, -1, 0, 1, -1]]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_that_are_not_dense_are_packed_in_the_asked_order(layout: torch.memory_format) -> None:
    """The gradient of a mean is one number, expanded."""
    values = numbers((3, 5, 1, 1), 0).expand(3, 5, 2, 3)
    assert torch.equal(PackedSigns.of(values, layout).unpack(), values.sign().to(torch.int8))
    turned = numbers((3, 2, 5, 3), 1).permute(0, 2, 3, 1)
    assert torch.equal(PackedSigns.of(turned, layout).unpack(), turned.sign().to(torch.int8))


@given(
    st.lists(st.integers(1, 5), min_size=0, max_size=4).map(tuple),
    st.integers(1, 6),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
    st.integers(0, 2**16),
)
@settings(max_examples=200)
def test_signs_are_added_to_their_samples(
    shape: tuple[int, ...], stored: int, samples: int, kept_last: bool, added_last: bool, seed: int
) -> None:
    """In whatever layouts both are, samples take the signs of their slots, in the place of each number."""
    last = LAYOUTS.get(len(shape) + 1, torch.contiguous_format)
    gradient = numbers((stored, *shape), seed)
    signs = PackedSigns.of(gradient, last if kept_last else torch.contiguous_format)
    generator = torch.Generator().manual_seed(seed)
    slots = torch.randint(0, stored, (samples,), generator=generator)
    factors = torch.randn(samples, generator=generator, dtype=torch.float64)
    h = torch.randn((samples, *shape), generator=generator, dtype=torch.float64)
    moved = h.contiguous(memory_format=last if added_last else torch.contiguous_format).clone()
    perturb(moved, signs, slots, factors, 0.25)
    expected = h + 0.25 * factors.view(-1, *[1] * len(shape)) * gradient[slots].sign()
    assert torch.allclose(moved, expected, rtol=0, atol=1e-15)


def test_the_layout_of_a_tensor() -> None:
    images = torch.zeros(2, 3, 4, 5)
    assert layout_of(images) == torch.contiguous_format
    assert layout_of(images.contiguous(memory_format=torch.channels_last)) == torch.channels_last
    assert layout_of(images.transpose(2, 3)) == torch.contiguous_format
    assert layout_of(torch.zeros(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)) != layout_of(images)
    assert layout_of(torch.zeros(3)) == torch.contiguous_format


def test_signs_are_added_to_tensors_that_are_not_dense() -> None:
    gradient, h = numbers((2, 3, 4, 5), 0), torch.zeros(2, 3, 5, 8)[:, :, :, ::2].transpose(2, 3)
    signs = PackedSigns.of(gradient, torch.channels_last)
    perturb(h, signs, torch.tensor([1, 0]), torch.tensor([1.0, 2.0]), 0.5)
    assert torch.equal(h, torch.tensor([0.5, 1.0]).view(2, 1, 1, 1) * gradient[[1, 0]].sign())

"""channels_last: the same values, and strides by which a convolution knows it."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from art_robust_plugins.bridge import to_channels_last

SIZES = st.integers(1, 4)


@given(SIZES, SIZES, SIZES, SIZES, st.booleans())
def test_values_stay_and_strides_are_those_of_pixels_side_by_side(n, channels, height, width, turned):
    x = torch.arange(n * channels * height * width, dtype=torch.float64).reshape(n, channels, height, width)
    x = x.transpose(2, 3).contiguous().transpose(2, 3) if turned else x
    y = to_channels_last(x)
    assert torch.equal(y, x)
    if channels == 1:  # where torch itself sees no difference
        assert y.stride() == (height * width, 1, width, 1)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_convolutions_answer_in_it_and_gradients_come_back() -> None:
    convolution = torch.nn.Conv2d(1, 4, 3, padding=1)
    x = torch.rand(2, 1, 6, 6, requires_grad=True)
    y = convolution(to_channels_last(x))
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert not convolution(x).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, convolution(x))
    gradients = [
        torch.autograd.grad(convolution(turn(x)).square().sum(), x)[0] for turn in (to_channels_last, torch.clone)
    ]
    torch.testing.assert_close(*gradients)

"""MinMax: its own backward pass against autograd's, and in every way that a network is run."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from art_robust_plugins.models import MinMax
from art_robust_plugins.models.activations import sort_pairs


def sort_by_autograd(x):
    a, b = x.chunk(2, dim=1)
    return torch.cat([torch.maximum(a, b), torch.minimum(a, b)], dim=1)


@given(
    pairs=st.integers(1, 5),
    size=st.sampled_from([(), (3,), (3, 2), (2, 3, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 10**6),
)
def test_values_and_gradients_are_those_of_maxima_and_minima(pairs, size, dtype, seed):
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 2 * pairs, *size, generator=random).to(dtype).requires_grad_()
    a, b = x.detach().chunk(2, dim=1)
    assume(not bool((a == b).any()))  # autograd splits the gradient of equal values
    along = torch.randn(x.shape, generator=random).to(dtype)
    expected, found = sort_by_autograd(x), MinMax()(x)
    assert torch.equal(found, expected)
    assert torch.equal(*(torch.autograd.grad(y, x, along)[0] for y in (found, expected)))


def test_the_gradient_of_equal_values_keeps_its_norm():
    x = torch.zeros(2, 6, 3, requires_grad=True)
    along = torch.randn(2, 6, 3)
    (gradient,) = torch.autograd.grad(MinMax()(x), x, along)
    assert torch.equal(gradient, along)


def test_derivatives_of_every_order_and_kind_are_checked():
    torch.manual_seed(0)
    x = torch.randn(3, 4, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MinMax(), x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: MinMax()(x).square(), x)
    rows = torch.func.vmap(torch.func.jacrev(lambda row: MinMax()(row[None])[0]))(x.detach())
    assert torch.equal(rows.flatten(3).sum(-1), torch.ones(3, 4, 2, dtype=torch.float64))


def test_channels_last_stays_so():
    x = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = MinMax()(x)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "run",
    [
        lambda network, x: torch.jit.trace(network, x)(x),
        lambda network, x: torch.export.export(network, (x,), strict=False).module()(x),
        lambda network, x: torch.func.functional_call(network, dict(network.named_parameters()), (x,)),
    ],
    ids=["trace", "export", "functional call"],
)
def test_tracers_see_the_same_function(run):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), MinMax())
    x = torch.randn(2, 1, 5, 5)
    torch.testing.assert_close(run(network, x), network(x))


@pytest.mark.parametrize("shape", [(2, 3), (2, 1, 4, 4), (4,), ()])
def test_channels_without_a_partner_are_refused(shape):
    for sort in (MinMax(), sort_pairs):
        with pytest.raises(ValueError, match=r"^x: got "):
            sort(torch.randn(shape))


def test_a_trace_refuses_channels_without_a_partner():
    trace = torch.jit.trace(MinMax(), torch.randn(2, 4))
    assert torch.equal(trace(torch.tensor([[1.0, 5.0, 3.0, 2.0, 0.0, 9.0]])), torch.tensor([[2.0, 5, 9, 1, 0, 3]]))
    with pytest.raises(RuntimeError, match="unflatten"):
        trace(torch.randn(2, 3))

"""A network through torch.compile, for batches of many sizes."""

from __future__ import annotations

import pytest
import torch
from builders import needs_compiler
from torch import Tensor, nn

from art_robust_plugins.bridge import compile_for_all_sizes

SIZES = (16, 40, 3, 17, 250, 1, 33)


class Watched(nn.Module):
    """Remembers the sizes of the batches in which its own Python runs."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale, self.sizes = scale, list[int]()

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.sizes.append(len(x))
        return (self.scale * x).sin().flatten(1).cumsum(1)


@pytest.mark.slow
@needs_compiler
def test_batches_of_all_sizes_pass_through_one_compiled_form() -> None:
    networks = [Watched(0.5 + number) for number in range(10)]  # more than torch keeps of one code object
    for network in networks:
        call = compile_for_all_sizes(network)
        for size in SIZES:
            x = torch.rand(size, 1, 4, 4, requires_grad=True)
            found, wanted = call(x), (network.scale * x).sin().flatten(1).cumsum(1)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
            (one,), (another,) = (torch.autograd.grad(each.square().sum(), x) for each in (found, wanted))
            torch.testing.assert_close(one, another, rtol=1e-4, atol=1e-4)
            with torch.no_grad():
                torch.testing.assert_close(call(x), wanted, rtol=1e-4, atol=1e-4)
        # Small batches run the network itself, with gradients and without.
        assert network.sizes == [3, 3, 1, 1]

"""Networks through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

Call = Callable[[Tensor], Tensor]

SMALLEST_COMPILED = 16
"""The smallest batch that `compile_for_all_sizes` compiles for: smaller ones gain little, and take compiling again."""


def compile_call(call: Call, **settings: Any) -> Call:
    """A network or function as ``torch.compile`` makes it; ``settings`` are keywords of that.

    torch keeps what it has compiled by code object, and gives up after a few forms; each call of this function has a
    code object of its own.
    """

    def forward(x: Tensor) -> Tensor:
        return call(x)

    own = FunctionType(forward.__code__.replace(), forward.__globals__, "forward", None, forward.__closure__)
    compiled: Call = torch.compile(own, **settings)
    return compiled


def compile_for_all_sizes(call: Call) -> Call:
    """A network or function of batches, compiled once for all of their sizes, with gradients and without.

    Batches of fewer than `SMALLEST_COMPILED` pass as they did.
    """
    compiled = compile_call(call)

    def run(x: Tensor) -> Tensor:
        if len(x) < SMALLEST_COMPILED:
            return call(x)
        torch._dynamo.maybe_mark_dynamic(x, 0)
        return compiled(x)

    return run

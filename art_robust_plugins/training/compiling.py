"""Forward passes through ``torch.compile``, which go on uncompiled where that fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Literal

import torch
from torch import Tensor, nn

Compile = Literal["no", "default", "reduce-overhead"]


class Compiled:
    """A module as a function whose passes are compiled, as a whole or not at all; the module itself stays as it is.

    Compiling happens in the first call, and again for another mode or shape. Where it fails, a warning gives the reason
    once, and this and all later calls run the module itself.
    """

    def __init__(self, module: nn.Module, mode: Compile) -> None:
        self.module, self.mode = module, mode

        def forward(x: Tensor) -> Tensor:
            outputs: Tensor = module(x)
            return outputs

        # torch limits what it compiles for one code object, whatever the module: each trainer needs one of its own.
        own = FunctionType(forward.__code__.replace(), forward.__globals__, "forward", None, forward.__closure__)
        passes: Callable[[Tensor], Tensor] = torch.compile(
            own, fullgraph=True, mode=None if mode == "default" else mode
        )
        self._passes: Callable[[Tensor], Tensor] | None = passes

    def __call__(self, x: Tensor) -> Tensor:
        outputs: Tensor
        if self._passes is None:
            outputs = self.module(x)
            return outputs
        try:
            outputs = self._passes(x)
            # The memory of a CUDA graph's outputs belongs to the graph, whose next run writes there.
            return outputs.clone() if self.mode == "reduce-overhead" else outputs
        except Exception as failure:  # torch names no class for all that a compiler can meet
            reason = f"{type(failure).__name__}: {str(failure).strip().splitlines()[0]}"
        outputs = self.module(x)  # where the network itself is to blame, this raises its error
        self._passes = None
        warnings.warn(
            f"compile: torch.compile does not take this network, training goes on uncompiled ({reason})", stacklevel=2
        )
        return outputs

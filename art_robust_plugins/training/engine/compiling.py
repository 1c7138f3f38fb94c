"""Forward passes through ``torch.compile``, with uncompiled passes as the fallback when compiling fails."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from types import FunctionType

import torch
import torch._functorch.config
from torch import Tensor, nn

from ..options import Compile


class Compiled:
    """A module as a function whose passes are compiled, all or none of them; the module itself is not changed.

    Compiling happens in the first call of each kind (training or evaluation, with or without gradients, of the input
    too or not, under autocast or not), and again for another shape. Where it fails, a warning gives the reason once,
    and this and all later calls run the module itself. Versions of torch that compile a backward pass only when it
    runs raise its failures there.
    """

    def __init__(self, module: nn.Module, mode: Compile) -> None:
        self.module, self.mode = module, mode
        self._passes: dict[Hashable, Callable[[Tensor], Tensor]] | None = {}

    def __call__(self, x: Tensor) -> Tensor:
        outputs: Tensor
        if self._passes is None:
            outputs = self.module(x)
            return outputs
        # The loop sets the mode of the network, not that of its wrapper.
        kind = (
            tuple(part.training for part in self.module.children()),
            torch.is_grad_enabled(),
            x.requires_grad,
            torch.is_autocast_enabled(x.device.type),
        )
        if kind not in self._passes:
            self._passes[kind] = self._compile()
        try:
            with _compile_backward_at_once():
                outputs = self._passes[kind](x)
            # The memory of a CUDA graph's outputs belongs to the graph, and its next run overwrites it.
            return outputs.clone() if self.mode == "reduce-overhead" else outputs
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as failure:  # torch has no common class for the errors of a compiler
            said = f"{type(failure).__name__}: {failure}".split("\n")
            # A failure of torch's compiler names its cause in the second line.
            reason = " ".join(said[: 2 if said[0].endswith("raised:") else 1]).strip()
        outputs = self.module(x)  # if the network itself fails, this raises the network's own error
        self._passes = None
        warnings.warn(
            f"compile: torch.compile does not take this network, training goes on uncompiled ({reason})", stacklevel=2
        )
        return outputs

    def _compile(self) -> Callable[[Tensor], Tensor]:
        module = self.module

        def forward(x: Tensor) -> Tensor:
            outputs: Tensor = module(x)
            return outputs

        # torch limits the compilations of one code object, whatever the module, so each kind of pass gets its own.
        own = FunctionType(forward.__code__.replace(), forward.__globals__, "forward", None, forward.__closure__)
        compiled: Callable[[Tensor], Tensor] = torch.compile(
            own, fullgraph=True, mode=None if self.mode == "default" else self.mode
        )
        return compiled


def _compile_backward_at_once() -> AbstractContextManager[None]:
    """Compile the backward pass with the forward pass: a failure in the backward pass itself could not be caught."""
    config = torch._functorch.config
    if not hasattr(config, "force_non_lazy_backward_lowering"):
        return nullcontext()
    patched: AbstractContextManager[None] = config.patch(force_non_lazy_backward_lowering=True)
    return patched

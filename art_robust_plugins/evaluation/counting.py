"""A module that counts the images that pass through it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class CallCounter(nn.Module):
    """Wraps a module and counts the images that pass forward and backward through it.

    ``around`` is called with each forward pass as a function and returns its outputs; ``before``, if it is set, is
    called before each pass.
    """

    def __init__(
        self, module: nn.Module, around: Callable[[Callable[[], Tensor]], Tensor] = lambda forward: forward()
    ) -> None:
        super().__init__()
        self.module, self.around = module, around
        self.before: Callable[[], object] | None = None
        self.forward_calls = 0
        self.backward_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.before is not None:
            self.before()
        outputs = self.around(lambda: self.module(x))
        self.forward_calls += len(x)
        if outputs.requires_grad:
            outputs.register_hook(self._count_backward)  # type: ignore[no-untyped-call]
        return outputs

    def _count_backward(self, gradient: Tensor) -> None:
        self.backward_calls += len(gradient)

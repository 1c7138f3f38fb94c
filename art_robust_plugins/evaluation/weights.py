"""Weights that take no gradient while attacks run, unless the network takes gradients of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class GradientWatch(TorchFunctionMode):
    """Notes whether anything within takes gradients: by autograd, torch.func or forward mode."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        takers = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)
        self.seen = self.seen or func in takers or getattr(func, "__name__", "") == "_make_dual"
        return func(*args, **(kwargs or {}))


class FrozenWeights:
    """The parameters of a network, which take no gradient until a pass of it takes gradients inside.

    Attacks need gradients of the input alone, and the user's own must not be filled. A network that adapts itself needs
    those of its parameters: from the first pass on in which it is seen to take any, they are as they were.

    Args:
        network: the modules whose parameters these are.

    Attributes:
        taken: whether a pass took gradients inside.
    """

    def __init__(self, network: nn.Module) -> None:
        # Copies of TorchScript have parameters that are no leaves.
        self._parameters = [each for each in network.parameters() if each.is_leaf and each.requires_grad]
        self._frozen = False
        self.taken = False

    def freeze(self) -> None:
        """Stop gradients of the parameters, unless a pass took some inside before."""
        if not self.taken:
            self._set(frozen=True)

    def watch(self, run: Callable[[], Tensor], restore: Callable[[], object]) -> Tensor:
        """What ``run``, a pass without gradients of its own, returns; ``restore`` puts back what it changed.

        The first pass that takes gradients inside is run again, with parameters as they were.
        """
        watch = GradientWatch()
        try:
            with watch:
                outputs = run()
        except RuntimeError:
            if not (watch.seen and self._frozen):
                raise
        else:
            if not (watch.seen and self._frozen):
                self.taken = self.taken or watch.seen
                return outputs
        self._thaw(restore)
        return run()

    def retry(self, run: Callable[[], Tensor], restore: Callable[[], object]) -> Tensor:
        """As `watch` for an attack's passes, which are many: they are looked at only where one fails."""
        try:
            return run()
        except RuntimeError as error:
            if not self._frozen or _NO_GRADIENT not in str(error):
                raise
        self._thaw(restore)
        return run()

    def _thaw(self, restore: Callable[[], object]) -> None:
        self.taken = True
        self._set(frozen=False)
        restore()

    def _set(self, *, frozen: bool) -> None:
        self._frozen = frozen
        for parameter in self._parameters:
            parameter.requires_grad_(not frozen)


# What torch says where a network asks for gradients of frozen parameters.
_NO_GRADIENT = "does not require grad"

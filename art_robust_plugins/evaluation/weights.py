"""Weights that get no gradients while attacks run, unless the network computes gradients itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


class GradientWatch(TorchFunctionMode):
    """Notices gradient computations within its context: by autograd, torch.func or forward mode."""

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
    """The parameters of a network, which get no gradients until one of its passes computes gradients inside.

    Attacks need gradients of the input alone, and must not fill the parameters'. A network that adapts itself needs the
    gradients of its parameters: from the first pass in which it computes any, ``requires_grad`` is as it was.

    Args:
        network: the modules with these parameters.

    Attributes:
        taken: whether a pass computed gradients inside.
    """

    def __init__(self, network: nn.Module) -> None:
        # Copies of TorchScript modules have parameters that are no leaves.
        self._parameters = [each for each in network.parameters() if each.is_leaf and each.requires_grad]
        self._frozen = False
        self.taken = False

    def freeze(self) -> None:
        """Stop gradients of the parameters, unless an earlier pass computed gradients inside."""
        if not self.taken:
            self._set(frozen=True)

    def watch(self, run: Callable[[], Tensor], restore: Callable[[], object]) -> Tensor:
        """Run a pass without gradients of its own and return its outputs; ``restore`` restores the network's state.

        The first pass that computes gradients inside is run again, with gradients of the parameters.
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
        """As `watch` for an attack's passes; since these are many, a pass is watched only if it fails."""
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


# Part of torch's error when a network asks for gradients of frozen parameters.
_NO_GRADIENT = "does not require grad"

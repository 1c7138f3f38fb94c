"""The convolutional blocks of a network: a convolution, and the normalisation applied directly to its output."""

from __future__ import annotations

import weakref
from typing import Any

from torch import Tensor, nn

CONVOLUTIONS = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)
NORMALISATIONS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.GroupNorm, nn.LayerNorm),
)


class ConvolutionBlocks:
    """Finds out in forward passes which normalisation is applied directly to which convolution's output."""

    def __init__(self) -> None:
        self.ends: dict[str, str] = {}  # convolution -> the layer whose output ends its block
        # Weak references: an output lives only as long as the pass needs it.
        self._outputs: list[tuple[str, weakref.ref[Tensor], int]] = []

    def may_end(self, name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> bool:
        """Whether a layer that was called may end a block; `ends` has the answer after the pass."""
        if isinstance(module, CONVOLUTIONS):
            self.ends.setdefault(name, name)
            self._outputs.append((name, weakref.ref(output), output._version))
            return True
        if not inputs or not isinstance(inputs[0], Tensor):
            return False
        # A tensor that was changed in place since (by a ReLU, say) is no longer the convolution's output.
        taken = [conv for conv, h, version in self._outputs if h() is inputs[0] and inputs[0]._version == version]
        self.ends.update(dict.fromkeys(taken, name))
        return bool(taken)

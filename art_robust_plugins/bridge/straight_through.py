"""Functions without a useful gradient, with the gradient of another function in its place.

Backward pass differentiable approximation (BPDA): Athalye, Carlini, Wagner: Obfuscated Gradients Give a False Sense of
Security (arXiv 1802.00420, ICML 2018). Forward the function itself, backward the gradient of an approximation of it;
where that is the identity, it is called straight-through. Status: exact, with ART's estimate of each defence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from art.defences.preprocessor.preprocessor import Preprocessor
from torch import Tensor


class _ClipAbove(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, high: Tensor) -> Tensor:
        return torch.minimum(x, high)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def clip_above(x: Tensor, high: Tensor) -> Tensor:
    """``x`` limited to ``high``, which broadcasts against it; a gradient passes also where it is limited.

    The gradient can then bring back an iterate of an attack that has gone too far.

    Example:
        >>> x = torch.tensor([1.0, 3.0], requires_grad=True)
        >>> clipped = clip_above(x, torch.tensor(2.0))
        >>> clipped.detach(), torch.autograd.grad(clipped.sum(), x)[0]
        (tensor([1., 2.]), tensor([1., 1.]))
    """
    clipped: Tensor = _ClipAbove.apply(x, high)  # type: ignore[no-untyped-call]
    return clipped


class _Defended(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, defence: Preprocessor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.defence = defence
        result = np.asarray(defence(_array(x), None)[0])
        return torch.from_numpy(np.ascontiguousarray(result)).to(x.device)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        estimate = np.asarray(ctx.defence.estimate_gradient(_array(x), _array(gradients[0])))
        if estimate.shape != tuple(x.shape):
            raise ValueError(
                f"classifier: the preprocessing {type(ctx.defence).__name__} estimates a gradient of shape "
                f"{estimate.shape} for inputs {tuple(x.shape)}, expected the same; give it an estimate_gradient(x, "
                f"grad) that does."
            )
        return torch.from_numpy(np.ascontiguousarray(estimate)).to(x.device, x.dtype), None


def _array(x: Tensor) -> np.ndarray[Any, Any]:
    """A copy that a defence may write into, in the memory layout that it expects."""
    return x.detach().cpu().clone(memory_format=torch.contiguous_format).numpy()


class StraightThrough:
    """A NumPy defence of ART as a function of a batch: forward the defence, backward its ``estimate_gradient``.

    ART's default estimate is the identity.

    Example:
        >>> from art.defences.preprocessor import FeatureSqueezing
        >>> x = torch.tensor([[0.2, 0.9]], requires_grad=True)
        >>> squeezed = StraightThrough(FeatureSqueezing(clip_values=(0, 1), bit_depth=1))(x)
        >>> squeezed.detach().float(), torch.autograd.grad(squeezed.sum(), x)[0]
        (tensor([[0., 1.]]), tensor([[1., 1.]]))
    """

    def __init__(self, defence: Preprocessor) -> None:
        self.defence = defence

    @property
    def name(self) -> str:
        """The name of the defence's class."""
        return type(self.defence).__name__

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = _Defended.apply(x, self.defence)  # type: ignore[no-untyped-call]
        if len(result) != len(x):
            raise ValueError(
                f"classifier: the preprocessing {self.name} makes {len(result)} samples of {len(x)}, expected as many; "
                f"make it act in training alone, with apply_predict=False."
            )
        return result

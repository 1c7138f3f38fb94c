"""The gradients of a batch: cut into parts, and averaged over processes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..processes import Processes
from .prefetch import Batch


def split_batch(x: Tensor, y: Tensor, count: int) -> list[Batch]:
    """A batch cut into ``count`` parts, or as many as it has samples."""
    count = min(count, len(x))
    if count == 1:
        return [(x, y)]
    return list(zip(x.tensor_split(count), y.tensor_split(count), strict=True))


def average_gradients(parameters: Sequence[nn.Parameter], loss: Tensor, processes: Processes) -> Tensor:
    """Replace all gradients by their means over the processes, in one reduction with the loss, whose mean it returns.

    Unlike DDP it allows any number of forward and backward passes in a step.
    """
    if processes.count == 1:
        return loss
    reached = [p.grad is not None for p in parameters]
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
    flat = torch.cat([*parts, torch.tensor(reached, device=loss.device, dtype=loss.dtype), loss.view(1)])
    processes.sum(flat)
    flat /= processes.count
    *means, anywhere, mean_loss = torch.split(flat, [*(len(part) for part in parts), len(parameters), 1])
    if not all(reached):
        # A parameter that the loss reaches in no process must get no gradient, or weight decay would change it. Reading
        # the flags synchronises with the GPU in each step; there is no other way, since the set of parameters that
        # another process reaches may change with every step.
        reached = [share > 0 for share in anywhere.tolist()]
    for parameter, mean, wanted in zip(parameters, means, reached, strict=True):
        if wanted:
            # Fused optimizers need the gradient in the parameter's memory format.
            parameter.grad = torch.empty_like(parameter).copy_(mean.view_as(parameter))
    return mean_loss[0]

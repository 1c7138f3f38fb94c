"""The batch variances of batch normalisation, for the training estimate of a bound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..checks import check_type

Variances = Mapping[nn.Module, Sequence[Tensor]]
"""For each batch-norm module, the variance [C] of its input in each of its calls, in order."""


@contextmanager
def batch_variances(network: nn.Module) -> Iterator[dict[nn.Module, list[Tensor]]]:
    """Collect, in a forward pass, the variance that each batch normalisation divides by in training mode.

    Gives a dictionary for `LipschitzGraph.estimate`: the variances [C] carry their gradient. Modules in evaluation
    mode are left out. Call ``clear()`` on it before the next batch, or enter anew.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        >>> from art_robust_plugins.lipschitz import LipschitzGraph
        >>> graph = LipschitzGraph(network, (1, 4, 4))
        >>> with batch_variances(network) as variances:
        ...     logits = network(torch.rand(8, 1, 4, 4))
        >>> graph.estimate(variances).lipschitz.requires_grad
        True

    Raises:
        TypeError: for anything but a module.
    """
    check_type("network", network, nn.Module, "a torch.nn.Module")
    variances: dict[nn.Module, list[Tensor]] = {}

    def collect(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if module.training:
            x = inputs[0]
            axes = [axis for axis in range(x.dim()) if axis != 1]
            # The layer itself computes in float32 under mixed precision.
            precise = x if x.dtype == torch.float64 else x.float()
            variances.setdefault(module, []).append(precise.var(dim=axes, unbiased=False))

    handles = [m.register_forward_pre_hook(collect) for m in network.modules() if isinstance(m, _BatchNorm)]
    try:
        yield variances
    finally:
        for handle in handles:
            handle.remove()

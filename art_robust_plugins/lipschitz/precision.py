"""A check that a network does not round to half precision inside, for example under its own autocast."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..bridge import device_of
from ..checks import describe_error
from .tensors import dtype_of

_HALF = (torch.float16, torch.bfloat16)


class _Types(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the half-precision types of operations' results."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.half: set[torch.dtype] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.half |= {leaf.dtype for leaf in tree_leaves(result) if isinstance(leaf, Tensor)} & set(_HALF)
        return result


def check_precision(network: nn.Module, input_shape: tuple[int, ...]) -> None:
    """Refuse a network that rounds to half precision: a copy in float64 does not, so its bound is of another function.

    Args:
        network: in evaluation mode.
        input_shape: of one sample.

    Raises:
        ValueError: for such a network, and for one that fails in its own precision.
    """
    dtype = dtype_of(network)
    x = torch.zeros(2, *input_shape, device=device_of(network), dtype=dtype)
    try:
        with _Types() as seen:
            network(x)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever the network raises
        raise ValueError(
            f"classifier: the network fails on inputs {tuple(x.shape)} of type {dtype} while the types of its "
            f"operations are looked at ({describe_error(error)}), expected a forward of plain operations in "
            f"one data type."
        ) from error
    if seen.half:
        raise ValueError(
            f"classifier: the network computes in {min(map(str, seen.half))}, which rounds, so it may jump, expected "
            f"float32 or float64; take the conversion or the autocast out of its forward."
        )

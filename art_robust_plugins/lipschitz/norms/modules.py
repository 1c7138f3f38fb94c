"""The operator of a torch module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import nn

from ...checks import check_sizes
from .convolution import Convolution
from .linear import Linear

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def operator_of(module: nn.Module, input_shape: Sequence[int]) -> Linear | Convolution:
    """The operator of a linear or convolution module for one sample of ``input_shape`` ([inputs] or [inputs, *size]).

    Raises:
        TypeError: for another type of module.
        ValueError: for a shape that does not fit the module.

    Example:
        >>> operator_of(nn.Conv2d(3, 8, 3, padding="same"), (3, 32, 32)).output_shape
        (8, 32, 32)
    """
    shape = check_sizes("input_shape", input_shape)
    operator: Linear | Convolution
    if isinstance(module, nn.Linear):
        operator = Linear(module.weight)
    elif isinstance(module, _CONVOLUTIONS + _TRANSPOSED):
        if len(shape) != module.weight.dim() - 1:
            raise ValueError(
                f"input_shape: got {shape} for {type(module).__name__}, expected {module.weight.dim() - 1} sizes."
            )
        operator = Convolution(
            module.weight,
            shape[1:],
            stride=module.stride,
            padding=cast(Any, module.padding),
            dilation=module.dilation,
            groups=module.groups,
            transposed=module.transposed,
            output_padding=module.output_padding,
            padding_mode=module.padding_mode,
        )
    else:
        raise TypeError(f"module: got {type(module).__name__}, expected a linear or convolution module.")
    if operator.input_shape != shape:
        raise ValueError(f"input_shape: got {shape}, expected {operator.input_shape} for this module.")
    return operator

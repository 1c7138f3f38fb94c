"""Rules of interpolation: linear, cubic, with and without antialiasing. (Nearest neighbours are in `movement`.)"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .registry import lipschitz_rule
from .values import FLOAT32, Call, Value

aten = torch.ops.aten


@lipschitz_rule(
    aten.upsample_linear1d.vec,
    aten.upsample_bilinear2d.vec,
    aten.upsample_trilinear3d.vec,
    aten.upsample_bicubic2d.vec,
    aten._upsample_bilinear2d_aa.vec,
    aten._upsample_bicubic2d_aa.vec,
)
def _interpolated(
    call: Call,
    x: Value,
    output_size: Sequence[int] | None,
    align_corners: bool,
    scale_factors: Sequence[float] | None,
) -> Value:
    """A weight is a product of one for each axis, so the map is the Kronecker product of matrices, one for each axis.

    Its norm is the product of their norms, exactly; the operation itself, along one axis, gives each matrix.
    """

    def norm() -> float:
        result, axes = 1.0, len(x.shape) - 2
        precise = call.evaluation.network_dtype == torch.float64
        for axis in range(axes):

            def along(values: Sequence[float] | None, axis: int = axis) -> list[float] | None:
                return None if values is None else [values[axis] if place == axis else 1 for place in range(axes)]

            length = x.shape[2 + axis]
            basis = torch.eye(length, dtype=call.evaluation.network_dtype, device=call.evaluation.device)
            shape = [length if place == axis else 1 for place in range(axes)]
            matrix = call.target(
                basis.view(length, 1, *shape), along(output_size), align_corners, along(scale_factors)
            ).flatten(1)
            result *= float(torch.linalg.matrix_norm(matrix.double(), 2)) * (1 if precise else FLOAT32)
        return result

    return call.function(x, call.cached(norm))

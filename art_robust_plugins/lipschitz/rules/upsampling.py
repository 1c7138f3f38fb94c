"""Rules of interpolation: linear, cubic, with and without antialiasing. (Nearest neighbours are in `movement`.)"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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
def interpolate(
    call: Call,
    x: Value,
    output_size: Sequence[int] | None,
    align_corners: bool,
    scale_factors: Sequence[float] | None,
) -> Value:
    """A weight is a product of one for each axis, so the map is the Kronecker product of matrices, one for each axis.

    Its norm is the product of their norms, exactly. Weights sum to 1, so the operation itself, on values that vary
    along one axis alone, gives the matrix of that axis; and on random values it tells whether it is such a product.
    """

    def apply(values: Tensor) -> Tensor:
        result: Tensor = call.target(values[:, None], output_size, align_corners, scale_factors)[:, 0]
        return result

    def norm() -> float:
        size, dtype, device = x.shape[2:], call.evaluation.network_dtype, call.evaluation.device
        precise = dtype == torch.float64
        sample = torch.rand(size, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(device)
        by_axis, largest = sample, 1.0
        for axis, length in enumerate(size):
            ramps = torch.eye(length, dtype=dtype, device=device)
            ramps = ramps.view(length, *[length if place == axis else 1 for place in range(len(size))])
            along = apply(ramps.expand(length, *size)).movedim(1 + axis, 1)
            rows = along.reshape(*along.shape[:2], -1)[:, :, 0].double()
            by_axis = torch.tensordot(by_axis, rows, dims=([0], [0]))  # the axes come round to their order
            largest *= float(torch.linalg.matrix_norm(rows, 2)) * (1 if precise else FLOAT32)
        whole = apply(sample.to(dtype)[None])[0].double()
        if not torch.allclose(whole, by_axis, rtol=0, atol=1e-10 if precise else 1e-4):
            call.refuse("it does not interpolate along each axis by itself at this size")
        return largest

    return call.function(x, call.compute_once(norm))

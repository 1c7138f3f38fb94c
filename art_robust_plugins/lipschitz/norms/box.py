"""Box kernels (all taps equal except the middle one): the norm by a formula."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from .geometry import ConvolutionMap

_LARGEST_SIDE = 1024  # an eigenvalue problem of this size costs next to nothing


def box_bound(operator: ConvolutionMap) -> tuple[float, bool]:
    """A bound for one channel whose kernel has one level v everywhere but in its middle, and whether it is tight.

    inf for any other convolution. With A, B the matrices that sum a window along one axis, padding included, the
    operator is v A (x) B + d I, d being what the middle has beyond v.

    - d = 0: its norm is |v| ||A|| ||B||.
    - Symmetric A and B (zero and circular padding, replication by one): it is the largest |v a b + d| over their
      eigenvalues a, b.
    - Otherwise their symmetric parts A', B' take the place of A and B, which changes v A (x) B by at most
      |v| (||A - A'|| ||B|| + ||A'|| ||B - B'||).

    The matrices hold small whole numbers, exactly. Their eigenvalues and singular values are found to a modest
    multiple of n u ||A||, and d is rounded by at most u (|d| + |v|), which counts where the two terms cancel; 1e-9
    of both terms covers it.
    """
    kernel = operator.weight.detach()
    taps = kernel.flatten()
    middle = len(taps) // 2
    sides = [d * (k - 1) for d, k in zip(operator.dilation, operator.kernel_size, strict=True)]
    centred = all(pair == (side // 2, side // 2) for pair, side in zip(operator.padding, sides, strict=True))
    odd = all(size % 2 for size in operator.kernel_size)
    plain = not operator.transposed and set(operator.stride) == {1} and kernel.shape[:2] == (1, 1) and kernel.dim() == 4
    if not (plain and odd and centred and max(operator.input_shape) <= _LARGEST_SIDE):
        return math.inf, False
    others = torch.cat([taps[:middle], taps[middle + 1 :]])
    if not len(others) or bool((others != others[0]).any()):
        return math.inf, False
    level, extra = float(others[0]), float(taps[middle] - others[0])
    sums = [_window_sums(operator, axis) for axis in (0, 1)]
    norms = [float(torch.linalg.matrix_norm(matrix, 2)) for matrix in sums]
    rounding = 1e-9 * (abs(level) * norms[0] * norms[1] + abs(extra))
    if extra == 0:
        return abs(level) * norms[0] * norms[1] + rounding, True
    halves = [(matrix + matrix.t()) / 2 for matrix in sums]
    changes = [float(torch.linalg.matrix_norm(matrix - half, 2)) for matrix, half in zip(sums, halves, strict=True)]
    first, second = (torch.linalg.eigvalsh(half) for half in halves)
    largest = float((level * torch.outer(first, second) + extra).abs().max())
    moved = abs(level) * (changes[0] * norms[1] + float(first.abs().max()) * changes[1])
    return largest + moved + rounding, changes == [0.0, 0.0]


def _window_sums(operator: ConvolutionMap, axis: int) -> Tensor:
    """The matrix [n, n] that sums the window of each place along one axis, with this padding."""
    length = operator.input_shape[1 + axis]
    numbers = torch.arange(1, length + 1, dtype=torch.float64).view(1, 1, -1)
    mode = "constant" if operator.padding_mode == "zeros" else operator.padding_mode
    padded = functional.pad(numbers, operator.padding[axis], mode=mode).flatten().long()
    taps = torch.arange(operator.kernel_size[axis]) * operator.dilation[axis]
    read = padded[torch.arange(length)[:, None] + taps]
    matrix = torch.zeros(length, length + 1, dtype=torch.float64)  # column 0 takes what zero padding reads
    matrix.scatter_add_(1, read, torch.ones(read.shape, dtype=torch.float64))
    return matrix[:, 1:].to(operator.weight.device)

"""Convolutions on a grid of frequencies: a proven bound of the norm for operators of any size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .bounds import UNIT_ROUNDOFF
from .geometry import ConvolutionMap

_CHUNK = 2**22  # numbers in memory at a time while frequencies are processed


def grid_bounds(operator: ConvolutionMap, parts: Tensor) -> Tensor:
    """A bound for each group: [groups, ...kernel] -> [groups].

    Along one axis, output i < M reads the inputs at q = i s + k d - p, for kernel taps k; x is zero outside
    [0, H). The same sum on a circle of N points gives the same outputs, if no q falls on a wrong point of the
    circle: q < 0 must land behind the inputs (N >= H + p), q >= 0 must not wrap (N > q_max), and outputs must
    not coincide (N > (M - 1) s). With N a multiple of s, the convolution is then a restriction of the circular
    one, with an embedding before it, and both have norm 1. Inputs after q_max are never read: H may be cut there.

    On the circle, Fourier modes that differ by multiples of N / s fold onto one output mode: the norm is the
    largest singular value, over frequencies v < N / s, of the block row [W^(v + j N / s)]_{j < s} / sqrt(s), and
    likewise along several axes. The shift p only multiplies by phases.

    A transposed convolution is the adjoint of the plain one from its outputs to its inputs; the norm is the same.
    """
    inputs, outputs = operator.plain_sizes()
    zero_padded = operator.padding_mode == "zeros"
    padded = inputs if zero_padded else operator.padded_size()
    axes = []
    for axis, (length, count) in enumerate(zip(padded, outputs, strict=True)):
        before = operator.padding[axis][0] if zero_padded else 0
        step = operator.stride[axis]
        last = (count - 1) * step + operator.dilation[axis] * (operator.kernel_size[axis] - 1) - before
        points = max(min(length, last + 1) + before, last + 1, (count - 1) * step + 1, 1)
        axes.append((step * math.ceil(points / step), step))
    bounds = circular_norms(parts, axes, operator.dilation)
    if zero_padded:
        return bounds
    # Any padding copies inputs: its norm is the root of the largest number of copies of one of them.
    bounds = bounds * math.sqrt(operator.copies())
    if operator.padding_mode == "circular":
        # The circle of H points is exact. If the stride does not divide H, take all outputs, then every s-th; and
        # where outputs wrap around, each may occur several times.
        axes, repeats = [], 1
        for length, count, step in zip(inputs, outputs, operator.stride, strict=True):
            axes.append((length, 1 if length % step else step))
            repeats *= int(torch.bincount(torch.arange(count) * step % length).max())
        bounds = torch.minimum(bounds, circular_norms(parts, axes, operator.dilation) * math.sqrt(repeats))
    return bounds


def circular_norms(parts: Tensor, axes: Sequence[tuple[int, int]], dilation: Sequence[int]) -> Tensor:
    """Norms of circular convolutions on ``axes`` of (points N, stride s), s dividing N, for each group.

    ``parts``: float64 [groups, outputs, inputs, *kernel] -> [groups]. See `grid_bounds`.
    """
    device = parts.device
    waves, frequencies, aliases = [], [], []
    for (points, step), gap, taps in zip(axes, dilation, parts.shape[3:], strict=True):
        # The product is reduced before it becomes an angle, which keeps the angle exact to one rounding.
        turns = torch.outer(torch.arange(points), torch.arange(taps) * gap) % points
        waves.append(torch.polar(torch.ones(()).double(), turns.double() * (2 * math.pi / points)).to(device))
        frequencies.append(torch.arange(points // step))
        aliases.append(torch.arange(step) * (points // step))
    grid = torch.cartesian_prod(*frequencies).view(-1, len(axes))
    # The kernel is real: opposite frequencies have the same singular values.
    periods = torch.tensor([points // step for points, step in axes])
    places = torch.tensor([math.prod(periods[axis + 1 :].tolist()) for axis in range(len(axes))])
    grid = grid[(grid * places).sum(dim=1) <= (-grid % periods * places).sum(dim=1)]
    folds = torch.cartesian_prod(*aliases).view(-1, len(axes))
    groups, outputs, inputs = parts.shape[:3]
    kernel = parts.flatten(3).permute(3, 0, 1, 2).reshape(-1, groups * outputs * inputs)  # [taps, weights]
    largest = parts.new_zeros(groups)
    size = max(1, _CHUNK // (len(folds) * kernel.shape[1]))
    for start in range(0, len(grid), size):
        some = grid[start : start + size]
        places_of = (some[:, None, :] + folds).view(-1, len(axes)).to(device)
        phases = waves[0][places_of[:, 0]]
        for axis in range(1, len(axes)):
            phases = (phases[:, :, None] * waves[axis][places_of[:, axis], None, :]).flatten(1)
        spectrum = torch.complex(phases.real @ kernel, phases.imag @ kernel)
        blocks = spectrum.view(len(some), len(folds), groups, outputs, inputs).permute(2, 0, 3, 1, 4).flatten(3)
        adjoint = blocks.mH
        gram = blocks @ adjoint if outputs <= blocks.shape[-1] else adjoint @ blocks
        # Rounding of the product and of the eigenvalues, each at most a modest multiple of its size * u * trace.
        traces = gram.diagonal(dim1=-2, dim2=-1).real.sum(dim=-1)
        rounding = 8 * (outputs + blocks.shape[-1]) * UNIT_ROUNDOFF * traces
        values = (torch.linalg.eigvalsh(gram)[..., -1] + rounding).amax(dim=1) / len(folds)
        largest = torch.maximum(largest, values)
    # Rounding of the transform, which counts where a kernel cancels: entries of at most c * u * sum_k |w_k|.
    taps = len(kernel)
    sums = torch.linalg.vector_norm(parts.flatten(3).abs().sum(dim=3).flatten(1), dim=1)
    norms: Tensor = largest.sqrt() + 4 * (taps + 8) * UNIT_ROUNDOFF * sums
    return norms

"""Small convolutions: a bound that a Cholesky factorisation proves, within 1e-7 of the norm."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from .bounds import ROUND_UP, UNIT_ROUNDOFF
from .geometry import ConvolutionMap
from .lanczos import largest_eigenvalue
from .power_iteration import lower_estimate

_CHUNK = 2**22  # numbers in memory at a time while columns are processed
_ALWAYS = 1024  # a factorisation of this size is cheap


def cholesky_bound(operator: ConvolutionMap, ceiling: float) -> float:
    """A bound for a convolution of one group whose weight is float64 with entries below 2; inf where none is found.

    With A the operator and G = A^T A (or A A^T, the smaller), n x n: a float64 Cholesky factorisation of
    t I - G' that runs to its end proves that the largest eigenvalue of G' is at most t + c_1, with
    c_1 = (n + 1) u / (1 - 2 (n + 1) u) * trace(t I - G'), u = 2**-53, for any order of summation (Rump:
    Verification of positive definiteness, BIT 46, 2006, theorem 2.3). G' is G as computed. Its columns A^T (A e_j)
    (or the product of the matrices) are sums of at most m products of exact numbers, so that
    |G' - G| <= m u / (1 - m u) |A|^T |A|, whose norm is at most c_2 = 2 m u ||A||_1 ||A||_inf.
    The subtraction from t rounds by at most c_3 = 2 u (t + max_j G'_jj).
    """
    limit = operator.cholesky_limit
    if limit is None:
        limit = 4096 if operator.weight.device.type == "cpu" else 16384
    n = min(math.prod(operator.input_shape), math.prod(operator.output_shape))
    if n > limit:
        return math.inf
    if n > _ALWAYS and ceiling <= 1.005 * float(lower_estimate(operator, steps=100)[0]):
        return math.inf  # the grid's bound is within half a percent of the norm, which is good enough
    # cuDNN may compute convolutions by other formulas (Winograd, FFT) than sums of products.
    with torch.backends.cudnn.flags(enabled=False):
        gram = gram_matrix(operator)
    magnitude = operator.weight.abs()
    rest = tuple(range(2, magnitude.dim()))
    copies = operator.copies()
    sums = [float(magnitude.sum(dim=(axis, *rest)).max()) for axis in (0, 1)]
    terms = copies * max(operator.weight.shape[:2]) * math.prod(operator.kernel_size) + 2
    diagonal = gram.diagonal()
    product_error = 4 * terms * UNIT_ROUNDOFF * sums[0] * sums[1] * copies
    estimate = max(largest_eigenvalue(gram), product_error)  # the operator may be zero

    def verify(margin: float) -> float | None:
        level = estimate * (1 + margin)
        shifted = gram.neg()
        shifted.diagonal().add_(level)
        _, failed = torch.linalg.cholesky_ex(shifted)
        if bool(failed):
            return None
        factor = (n + 1) * UNIT_ROUNDOFF
        trace = float((level - diagonal).sum())
        slack = factor / (1 - 2 * factor) * trace + 2 * UNIT_ROUNDOFF * (level + float(diagonal.max()))
        return math.sqrt(level + slack * ROUND_UP + product_error)

    # The estimate is nearly always close enough at once; otherwise the level is searched for up to 1e-6.
    best, margin, low, high = math.inf, 1e-7, 0.0, ceiling**2 / estimate - 1
    while margin < high:
        bound = verify(margin)
        if bound is None:
            low = margin
        else:
            best, high = bound, margin
        if high - low <= 1e-6:
            break
        margin = 8 * low if 0 < 8 * low < high else (low + high) / 2
    return best


def gram_matrix(operator: ConvolutionMap) -> Tensor:
    """A^T A or A A^T, the smaller one, [n, n] in float64."""
    n_in, n_out = math.prod(operator.input_shape), math.prod(operator.output_shape)
    n, larger = min(n_in, n_out), max(n_in, n_out)
    entries = operator.weight.numel() * math.prod(operator.plain_sizes()[1])
    if n * larger <= min(8 * entries, 2**26):
        matrix = dense_matrix(operator)
        return matrix @ matrix.t() if len(matrix) == n else matrix.t() @ matrix
    first: Callable[[Tensor], Tensor] = operator.apply
    second: Callable[[Tensor], Tensor] = operator.adjoint
    shape = operator.input_shape
    if n_out < n_in:
        first, second, shape = operator.adjoint, operator.apply, operator.output_shape
    gram = torch.empty(n, n, dtype=torch.float64, device=operator.weight.device)
    rows = max(1, _CHUNK // larger)
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        basis = gram.new_zeros(stop - start, n)
        basis[torch.arange(stop - start), torch.arange(start, stop)] = 1
        gram[start:stop] = second(first(basis.view(-1, *shape))).flatten(1)
    return gram


def dense_matrix(operator: ConvolutionMap) -> Tensor:
    """The plain convolution of one group as a matrix, [outputs, inputs]; for a transposed one, its adjoint's."""
    inputs, outputs = operator.plain_sizes()
    reads = torch.zeros(1, 1, dtype=torch.int64)  # [output, tap] -> input, -1 for none
    for axis, (length, count) in enumerate(zip(inputs, outputs, strict=True)):
        before, after = operator.padding[axis]
        places = torch.arange(-before, length + after)
        if operator.padding_mode == "zeros":
            # A transposed convolution with output padding reaches past its padding.
            places = torch.cat([places, torch.arange(length + after, length + after + operator.output_padding[axis])])
            places = torch.where((places >= 0) & (places < length), places, -1)
        else:
            numbers = torch.arange(length, dtype=torch.float64).view(1, 1, -1)
            places = functional.pad(numbers, (before, after), mode=operator.padding_mode).flatten().long()
        taps = torch.arange(operator.kernel_size[axis]) * operator.dilation[axis]
        along = places[torch.arange(count)[:, None] * operator.stride[axis] + taps]
        ahead, behind = reads[:, None, :, None], along[None, :, None, :]
        merged = torch.where((ahead >= 0) & (behind >= 0), ahead * length + behind, -1)
        reads = merged.flatten(0, 1).flatten(1)
    kernel = operator.weight.flatten(2)
    channels_out, channels_in, taps_in_all = kernel.shape
    shape = (channels_out, len(reads), channels_in, math.prod(inputs))
    matrix = torch.zeros(shape, dtype=torch.float64, device=kernel.device)
    by_place = matrix.permute(1, 3, 0, 2)
    for tap in range(taps_in_all):
        rows = (reads[:, tap] >= 0).nonzero().flatten()
        by_place[rows.to(kernel.device), reads[rows, tap].to(kernel.device)] += kernel[:, :, tap]
    return matrix.flatten(2).flatten(0, 1)

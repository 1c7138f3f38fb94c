"""Convolutions of any size: a bound that a Cholesky factorisation proves, within 1e-5 of the norm or better."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from ...terminal import Progress
from .banded import PANEL, prove_level
from .bounds import ROUND_UP, UNIT_ROUNDOFF
from .geometry import ConvolutionMap
from .gram import GramMatrix
from .kept import keep_bound
from .lanczos import largest_eigenvalue
from .layout import Layout, choose_layout
from .proving import proof_settings
from .reads import AxisPart, Side, split_axis

_MARGIN = 1e-7  # of the first level that is tried above the estimate
_NEAR = 4e-5  # a bound on the grid that is so close to the norm is good enough, where a factorisation is not cheap
_ENOUGH = 1.7e-4  # a margin, where a factorisation is not cheap: the norm is then found to half of it
_CHEAP = 1e10  # operations
_KEPT = 1e9  # operations from which on a proof is kept, where a folder is given
_SHOWN = 3e11  # operations of a proof whose progress is shown
_EIGENVALUES = 256  # unknowns up to which all eigenvalues are computed
_DENSE = 2048  # unknowns up to which a matrix is multiplied as a whole
_LONGEST = 2**26  # entries of a table of one axis

Product = tuple[AxisPart, ...]


@dataclass(frozen=True)
class FactorizationPlan:
    """One of A^T A and A A^T, in parts that are not coupled with one another; equal ones are there once."""

    side: Side
    parts: tuple[tuple[Product, Layout], ...]

    @property
    def operations(self) -> float:
        return sum(layout.operations for _, layout in self.parts)

    @property
    def cost(self) -> float:
        return sum(layout.cost for _, layout in self.parts)

    @property
    def memory(self) -> float:
        """More than is in use at a time: the parts' matrices stay, only one is factored at once."""
        return sum(layout.memory for _, layout in self.parts)


def cholesky_bound(operator: ConvolutionMap, ceiling: float) -> float:
    """A bound for a convolution of one group whose weight is float64 with entries below 2; inf where none is found.

    With A the operator and G = A^T A or A A^T (their norms are the same), a factorisation of t I - G', with G' as
    computed, proves that the largest eigenvalue of G' is at most t + c (`prove_level`). Let |A| be A for the weight's
    magnitudes. Entries of G' are sums of at most m - 2 products of two kernel taps, in some order (products that vanish
    add no rounding; taps that padding lets meet may be added first), so that |G' - G| <= 2 m u / (1 - 2 m u) |A|^T |A|,
    whose norm is at most c' = 4 m u || |A| ||_1 || |A| ||_inf. Hence

        ||A||^2 <= t + c + c'.

    G is a direct sum over parts of positions that do not meet, as the even and odd ones for a dilation of 2; each part
    is proven for the same t. Where A A^T is cheaper to factor than A^T A, it is taken. Zero, reflected and replicated
    padding keep G banded. Circular padding couples the ends, and the positions are taken from both ends in turns.
    """
    settings = proof_settings()
    limit = operator.cholesky_limit
    if limit is not None and min(math.prod(operator.input_shape), math.prod(operator.output_shape)) > limit:
        return math.inf
    plan = _make_plan(operator)
    if plan is None:
        return math.inf
    if not plan.parts:  # nothing is read
        return 0.0
    operations = plan.operations if limit is None else 0.0
    if not settings.allows(operations, plan.memory, operator.weight.device):
        return math.inf
    if plan.operations < _KEPT:
        return _prove(operator, plan, ceiling)
    return keep_bound(operator, settings.cache_dir, lambda: _prove(operator, plan, ceiling))


def _prove(operator: ConvolutionMap, plan: FactorizationPlan, ceiling: float) -> float:
    """The least level that is proven, as far as it is searched for."""
    weight = operator.weight if plan.side == "inputs" else operator.weight.transpose(0, 1)
    matrices = [GramMatrix(weight, product, layout) for product, layout in plan.parts]
    product_error = _product_error(operator, plan)
    estimates = [_estimate(matrix) for matrix in matrices]
    estimate, error = max(estimates)
    estimate = max(estimate, product_error)  # the operator may be zero
    cheap = plan.operations <= _CHEAP
    if not cheap and ceiling <= (1 + _NEAR) * math.sqrt(estimate):
        return math.inf

    def verify(margin: float) -> float | None:
        level = estimate * (1 + margin)
        slack = 0.0
        with _show(operator, plan) as advance:
            for matrix in matrices:
                found = prove_level(matrix, matrix.layout.bandwidth, level, advance)
                if found is None:
                    return None
                slack = max(slack, found)
        return math.sqrt(level + slack + product_error)

    # The estimate is nearly always close enough at once; otherwise the level is searched for.
    precision = 1e-6 if cheap else 2e-5
    best, low, high = math.inf, 0.0, ceiling**2 / estimate - 1
    margin = min(max(_MARGIN, 2 * error / estimate), precision)
    while margin < high:
        bound = verify(margin)
        if bound is None:
            low = margin
        else:
            best, high = bound, margin
        if high - low <= precision or (not cheap and high <= _ENOUGH):
            break
        margin = 8 * low if 0 < 8 * low < high else (low + high) / 2
    return best


def _estimate(matrix: GramMatrix) -> tuple[float, float]:
    """The largest eigenvalue from below, and the error of it."""
    vector = matrix.make_vector()
    if matrix.blocks == 1 and matrix.size <= _DENSE:
        dense = matrix.make_dense()
        if matrix.size <= _EIGENVALUES:
            return float(torch.linalg.eigvalsh(dense)[-1]), 0.0
        return largest_eigenvalue(lambda x: dense @ x, vector)
    return largest_eigenvalue(matrix.multiply, vector)


def _make_plan(operator: ConvolutionMap) -> FactorizationPlan | None:
    """The cheaper one of A^T A and A A^T; None where even its tables would be too large."""
    sides: tuple[Side, ...] = ("inputs", "outputs")
    plans = []
    for side in sides:
        axes = []
        for axis, (length, count) in enumerate(zip(*operator.plain_sizes(), strict=True)):
            taps = operator.kernel_size[axis]
            if max(length, count) * taps > _LONGEST:
                return None
            axes.append(split_axis(operator, axis, side))
        outer, channels = operator.weight.shape[:2] if side == "inputs" else operator.weight.shape[1::-1]
        products = itertools.product(*axes)
        parts = tuple((product, choose_layout(channels, outer, product, PANEL)) for product in products)
        plans.append(FactorizationPlan(side, parts))
    return min(plans, key=lambda plan: plan.cost)


def _product_error(operator: ConvolutionMap, plan: FactorizationPlan) -> float:
    """c' of `cholesky_bound`: what the entries of G are off by rounding, as a norm."""
    magnitude = operator.weight.abs()
    rest = tuple(range(2, magnitude.dim()))
    sums = [float(magnitude.sum(dim=(axis, *rest)).max()) for axis in (0, 1)]
    contracted = operator.weight.shape[0 if plan.side == "inputs" else 1]
    products = max(math.prod(part.products for part in product) for product, _ in plan.parts)
    terms = contracted * products + 2
    return 4 * terms * UNIT_ROUNDOFF * sums[0] * sums[1] * operator.copies() * ROUND_UP


@contextmanager
def _show(operator: ConvolutionMap, plan: FactorizationPlan) -> Iterator[Callable[[], object]]:
    """Return a function to call for each block column of a factorisation; it shows a bar if that takes long."""
    if not proof_settings().verbose or plan.operations < _SHOWN:
        yield lambda: None
        return
    shapes = ["x".join(map(str, shape)) for shape in (operator.input_shape, operator.output_shape)]
    total = sum(layout.blocks for _, layout in plan.parts)
    with Progress(total, f"proving the norm of {' -> '.join(shapes)}", kept=False) as progress:
        yield progress.advance

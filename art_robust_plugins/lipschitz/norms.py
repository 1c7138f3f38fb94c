"""Norms (L2 to L2) of linear and convolution layers, on the operator that torch applies at a given input size.

Two kinds, never to be confused:

- `lower_estimate`: power iteration. Cheap, differentiable in the weight, a **lower** bound: for training only.
- `Operator.upper_bound`: proven, in float64, rounding included: for certificates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

ROUND_UP = 1 + 1e-9
"""Factor on every proven bound. It exceeds by far the relative rounding of float64 in an SVD, a symmetric eigenvalue
problem, a discrete Fourier transform (each a modest multiple of n * 2**-53), or a million additions."""

UNIT_ROUNDOFF = 2.0**-53
"""u: one float64 operation is exact to this factor."""

_MODES = ("zeros", "circular", "reflect", "replicate")
_CHUNK = 2**22  # numbers held at a time while frequencies or columns are worked through
_ALWAYS = 1024  # a factorisation of this size costs next to nothing
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class NormBound:
    """A proven upper bound of an operator's norm, and the method that gave it.

    ``method`` is ``"svd"``, ``"grid"`` (convolution on a frequency grid), ``"cholesky"`` (verified by a factorisation)
    or ``"exact"`` (a formula).
    """

    value: float
    method: str


class Operator(Protocol):
    """A linear map of one sample, of ``input_shape`` to ``output_shape``, given by a weight."""

    weight: Tensor
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def apply(self, x: Tensor) -> Tensor:
        """[N, *input_shape] -> [N, *output_shape], differentiable in the weight."""
        ...

    def adjoint(self, y: Tensor) -> Tensor:
        """[N, *output_shape] -> [N, *input_shape]; no gradient is needed."""
        ...

    def upper_bound(self) -> NormBound:
        """A proven upper bound of the norm."""
        ...


def lower_estimate(operator: Operator, vector: Tensor | None = None, *, steps: int = 1) -> tuple[Tensor, Tensor]:
    """A lower bound of an operator's norm by power iteration, differentiable in the weight.

    The iteration runs without gradient; then ||A v|| is computed with it, so that the gradient is that of the norm
    once v has converged. It is for training (Tsuzuku, Sato, Sugiyama: Lipschitz-margin training, arXiv 1802.04034,
    NeurIPS 2018): a certificate needs `Operator.upper_bound`.

    Args:
        operator: a `Linear` or a `Convolution`.
        vector: what the previous call returned, [*input_shape], for a warm start; None starts at random, with a seed.
        steps: number of iterations.

    Returns:
        the estimate (a scalar), and the vector [*input_shape] of norm 1 for the next call.

    Raises:
        ValueError: for a vector of another shape, or no steps.

    Example:
        >>> weight = torch.tensor([[3.0, 0.0], [0.0, 4.0]], requires_grad=True)
        >>> norm, vector = lower_estimate(Linear(weight), steps=50)
        >>> norm
        tensor(4., grad_fn=<LinalgVectorNormBackward0>)
    """
    if steps < 1:
        raise ValueError(f"steps: got {steps}, expected at least 1.")
    weight = operator.weight
    with torch.no_grad():
        if vector is None:
            vector = _random(operator.input_shape).to(weight)
        elif tuple(vector.shape) != tuple(operator.input_shape):
            raise ValueError(f"vector: got shape {tuple(vector.shape)}, expected {tuple(operator.input_shape)}.")
        vector = vector.to(weight)
        smallest = torch.finfo(weight.dtype).tiny
        for _ in range(steps):
            image = operator.apply(vector[None])
            back = operator.adjoint(image / torch.linalg.vector_norm(image).clamp_min(smallest))[0]
            length = torch.linalg.vector_norm(back)
            # A zero operator has no direction: keep the old one, for when the weight moves away from zero.
            vector = torch.where(length > smallest, back / length.clamp_min(smallest), vector)
    return torch.linalg.vector_norm(operator.apply(vector[None])), vector


class Linear:
    """The map x -> W x of vectors.

    Args:
        weight: W, [outputs, inputs].

    Raises:
        ValueError: for a weight of another rank, or one that is not real floating point.

    Example:
        >>> Linear(torch.tensor([[3.0, 0.0], [0.0, 4.0]])).upper_bound().value
        4.000000004
    """

    def __init__(self, weight: Tensor) -> None:
        _check_weight(weight)
        if weight.dim() != 2:
            raise ValueError(f"weight: got shape {tuple(weight.shape)}, expected [outputs, inputs].")
        self.weight = weight
        self.input_shape: tuple[int, ...] = (weight.shape[1],)
        self.output_shape: tuple[int, ...] = (weight.shape[0],)

    def apply(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()

    def adjoint(self, y: Tensor) -> Tensor:
        return y @ self.weight

    @torch.no_grad()
    def upper_bound(self) -> NormBound:
        """The largest singular value, from a float64 SVD.

        Raises:
            ValueError: for a weight with NaN or infinity.
        """
        weight, scale = _scaled(self.weight)
        return NormBound(float(torch.linalg.matrix_norm(weight, 2)) * scale * ROUND_UP, "svd")


class Convolution:
    """A 1-, 2- or 3-dimensional convolution, plain or transposed, on inputs of a given size. The bias has no part.

    Args:
        weight: as torch's modules keep it: [outputs, inputs / groups, *kernel], transposed [inputs, outputs / groups,
            *kernel].
        input_size: the spatial size of the input, one to three numbers; the kernel has as many dimensions.
        stride, dilation, output_padding: a number, or one for each dimension.
        padding: a number, ``"same"``, ``"valid"``, one number for each dimension, or one pair (before, after) for each.
        groups: number of groups.
        transposed: a transposed convolution.
        padding_mode: ``"zeros"``, ``"circular"``, ``"reflect"`` or ``"replicate"``.
        cholesky_limit: up to which number of inputs or outputs of a group (the smaller of both) the bound is refined
            by a Cholesky factorisation of a matrix of that size (above 1024, unless the bound on the grid is already
            within half a percent). None: 4096 on a CPU, 16384 on a GPU; 0: never.

    Raises:
        ValueError: for arguments that do not fit together, or that torch would not accept either.

    Example:
        >>> operator = Convolution(torch.ones(1, 1, 3, 3), (8, 8), padding=1)
        >>> operator.output_shape, round(operator.upper_bound().value, 6)
        ((1, 8, 8), 8.290859)
    """

    def __init__(
        self,
        weight: Tensor,
        input_size: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        padding: str | int | Sequence[int] | Sequence[tuple[int, int]] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        transposed: bool = False,
        output_padding: int | Sequence[int] = 0,
        padding_mode: str = "zeros",
        cholesky_limit: int | None = None,
    ) -> None:
        _check_weight(weight)
        size = tuple(int(length) for length in input_size)
        dimensions = len(size)
        if not 1 <= dimensions <= 3 or weight.dim() != dimensions + 2:
            raise ValueError(
                f"weight: got shape {tuple(weight.shape)} for inputs of size {size}, expected one to three spatial "
                f"dimensions, the same number in both."
            )
        if groups < 1 or weight.shape[0] % groups:
            raise ValueError(f"groups: got {groups}, expected a divisor of the weight's {weight.shape[0]} channels.")
        if padding_mode not in _MODES:
            raise ValueError(f"padding_mode: got {padding_mode!r}, expected one of {', '.join(map(repr, _MODES))}.")
        if transposed and padding_mode != "zeros":
            raise ValueError(f"padding_mode: got {padding_mode!r} for a transposed convolution, expected 'zeros'.")
        self.weight = weight
        self.kernel_size = tuple(weight.shape[2:])
        self.stride = _for_each(stride, dimensions, "stride", smallest=1)
        self.dilation = _for_each(dilation, dimensions, "dilation", smallest=1)
        self.output_padding = _for_each(output_padding, dimensions, "output_padding", smallest=0)
        self.groups, self.transposed, self.padding_mode = groups, transposed, padding_mode
        self.padding = self._pairs(padding, dimensions)
        self.cholesky_limit = cholesky_limit
        if any(self.output_padding) and not transposed:
            raise ValueError(f"output_padding: got {output_padding!r} for a plain convolution, expected 0.")
        if transposed and any(before != after for before, after in self.padding):
            raise ValueError(f"padding: got {padding!r} for a transposed convolution, expected the same on both sides.")
        if padding_mode != "zeros":
            _check_padding(size, self.padding, padding_mode)
        output_size = tuple(self._outputs(axis, length) for axis, length in enumerate(size))
        if min(size) < 1 or min(output_size) < 1:
            raise ValueError(f"input_size: got {size}, which gives outputs of size {output_size}, expected at least 1.")
        first, second = weight.shape[0], weight.shape[1] * groups
        self.input_shape: tuple[int, ...] = (first if transposed else second, *size)
        self.output_shape: tuple[int, ...] = (second if transposed else first, *output_size)

    def with_weight(self, weight: Tensor, groups: int | None = None) -> Convolution:
        """The same convolution with another weight of the same kernel size, and with other groups."""
        return Convolution(
            weight,
            self.input_shape[1:],
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups if groups is None else groups,
            transposed=self.transposed,
            output_padding=self.output_padding,
            padding_mode=self.padding_mode,
            cholesky_limit=self.cholesky_limit,
        )

    def apply(self, x: Tensor) -> Tensor:
        x = self._pad(x)
        output: Tensor = torch.ops.aten.convolution(x, self.weight.to(x.dtype), None, *self._geometry())
        return output

    @torch.no_grad()
    def adjoint(self, y: Tensor) -> Tensor:
        shape = (len(y), self.input_shape[0], *self._padded_size())
        like = y.new_empty(1).expand(shape)  # only its shape is read
        weight = self.weight.detach().to(y.dtype)
        mask = [True, False, False]
        x = torch.ops.aten.convolution_backward(y, like, weight, None, *self._geometry(), mask)[0]
        return self._unpad(cast(Tensor, x))

    @torch.no_grad()
    def upper_bound(self) -> NormBound:
        """The smaller of the bound on the frequency grid and, for small operators, the Cholesky-verified one.

        Groups act on different channels, so the norm is the largest of theirs. Each group is refined only while its
        grid bound exceeds what is already proven for another. A box (all taps of a channel's kernel alike, but for the
        middle one) has a formula, which for zero and circular padding gives the norm itself.

        Raises:
            ValueError: for a weight with NaN or infinity.
        """
        weight, scale = _scaled(self._without_idle_taps())
        if not bool(weight.any()):
            return NormBound(0.0, "exact")
        parts = weight.view(self.groups, -1, *weight.shape[1:])
        grid = self._grid_bounds(parts)
        best, method, refined = 0.0, "grid", torch.empty(0)
        for index in grid.argsort(descending=True).tolist():
            coarse = float(grid[index])
            if coarse <= best:
                break
            if torch.equal(parts[index], refined):  # groups that are alike are next to each other here
                continue
            refined = parts[index]
            single = self.with_weight(refined, groups=1)
            box, tight = single._box_bound()
            fine = math.inf if tight else single._verified_bound(min(coarse, box))
            bound, how = min((box, "exact" if tight else "grid"), (coarse, "grid"), (fine, "cholesky"))
            if bound > best:
                best, method = bound, how
        return NormBound(best * scale * ROUND_UP, method)

    # Geometry

    def _pairs(self, padding: Any, dimensions: int) -> tuple[tuple[int, int], ...]:
        if isinstance(padding, str):
            if padding not in ("same", "valid") or self.transposed:
                raise ValueError(f"padding: got {padding!r}, expected numbers, 'same' or 'valid' (plain ones only).")
            if padding == "valid":
                return ((0, 0),) * dimensions
            if any(step != 1 for step in self.stride):
                raise ValueError(f"padding: got 'same' with stride {self.stride}, expected stride 1.")
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return tuple((total // 2, total - total // 2) for total in totals)  # torch's odd pixel is at the end
        sides = [padding] * dimensions if isinstance(padding, int) else list(padding)
        pairs = tuple((side, side) if isinstance(side, int) else tuple(side) for side in sides)
        if len(pairs) != dimensions or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
            raise ValueError(f"padding: got {padding!r}, expected a number or pair for each dimension, none negative.")
        return cast(tuple[tuple[int, int], ...], pairs)

    def _outputs(self, axis: int, length: int) -> int:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
        before, after = self.padding[axis]
        if self.transposed:
            return (length - 1) * self.stride[axis] - before - after + reach + self.output_padding[axis] + 1
        return (length + before + after - reach - 1) // self.stride[axis] + 1

    def _outer_padding(self) -> list[int] | None:
        """What must be padded before the convolution, in `functional.pad`'s order; None where torch's own will do."""
        if self.padding_mode == "zeros" and all(before == after for before, after in self.padding):
            return None
        return [side for pair in reversed(self.padding) for side in pair]

    def _padded_size(self) -> tuple[int, ...]:
        size = self.input_shape[1:]
        if self._outer_padding() is None:
            return size
        return tuple(length + sum(pair) for length, pair in zip(size, self.padding, strict=True))

    def _pad(self, x: Tensor) -> Tensor:
        sides = self._outer_padding()
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        return x if sides is None else functional.pad(x, sides, mode=mode)

    def _unpad(self, x: Tensor) -> Tensor:
        """The adjoint of `_pad`."""
        if self._outer_padding() is None:
            return x
        with torch.enable_grad():
            inner = x.new_zeros(len(x), *self.input_shape, requires_grad=True)
            (gradient,) = torch.autograd.grad(self._pad(inner), inner, x)
        return gradient

    def _geometry(self) -> tuple[Any, ...]:
        inner = [0] * len(self.padding) if self._outer_padding() else [before for before, _ in self.padding]
        return self.stride, inner, self.dilation, self.transposed, self.output_padding, self.groups

    def _without_idle_taps(self) -> Tensor:
        """The weight with zeros for kernel taps that meet nothing but zero padding, at every output."""
        weight = self.weight.detach()
        if self.padding_mode != "zeros":
            return weight
        inputs, outputs = self._plain_sizes()
        for axis, (length, count) in enumerate(zip(inputs, outputs, strict=True)):
            first = torch.arange(self.kernel_size[axis]) * self.dilation[axis] - self.padding[axis][0]
            read = first[:, None] + torch.arange(count) * self.stride[axis]
            used = ((read >= 0) & (read < length)).any(dim=1).to(weight.device)
            weight = weight * used.view(-1, *[1] * (len(inputs) - 1 - axis))
        return weight

    def _plain_sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Input and output size of the plain convolution of which a transposed one is the adjoint."""
        sizes = self.input_shape[1:], self.output_shape[1:]
        return sizes[::-1] if self.transposed else sizes

    # The bound on a grid of frequencies

    def _grid_bounds(self, parts: Tensor) -> Tensor:
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
        inputs, outputs = self._plain_sizes()
        zero_padded = self.padding_mode == "zeros"
        padded = inputs if zero_padded else self._padded_size()
        axes = []
        for axis, (length, count) in enumerate(zip(padded, outputs, strict=True)):
            before = self.padding[axis][0] if zero_padded else 0
            step = self.stride[axis]
            last = (count - 1) * step + self.dilation[axis] * (self.kernel_size[axis] - 1) - before
            points = max(min(length, last + 1) + before, last + 1, (count - 1) * step + 1, 1)
            axes.append((step * math.ceil(points / step), step))
        bounds = _grid_norms(parts, axes, self.dilation)
        if zero_padded:
            return bounds
        # Any padding copies inputs: its norm is the root of the largest number of copies of one of them.
        bounds = bounds * math.sqrt(self._copies())
        if self.padding_mode == "circular":
            # The circle of H points is exact. If the stride does not divide H, take all outputs, then every s-th; and
            # where outputs wrap around, each may occur several times.
            axes, repeats = [], 1
            for length, count, step in zip(inputs, outputs, self.stride, strict=True):
                axes.append((length, 1 if length % step else step))
                repeats *= int(torch.bincount(torch.arange(count) * step % length).max())
            bounds = torch.minimum(bounds, _grid_norms(parts, axes, self.dilation) * math.sqrt(repeats))
        return bounds

    def _copies(self) -> int:
        """How often the padding repeats one input, at most."""
        copies = 1
        for length, pair in zip(self.input_shape[1:], self.padding, strict=True):
            if self.padding_mode != "zeros":
                positions = torch.arange(length, dtype=torch.float64).view(1, 1, -1)
                padded = functional.pad(positions, pair, mode=self.padding_mode)
                copies *= int(torch.bincount(padded.flatten().long()).max())
        return copies

    # The bound of a box

    def _box_bound(self) -> tuple[float, bool]:
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
        kernel = self.weight.detach()
        taps = kernel.flatten()
        middle = len(taps) // 2
        sides = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        centred = all(pair == (side // 2, side // 2) for pair, side in zip(self.padding, sides, strict=True))
        odd = all(size % 2 for size in self.kernel_size)
        plain = not self.transposed and set(self.stride) == {1} and kernel.shape[:2] == (1, 1) and kernel.dim() == 4
        if not (plain and odd and centred and max(self.input_shape) <= _ALWAYS):
            return math.inf, False
        others = torch.cat([taps[:middle], taps[middle + 1 :]])
        if not len(others) or bool((others != others[0]).any()):
            return math.inf, False
        level, extra = float(others[0]), float(taps[middle] - others[0])
        sums = [self._window_sums(axis) for axis in (0, 1)]
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

    def _window_sums(self, axis: int) -> Tensor:
        """The matrix [n, n] that sums the window of each place along one axis, with this padding."""
        length = self.input_shape[1 + axis]
        numbers = torch.arange(1, length + 1, dtype=torch.float64).view(1, 1, -1)
        mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
        padded = functional.pad(numbers, self.padding[axis], mode=mode).flatten().long()
        taps = torch.arange(self.kernel_size[axis]) * self.dilation[axis]
        read = padded[torch.arange(length)[:, None] + taps]
        matrix = torch.zeros(length, length + 1, dtype=torch.float64)  # column 0 takes what zero padding reads
        matrix.scatter_add_(1, read, torch.ones(read.shape, dtype=torch.float64))
        return matrix[:, 1:].to(self.weight.device)

    # The verified bound

    def _verified_bound(self, ceiling: float) -> float:
        """A bound for a convolution of one group whose weight is float64 with entries below 2; inf where none is found.

        With A the operator and G = A^T A (or A A^T, the smaller), n x n: a float64 Cholesky factorisation of
        t I - G' that runs to its end proves that the largest eigenvalue of G' is at most t + c_1, with
        c_1 = (n + 1) u / (1 - 2 (n + 1) u) * trace(t I - G'), u = 2**-53, for any order of summation (Rump:
        Verification of positive definiteness, BIT 46, 2006, theorem 2.3). G' is G as computed. Its columns A^T (A e_j)
        (or the product of the matrices) are sums of at most m products of exact numbers, so that
        |G' - G| <= m u / (1 - m u) |A|^T |A|, whose norm is at most c_2 = 2 m u ||A||_1 ||A||_inf.
        The subtraction from t rounds by at most c_3 = 2 u (t + max_j G'_jj).
        """
        limit = self.cholesky_limit
        if limit is None:
            limit = 4096 if self.weight.device.type == "cpu" else 16384
        n = min(math.prod(self.input_shape), math.prod(self.output_shape))
        if n > limit:
            return math.inf
        if n > _ALWAYS and ceiling <= 1.005 * float(lower_estimate(self, steps=100)[0]):
            return math.inf  # the grid's bound is within half a percent of the truth: leave it at that
        # cuDNN may compute convolutions by other formulas (Winograd, FFT) than sums of products.
        with torch.backends.cudnn.flags(enabled=False):
            gram = self._gram()
        magnitude = self.weight.abs()
        rest = tuple(range(2, magnitude.dim()))
        copies = self._copies()
        sums = [float(magnitude.sum(dim=(axis, *rest)).max()) for axis in (0, 1)]
        terms = copies * max(self.weight.shape[:2]) * math.prod(self.kernel_size) + 2
        diagonal = gram.diagonal()
        product_error = 4 * terms * UNIT_ROUNDOFF * sums[0] * sums[1] * copies
        estimate = max(_largest_eigenvalue(gram), product_error)  # the operator may be zero

        def verified(margin: float) -> float | None:
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
            bound = verified(margin)
            if bound is None:
                low = margin
            else:
                best, high = bound, margin
            if high - low <= 1e-6:
                break
            margin = 8 * low if 0 < 8 * low < high else (low + high) / 2
        return best

    def _gram(self) -> Tensor:
        """A^T A or A A^T, the smaller one, [n, n] in float64."""
        n_in, n_out = math.prod(self.input_shape), math.prod(self.output_shape)
        n, larger = min(n_in, n_out), max(n_in, n_out)
        entries = self.weight.numel() * math.prod(self._plain_sizes()[1])
        if n * larger <= min(8 * entries, 2**26):
            matrix = self._matrix()
            return matrix @ matrix.t() if len(matrix) == n else matrix.t() @ matrix
        first: Callable[[Tensor], Tensor] = self.apply
        second: Callable[[Tensor], Tensor] = self.adjoint
        shape = self.input_shape
        if n_out < n_in:
            first, second, shape = self.adjoint, self.apply, self.output_shape
        gram = torch.empty(n, n, dtype=torch.float64, device=self.weight.device)
        rows = max(1, _CHUNK // larger)
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            basis = gram.new_zeros(stop - start, n)
            basis[torch.arange(stop - start), torch.arange(start, stop)] = 1
            gram[start:stop] = second(first(basis.view(-1, *shape))).flatten(1)
        return gram

    def _matrix(self) -> Tensor:
        """The plain convolution of one group as a matrix, [outputs, inputs]; for a transposed one, its adjoint's."""
        inputs, outputs = self._plain_sizes()
        reads = torch.zeros(1, 1, dtype=torch.int64)  # [output, tap] -> input, -1 for none
        for axis, (length, count) in enumerate(zip(inputs, outputs, strict=True)):
            before, after = self.padding[axis]
            places = torch.arange(-before, length + after)
            if self.padding_mode == "zeros":
                # A transposed convolution with output padding reaches past its padding.
                places = torch.cat([places, torch.arange(length + after, length + after + self.output_padding[axis])])
                places = torch.where((places >= 0) & (places < length), places, -1)
            else:
                numbers = torch.arange(length, dtype=torch.float64).view(1, 1, -1)
                places = functional.pad(numbers, (before, after), mode=self.padding_mode).flatten().long()
            taps = torch.arange(self.kernel_size[axis]) * self.dilation[axis]
            along = places[torch.arange(count)[:, None] * self.stride[axis] + taps]
            ahead, behind = reads[:, None, :, None], along[None, :, None, :]
            merged = torch.where((ahead >= 0) & (behind >= 0), ahead * length + behind, -1)
            reads = merged.flatten(0, 1).flatten(1)
        kernel = self.weight.flatten(2)
        channels_out, channels_in, taps_in_all = kernel.shape
        shape = (channels_out, len(reads), channels_in, math.prod(inputs))
        matrix = torch.zeros(shape, dtype=torch.float64, device=kernel.device)
        by_place = matrix.permute(1, 3, 0, 2)
        for tap in range(taps_in_all):
            rows = (reads[:, tap] >= 0).nonzero().flatten()
            by_place[rows.to(kernel.device), reads[rows, tap].to(kernel.device)] += kernel[:, :, tap]
        return matrix.flatten(2).flatten(0, 1)


def operator_of(module: nn.Module, input_shape: Sequence[int]) -> Linear | Convolution:
    """The operator of a linear or convolution module for one sample of ``input_shape`` ([inputs] or [inputs, *size]).

    Raises:
        TypeError: for another type of module.
        ValueError: for a shape that does not fit the module.

    Example:
        >>> operator_of(nn.Conv2d(3, 8, 3, padding="same"), (3, 32, 32)).output_shape
        (8, 32, 32)
    """
    shape = tuple(input_shape)
    operator: Linear | Convolution
    if isinstance(module, nn.Linear):
        operator = Linear(module.weight)
    elif isinstance(module, _CONVOLUTIONS + _TRANSPOSED):
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


def _grid_norms(parts: Tensor, axes: Sequence[tuple[int, int]], dilation: Sequence[int]) -> Tensor:
    """Norms of circular convolutions on ``axes`` of (points N, stride s), s dividing N, for each group.

    ``parts``: float64 [groups, outputs, inputs, *kernel] -> [groups]. See `Convolution._grid_bounds`.
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


def _largest_eigenvalue(matrix: Tensor, steps: int = 300) -> float:
    """A close estimate (from below) of the largest eigenvalue of a symmetric matrix, by Lanczos if it is large."""
    n = len(matrix)
    if n <= 256:
        return float(torch.linalg.eigvalsh(matrix)[-1])
    vector = _random((n,)).to(matrix)
    basis = matrix.new_zeros(min(steps, n), n)
    basis[0] = vector / torch.linalg.vector_norm(vector)
    diagonal: list[float] = []
    side: list[float] = []
    value = 0.0
    for step in range(1, len(basis) + 1):
        vector = matrix @ basis[step - 1]
        diagonal.append(float(vector @ basis[step - 1]))
        for _ in range(2):  # once is not enough against rounding
            vector = vector - basis[:step].t() @ (basis[:step] @ vector)
        rest = float(torch.linalg.vector_norm(vector))
        last = step == len(basis) or rest <= 1e-12 * diagonal[0]
        if last or step % 10 == 0:
            small = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
            values, vectors = torch.linalg.eigh(small + _off_diagonal(side))
            value = float(values[-1])
            if last or rest * abs(float(vectors[-1, -1])) <= 1e-8 * value:
                break
        side.append(rest)
        basis[step] = vector / rest
    return value


def _off_diagonal(side: list[float]) -> Tensor:
    values = torch.tensor(side, dtype=torch.float64)
    return torch.diag(values, 1) + torch.diag(values, -1)


def _random(shape: Sequence[int]) -> Tensor:
    """A fixed direction, float64 on the CPU; a stream of its own leaves the caller's alone."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _scaled(weight: Tensor) -> tuple[Tensor, float]:
    """The weight in float64 over a power of two, its largest entry in [1, 2), so that squares do not underflow."""
    weight = weight.detach().double()
    largest = float(weight.abs().max()) if weight.numel() else 0.0
    if not math.isfinite(largest):
        raise ValueError("weight: got NaN or infinity, expected finite numbers.")
    scale = 2.0 ** (math.frexp(largest)[1] - 1)
    return weight / scale, scale


def _check_weight(weight: Tensor) -> None:
    if not weight.is_floating_point():
        raise ValueError(f"weight: got values of type {weight.dtype}, expected real floating point.")


def _for_each(value: int | Sequence[int], dimensions: int, name: str, *, smallest: int) -> tuple[int, ...]:
    values = (value,) * dimensions if isinstance(value, int) else tuple(value)
    if len(values) != dimensions or min(values) < smallest:
        raise ValueError(
            f"{name}: got {value!r}, expected {dimensions} numbers of at least {smallest}, or one for all."
        )
    return values


def _check_padding(size: tuple[int, ...], padding: tuple[tuple[int, int], ...], mode: str) -> None:
    """Reflection needs an input larger than the padding, wrapping one as large."""
    room = {"reflect": 1, "circular": 0}.get(mode)
    if room is not None and any(max(pair) + room > length for length, pair in zip(size, padding, strict=True)):
        raise ValueError(f"padding: got {padding} with mode {mode!r}, expected less than the input's size {size}.")

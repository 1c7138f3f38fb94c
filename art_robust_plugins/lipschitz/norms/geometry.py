"""Convolutions as linear maps of one sample: their geometry, their application and their adjoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional
from typing_extensions import Self

from ...checks import check_choice, check_count, check_flag, check_sizes, is_integer
from .bounds import check_weight

_MODES = ("zeros", "circular", "reflect", "replicate")


class ConvolutionMap:
    """The map of `Convolution`, without its bound: see there for the arguments."""

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
        check_weight(weight)
        size = check_sizes("input_size", input_size)
        dimensions = len(size)
        if not 1 <= dimensions <= 3 or weight.dim() != dimensions + 2:
            raise ValueError(
                f"weight: got shape {tuple(weight.shape)} for an input_size of {size}, expected one to three spatial "
                f"dimensions, the same number in both."
            )
        groups = check_count("groups", groups)
        if weight.shape[0] % groups:
            raise ValueError(f"groups: got {groups}, expected a divisor of the weight's {weight.shape[0]} channels.")
        check_choice("padding_mode", padding_mode, _MODES)
        check_flag("transposed", transposed)
        if transposed and padding_mode != "zeros":
            raise ValueError(f"padding_mode: got {padding_mode!r} for a transposed convolution, expected 'zeros'.")
        self.weight = weight
        self.kernel_size = tuple(weight.shape[2:])
        self.stride = _for_each(stride, dimensions, "stride", smallest=1)
        self.dilation = _for_each(dilation, dimensions, "dilation", smallest=1)
        self.output_padding = _for_each(output_padding, dimensions, "output_padding", smallest=0)
        self.groups, self.transposed, self.padding_mode = groups, transposed, padding_mode
        self.padding = self._pairs(padding, dimensions)
        self.cholesky_limit = (
            None if cholesky_limit is None else check_count("cholesky_limit", cholesky_limit, zero=True)
        )
        if any(self.output_padding) and not transposed:
            raise ValueError(f"output_padding: got {output_padding!r} for a plain convolution, expected 0.")
        if any(
            extra >= max(step, apart)
            for extra, step, apart in zip(self.output_padding, self.stride, self.dilation, strict=True)
        ):
            raise ValueError(
                f"output_padding: got {output_padding!r}, expected less than the stride {self.stride} or the dilation "
                f"{self.dilation}."
            )
        if transposed and any(before != after for before, after in self.padding):
            raise ValueError(f"padding: got {padding!r} for a transposed convolution, expected the same on both sides.")
        if padding_mode != "zeros":
            _check_padding(size, self.padding, padding_mode)
        output_size = tuple(self._outputs(axis, length) for axis, length in enumerate(size))
        if min(size) < 1 or min(output_size) < 1:
            raise ValueError(
                f"input_size: got {size}, which with stride {self.stride}, padding {self.padding}, dilation "
                f"{self.dilation} and output_padding {self.output_padding} gives outputs of size {output_size}, "
                f"expected at least 1."
            )
        first, second = weight.shape[0], weight.shape[1] * groups
        self.input_shape: tuple[int, ...] = (first if transposed else second, *size)
        self.output_shape: tuple[int, ...] = (second if transposed else first, *output_size)

    def with_weight(self, weight: Tensor, groups: int | None = None) -> Self:
        """The same convolution with another weight of the same kernel size, and with other groups."""
        return type(self)(
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
        shape = (len(y), self.input_shape[0], *self.padded_size())
        like = y.new_empty(1).expand(shape)  # only its shape is read
        weight = self.weight.detach().to(y.dtype)
        mask = [True, False, False]
        x = torch.ops.aten.convolution_backward(y, like, weight, None, *self._geometry(), mask)[0]
        return self._unpad(cast(Tensor, x))

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
        sides = [padding] * dimensions if is_integer(padding) else _as_tuple(padding)
        pairs = tuple((side, side) if is_integer(side) else _as_tuple(side) for side in sides)
        known = all(len(pair) == 2 and all(is_integer(side) and 0 <= side < 2**31 for side in pair) for pair in pairs)
        if len(pairs) != dimensions or not known:
            raise ValueError(
                f"padding: got {padding!r}, expected a number or pair for each dimension, from 0 to 2**31 - 1."
            )
        return tuple((int(before), int(after)) for before, after in pairs)

    def _outputs(self, axis: int, length: int) -> int:
        reach = self.dilation[axis] * (self.kernel_size[axis] - 1)
        before, after = self.padding[axis]
        if self.transposed:
            return (length - 1) * self.stride[axis] - before - after + reach + self.output_padding[axis] + 1
        return (length + before + after - reach - 1) // self.stride[axis] + 1

    def _outer_padding(self) -> list[int] | None:
        """The padding needed before the convolution, in `functional.pad`'s order; None if torch's own suffices."""
        if self.padding_mode == "zeros" and all(before == after for before, after in self.padding):
            return None
        return [side for pair in reversed(self.padding) for side in pair]

    def padded_size(self) -> tuple[int, ...]:
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

    def without_idle_taps(self) -> Tensor:
        """The weight with zeros for kernel taps that read only zero padding, for every output."""
        weight = self.weight.detach()
        if self.padding_mode != "zeros":
            return weight
        inputs, outputs = self.plain_sizes()
        for axis, (length, count) in enumerate(zip(inputs, outputs, strict=True)):
            first = torch.arange(self.kernel_size[axis]) * self.dilation[axis] - self.padding[axis][0]
            read = first[:, None] + torch.arange(count) * self.stride[axis]
            used = ((read >= 0) & (read < length)).any(dim=1).to(weight.device)
            weight = weight * used.view(-1, *[1] * (len(inputs) - 1 - axis))
        return weight

    def plain_sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Input and output size of the plain convolution of which a transposed one is the adjoint."""
        sizes = self.input_shape[1:], self.output_shape[1:]
        return sizes[::-1] if self.transposed else sizes

    def copies(self) -> int:
        """The largest number of times that the padding repeats one input."""
        copies = 1
        for length, pair in zip(self.input_shape[1:], self.padding, strict=True):
            if self.padding_mode != "zeros":
                positions = torch.arange(length, dtype=torch.float64).view(1, 1, -1)
                padded = functional.pad(positions, pair, mode=self.padding_mode)
                copies *= int(torch.bincount(padded.flatten().long()).max())
        return copies


def _as_tuple(value: Any) -> tuple[Any, ...]:
    """The entries of a sequence; an empty tuple for anything else."""
    try:
        return tuple(value)
    except TypeError:
        return ()


def _for_each(value: Any, dimensions: int, name: str, *, smallest: int) -> tuple[int, ...]:
    values = (value,) * dimensions if is_integer(value) else _as_tuple(value)
    if len(values) != dimensions or not all(is_integer(number) and smallest <= number < 2**31 for number in values):
        raise ValueError(
            f"{name}: got {value!r}, expected {dimensions} whole numbers from {smallest} to 2**31 - 1, or one for all."
        )
    return tuple(map(int, values))


def _check_padding(size: tuple[int, ...], padding: tuple[tuple[int, int], ...], mode: str) -> None:
    """Reflection needs an input larger than the padding, wrapping one as large."""
    room = {"reflect": 1, "circular": 0}.get(mode)
    if room is not None and any(max(pair) + room > length for length, pair in zip(size, padding, strict=True)):
        raise ValueError(f"padding: got {padding} with mode {mode!r}, expected less than the input's size {size}.")

"""Linear and convolution layers with a separate factor for each sample in their parameters' gradients.

With g_i the gradient of the batch loss with respect to the layer's output for sample i: dW and db are formed from
beta * s_i * g_i, and the layer's input receives the gradient of the unscaled g_i. No extra matrix product is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
SCALABLE = (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)
"""The types of layers that are supported here, if their forward is torch's own."""

_PLAIN_FORWARDS = {kind.forward for kind in SCALABLE}


class GradientScale(Protocol):
    """The factors of one layer in one backward pass."""

    @property
    def beta(self) -> float:
        """Multiplies the parameters' gradients as a whole."""

    def factors(self, gradient: Tensor) -> Tensor:
        """s [N], in float32 at least, from the gradient of the layer's output [N, ...]."""


def scale_samples(factors: Tensor, samples: Tensor) -> Tensor:
    """Factors [N] times samples [N, ...], rounded once to the samples' type."""
    return (factors.view(-1, *[1] * (samples.dim() - 1)) * samples).to(samples.dtype)


def _cast(*tensors: Tensor | None) -> list[Tensor | None]:
    """Cast the operands of a layer as autocast would: autocast does not apply to custom functions."""
    kind = next(t.device.type for t in tensors if t is not None)
    if not torch.is_autocast_enabled(kind):
        return list(tensors)
    dtype = torch.get_autocast_dtype(kind)
    return [t.to(dtype) if t is not None and t.dtype == torch.float32 else t for t in tensors]


def check_scalable(network: nn.Module, names: Container[str]) -> None:
    """Refuse layers of ``names`` whose forward is not torch's own.

    Raises:
        ValueError: names such a layer.
    """
    for name, module in network.named_modules():
        if name in names and (type(module).forward not in _PLAIN_FORWARDS or "forward" in module.__dict__):
            own = type(module).forward not in _PLAIN_FORWARDS
            reason = "computes in a way of its own" if own else "is taken by another instrument"
            raise ValueError(
                f"layers: the {type(module).__name__} {name!r} {reason}, expected layers of torch's own kinds; "
                f"name the others with layers."
            )


@contextmanager
def replaced_forwards(network: nn.Module, forwards: Mapping[str, Callable[..., Tensor]]) -> Iterator[None]:
    """A context in which layers compute by other functions.

    Args:
        network: the network of these layers.
        forwards: by the layer's name; called with the module, its own forward, and the layer's arguments.
    """
    modules = dict(network.named_modules())
    try:
        for name, forward in forwards.items():
            modules[name].forward = partial(forward, modules[name], modules[name].forward)
        yield
    finally:
        for name in forwards:
            modules[name].__dict__.pop("forward", None)


def scaled_forward(module: nn.Module, scale: GradientScale, x: Tensor, output_size: list[int] | None = None) -> Tensor:
    """The output of a linear or convolution layer for x; ``scale`` gives the factors of its parameters' gradients."""
    if isinstance(module, nn.Linear):
        return _scaled_linear(module, scale, x)
    return _scaled_convolution(module, scale, x, output_size)


def _scaled_linear(module: nn.Linear, scale: GradientScale, x: Tensor) -> Tensor:
    # The function sees rows [N * ..., features]: an output that is a view could not be changed in place afterwards.
    rows: Tensor = _Linear.apply(  # type: ignore[no-untyped-call]
        scale, len(x), *_cast(x.flatten(0, -2), module.weight, module.bias)
    )
    return rows.view(*x.shape[:-1], -1)


def _scaled_convolution(module: Any, scale: GradientScale, x: Tensor, output_size: list[int] | None = None) -> Tensor:
    dimensions = len(module.kernel_size)
    transposed = isinstance(module, TRANSPOSED)
    padding, output_padding = module.padding, (0,) * dimensions
    if transposed:
        output_padding = module._output_padding(
            x, output_size, module.stride, padding, module.kernel_size, dimensions, module.dilation
        )
    elif module.padding_mode != "zeros":
        x = functional.pad(x, module._reversed_padding_repeated_twice, mode=module.padding_mode)
        padding = (0,) * dimensions
    elif padding == "valid":
        padding = (0,) * dimensions
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        padding = [size // 2 for size in total]
        if any(size % 2 for size in total):
            x = functional.pad(x, [side for size in reversed(total) for side in (0, size % 2)])
    geometry = (module.stride, padding, module.dilation, transposed, output_padding, module.groups)
    output: Tensor = _Convolution.apply(  # type: ignore[no-untyped-call]
        scale, geometry, *_cast(x, module.weight, module.bias)
    )
    return output


class _Linear(torch.autograd.Function):
    """y = x W^T + b for rows x, with the parameters' gradients formed from s * g; a sample may have several rows."""

    @staticmethod
    def forward(ctx: Any, scale: GradientScale, samples: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scale, ctx.samples = scale, samples
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, _, for_input, for_weight, for_bias = ctx.needs_input_grad
        d_x = gradient @ weight if for_input else None
        d_weight = d_bias = None
        if for_weight or for_bias:
            of_samples = gradient.reshape(ctx.samples, -1)
            scaled = scale_samples(ctx.scale.factors(of_samples), of_samples).view_as(gradient)
            d_weight = _total(ctx.scale, scaled.t() @ x) if for_weight else None
            d_bias = _total(ctx.scale, scaled.sum(dim=0)) if for_bias else None
        return None, None, d_x, d_weight, d_bias


class _Convolution(torch.autograd.Function):
    """A convolution of any kind, with the parameters' gradients formed from s * g."""

    @staticmethod
    def forward(
        ctx: Any, scale: GradientScale, geometry: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.scale, ctx.geometry = scale, geometry
        output: Tensor = torch.ops.aten.convolution(x, weight, bias, *geometry)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        _, _, for_input, for_weight, for_bias = ctx.needs_input_grad
        if for_weight or for_bias:
            factors = ctx.scale.factors(gradient)
        # The weight's gradient is bilinear in (g, x), so x can carry the factors and one call serves both gradients;
        # not in float16, where s * x may overflow. s * g stays in the range of g.
        apart = x.dtype == torch.float16 and for_weight
        if for_weight and not apart:
            x = scale_samples(factors, x)
        backward = torch.ops.aten.convolution_backward
        wanted = [for_input, for_weight and not apart, False]
        d_x, d_weight, _ = backward(gradient, x, weight, None, *ctx.geometry, wanted)
        if apart:
            scaled = scale_samples(factors, gradient)
            d_weight = backward(scaled, x, weight, None, *ctx.geometry, [False, True, False])[1]
        d_weight = _total(ctx.scale, d_weight) if for_weight else None
        d_bias = None
        if for_bias:
            sums = gradient.sum(dim=tuple(range(2, gradient.dim())), dtype=factors.dtype)
            d_bias = _total(ctx.scale, (factors @ sums).to(gradient.dtype))
        return None, None, d_x, d_weight, d_bias


def _total(scale: GradientScale, gradient: Tensor) -> Tensor:
    return gradient if scale.beta == 1 else gradient.mul_(scale.beta)

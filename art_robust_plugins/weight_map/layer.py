"""`WeightMap2d`: a learned weight for each place of a feature map, and a fixed kernel over the neighbours.

Amer, Maul: Weight Map Layer for Noise and Adversarial Attack Robustness (arXiv 1905.00568), in its two variants,
smoothing and unsharp. Status: reconstructed from the paper's summary; the constants (3x3 box, alpha 1, start at 1) are
ours. For an input x [N, C, H, W]:

    m = x * M + B                          M, B: [C, H, W], learned; M starts at 1, B (optional) at 0
    smoothing:  y = k(m)                   k: the mean over a window of 3x3 or 5x5 around each place, in each channel
    unsharp:    y = m + alpha (m - k(m))
    identity:   y = m
"""

from __future__ import annotations

from numbers import Integral
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn import functional

from ..checks import check_count, check_number
from ..choices import Kernel
from ..keywords import KnownKeywords

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]

KERNELS = ("smoothing", "unsharp", "identity")
KERNEL_SIZES = (3, 5)
PADDING_MODES = ("zeros", "reflect", "replicate", "circular")

_PART = 2**19
"""The number of values of a large batch that a CPU processes at a time."""


class WeightMap2d(nn.Module, KnownKeywords):
    """Multiplies each place of a feature map by a learned weight, then mixes it with its neighbours by a fixed kernel.

    Weight map layer of Amer, Maul (arXiv 1905.00568); reconstructed, the constants are ours. As initialised it is the
    plain kernel, with ``kernel="identity"`` nothing at all.

    The kernel is normalised: its taps sum to 1, every window divides by its full size. At the border the window
    reaches past the image, where ``padding_mode`` says what it finds (for a row a b c d and a window of 3):

    - ``"zeros"``: 0 | a b c d | 0. Smoothing darkens the border: a constant image 1 becomes 2/3 at an edge and 4/9 in
      a corner; unsharp brightens it, to 1 + alpha / 3 and 1 + 5 alpha / 9.
    - ``"reflect"``: b | a b c d | c, ``"replicate"``: a | a b c d | d, ``"circular"``: d | a b c d | a. A constant
      image stays as it is.

    The output has the input's size, data type (the map is cast to it) and memory format. One depthwise convolution
    computes either kernel; only the map and the bias are in the state dict.

    Args:
        channels, height, width: C, H, W of the input; the map belongs to this size.
        kernel: ``"smoothing"``, ``"unsharp"`` or ``"identity"``.
        kernel_size: 3 or 5, the side of the window.
        alpha: strength of the unsharp kernel, at least 0; others do not use it.
        bias: learn B too.
        padding_mode: ``"zeros"``, ``"reflect"`` (an image larger than half the window), ``"replicate"`` or
            ``"circular"``.
        device, dtype: of the parameters, as for torch's own layers.

    Attributes:
        map: the parameter M [C, H, W].
        bias: the parameter B [C, H, W], or None.

    Raises:
        ValueError: for a setting outside its range, an image too small for the padding; in ``forward`` for an input
            of another size (both are named) or one that is not floating point.

    Example:
        >>> layer = WeightMap2d(1, 2, 2, padding_mode="replicate")
        >>> x = torch.tensor([[[[9.0, 0.0], [0.0, 0.0]]]])
        >>> layer(x)
        tensor([[[[4., 2.],
                  [2., 1.]]]], grad_fn=<ConvolutionBackward0>)
        >>> WeightMap2d(1, 2, 2, kernel="identity")(x).equal(x)
        True
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        *,
        kernel: Kernel = "smoothing",
        kernel_size: int = 3,
        alpha: float = 1.0,
        bias: bool = False,
        padding_mode: PaddingMode = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"channels": channels, "height": height, "width": width}
        self.channels, self.height, self.width = (check_count(name, size) for name, size in sizes.items())
        check_settings(kernel=kernel, kernel_size=kernel_size, alpha=alpha, bias=bias, padding_mode=padding_mode)
        self.kernel, self.kernel_size, self.alpha = str(kernel), int(kernel_size), float(alpha)
        self.padding_mode = str(padding_mode)
        self.reach = 0 if kernel == "identity" else self.kernel_size // 2
        room = {"reflect": 1, "circular": 0}.get(padding_mode)
        if room is not None and self.reach + room > min(height, width):
            raise ValueError(
                f"padding_mode: got {padding_mode!r} with a kernel of {kernel_size}x{kernel_size} for images of "
                f"{height}x{width}, expected images of at least {self.reach + room}x{self.reach + room}."
            )
        shape = (self.channels, self.height, self.width)
        self.map = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.bias: nn.Parameter | None = None
        if bias:
            self.bias = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The map becomes 1, the bias 0."""
        nn.init.ones_(self.map)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @property
    def settings(self) -> dict[str, Any]:
        """The constructor's arguments other than the size, as JSON data."""
        return {
            "kernel": self.kernel,
            "kernel_size": self.kernel_size,
            "alpha": self.alpha,
            "bias": self.bias is not None,
            "padding_mode": self.padding_mode,
        }

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            symbol: Any = x
            if isinstance(symbol, Proxy):  # a symbolic trace keeps the layer whole
                tracer: Any = symbol.tracer
                whole: Tensor = tracer.create_proxy("call_module", tracer.path_of_module(self), (symbol,), {})
                return whole
        # A trace would record sizes as tensors. (TorchScript parses the next comment, and rejects codes in it.)
        if not torch.jit.is_tracing():  # type: ignore
            self._check(x)
        # Maps get the image's memory format: mixed formats are several times slower, above all for the map's gradient.
        by_channel_last = x.stride(1) == 1 and not x.is_contiguous()
        weight = _lay_out(self.map.to(x.dtype), by_channel_last)
        bias: Tensor | None = None
        if self.bias is not None:
            bias = _lay_out(self.bias.to(x.dtype), by_channel_last)
        if not torch.jit.is_scripting():  # type: ignore[attr-defined]
            samples = _samples_at_a_time(x)
            if samples > 0:
                return torch.cat([self._apply_map(part, weight, bias) for part in torch.split(x, samples)])
        return self._apply_map(x, weight, bias)

    def _apply_map(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        m = x * weight if bias is None else x * weight + bias
        if self.reach == 0:
            return m
        padding = self.reach
        if self.padding_mode != "zeros":
            m = functional.pad(m, [self.reach, self.reach, self.reach, self.reach], mode=self.padding_mode)
            padding = 0
            m = _lay_out(m, weight.stride(0) < weight.stride(2))
        return functional.conv2d(m, self._taps(m), padding=padding, groups=self.channels)

    def extra_repr(self) -> str:
        size = f"{self.channels}, {self.height}, {self.width}, kernel={self.kernel!r}"
        if self.reach == 0:
            return f"{size}, bias={self.bias is not None}"
        strength = f", alpha={self.alpha:g}" if self.kernel == "unsharp" else ""
        rest = f", bias={self.bias is not None}, padding_mode={self.padding_mode!r}"
        return f"{size}, kernel_size={self.kernel_size}{strength}{rest}"

    def _check(self, x: Tensor) -> None:
        right = x.dim() == 4
        if right:
            right = x.size(1) == self.channels and x.size(2) == self.height and x.size(3) == self.width
        if not right:
            raise ValueError(
                f"x: got shape {list(x.shape)}, expected [N, {self.channels}, {self.height}, {self.width}], "
                f"the size that the weight map belongs to."
            )
        if not x.is_floating_point():
            raise ValueError(f"x: got values of type {x.dtype}, expected floating point.")

    def _taps(self, like: Tensor) -> Tensor:
        """The depthwise kernel [C, 1, k, k]; it is made in each pass, so that each type has its own precision."""
        mean = 1.0 / self.kernel_size**2
        unsharp = self.kernel == "unsharp"
        shape = [self.channels, 1, self.kernel_size, self.kernel_size]
        taps = like.new_full(shape, -self.alpha * mean if unsharp else mean)
        if unsharp:
            # TorchScript would round a number that is assigned to float32.
            taps[:, :, self.reach, self.reach].fill_(1.0 + self.alpha - self.alpha * mean)
        return taps


def check_settings(*, kernel: object, kernel_size: object, alpha: object, bias: object, padding_mode: object) -> None:
    """Refuse settings that no `WeightMap2d` has."""
    choices: tuple[tuple[str, object, type, tuple[Any, ...]], ...] = (
        ("kernel", kernel, str, KERNELS),
        ("kernel_size", kernel_size, Integral, KERNEL_SIZES),
        ("padding_mode", padding_mode, str, PADDING_MODES),
        ("bias", bias, bool, (False, True)),
    )
    for name, value, kind, known in choices:
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool) or value not in known:
            raise ValueError(f"{name}: got {value!r}, expected one of {', '.join(map(repr, known))}.")
    check_number("alpha", alpha, zero=True)


def _samples_at_a_time(x: Tensor) -> int:
    """The number of samples of a large batch that fit a CPU's cache, backward pass included; 0 for all at once."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return 0
    if x.device.type != "cpu" or x.numel() <= 2 * _PART:
        return 0
    return max(1, _PART // x[0].numel())


def _lay_out(values: Tensor, by_channel_last: bool) -> Tensor:
    """Bring [C, H, W] or [N, C, H, W] into an image's memory format, by operations that ``vmap`` supports."""
    if not by_channel_last:
        return values
    return values.movedim(-3, -1).contiguous().movedim(-1, -3)

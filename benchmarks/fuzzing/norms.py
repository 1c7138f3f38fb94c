"""Norms: the proven bound of a random linear operator against the largest singular value of its dense matrix.

The matrix is that of torch's own layer in float64, column by column, never that of the class under test. The weights
are brought to magnitude 1 by a power of two, which is exact, so that the truth is known for tiny and huge ones too.

Small operators would be factored as one matrix. Half of the cases cut it into blocks of another size and order, at
random, with narrow panels, as large ones are.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins import WeightMap2d
from art_robust_plugins.lipschitz import Convolution, LipschitzGraph, NoLipschitzRuleError, operator_of
from art_robust_plugins.lipschitz.norms import banded, cholesky
from art_robust_plugins.lipschitz.norms.layout import Layout, list_layouts

from .cases import Outcome, refusal
from .weights import SCALES, fill, random_weight

LOOSE = 1.0001
"""The bound of one operator is broken above this times the truth: a factorisation proves those of small ones."""
LOOSE_LAYER = 100.0
"""The same of a small network of linear layers, whose bound is a sum or a product of others."""

_OPERATORS = ("convolution", "convolution", "transposed", "unequal padding")
_CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class Norms:
    """Random operators and small linear networks; see the module."""

    def check(self, seed: int) -> Outcome:
        rng = random.Random(seed)
        torch.manual_seed(seed)
        if rng.random() < 2 / 7:
            return _check_layer(rng)
        return self.check_operator(seed, ["linear", *_OPERATORS])

    def check_operator(self, seed: int, kinds: Sequence[str] = _OPERATORS) -> Outcome:
        """A case of a single operator of these kinds."""
        rng = random.Random(seed)
        torch.manual_seed(seed)
        kind = rng.choice(kinds)
        cut: AbstractContextManager[None] = cut_at_random(random.Random(seed)) if rng.random() < 0.5 else nullcontext()
        with cut:
            if kind == "unequal padding":
                return _check_pairs(rng)
            module, shape = _linear(rng) if kind == "linear" else _convolution(rng, transposed=kind == "transposed")
            return _check_module(kind, module, shape, rng)


@contextmanager
def cut_at_random(rng: random.Random) -> Iterator[None]:
    """A context in which the matrices of convolutions are cut into blocks at random, with narrow panels."""

    def choose(channels: int, outer: int, parts: Any, panel: int) -> Layout:
        layout = rng.choice(list_layouts(channels, outer, parts, panel))
        return dataclasses.replace(layout, by_matrix=layout.by_matrix and rng.random() < 0.5)

    with (
        mock.patch.object(cholesky, "choose_layout", choose),
        mock.patch.object(banded, "PANEL", rng.choice([1, 3, 8, 128])),
        mock.patch.object(banded, "STRIP", rng.choice([1, 5, 512])),
    ):
        yield


def dense_norm(apply: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> float:
    """The largest singular value of a linear map (plus constants) of samples of this shape, in float64."""
    size = math.prod(shape)
    basis = torch.eye(size, dtype=torch.float64).view(size, *shape)
    with torch.no_grad():
        columns = apply(torch.cat([basis, torch.zeros(1, *shape, dtype=torch.float64)])).flatten(1)
    return float(torch.linalg.matrix_norm(columns[:-1] - columns[-1], 2))


def compare(kind: str, bound: float, truth: float, case: str, loose: float) -> Outcome:
    """A proven bound beside the truth."""
    if math.isnan(bound) or bound < truth:
        return Outcome("broken", kind, f"bound {bound!r} below the norm {truth!r}: {case}")
    if truth == 0:
        held = bound < 1e-6
        return Outcome("held" if held else "broken", kind, "" if held else f"bound {bound!r} of a zero map: {case}")
    if bound > loose * truth:
        return Outcome("broken", kind, f"bound {bound!r} far above the norm {truth!r}: {case}")
    return Outcome("held", kind, gap=bound / truth - 1)


def _check_module(kind: str, module: nn.Module, shape: tuple[int, ...], rng: random.Random) -> Outcome:
    weight, weights = random_weight(rng, module.weight.shape)
    if rng.random() < 0.3:
        module = module.double()
        weight = (weight.double() * rng.choice([1.0, 1e-300, 1e-312, 1e290])).clamp(-1e300, 1e300)
    module.weight.data = weight
    case = f"{module} on {shape}, {weights}, largest {float(weight.abs().max()):g} {weight.dtype}"
    twin, exponent = _scaled_twin(module)
    try:
        truth = dense_norm(twin, shape)
        fits = True
    except RuntimeError:  # torch refuses the shapes
        fits = False
    try:
        bound = operator_of(module, shape).upper_bound()
    except Exception as error:
        outcome = refusal(kind, error)
        return Outcome("broken", kind, f"{error} ({case})") if fits and outcome.verdict == "refused" else outcome
    if not fits:
        return Outcome("broken", kind, f"bound {bound} of a layer that torch refuses: {case}")
    return compare(kind, math.ldexp(bound.value, -exponent), truth, f"{case}, {bound.method}", LOOSE)


def _check_pairs(rng: random.Random) -> Outcome:
    """A convolution with other padding before than after, which torch has in two steps."""
    kind, dimensions = "unequal padding", rng.randint(1, 3)
    size = _size(rng, dimensions)
    groups = rng.randint(1, 2)
    weight, weights = random_weight(
        rng, (groups * rng.randint(1, 3), rng.randint(1, 2), *[rng.randint(1, 3) for _ in size])
    )
    pairs = [(rng.randint(0, 3), rng.randint(0, 3)) for _ in size]
    settings: dict[str, Any] = {
        "stride": rng.randint(1, 3),
        "dilation": rng.randint(1, 2),
        "groups": groups,
    }
    mode = rng.choice(["zeros", "circular", "reflect", "replicate"])
    case = f"{tuple(weight.shape)} on {size}, padding {pairs} {mode}, {settings}, {weights}"
    exponent = _exponent(weight)
    scaled = torch.ldexp(weight.double(), torch.tensor(-exponent))
    convolve = [functional.conv1d, functional.conv2d, functional.conv3d][dimensions - 1]
    sides = [side for pair in reversed(pairs) for side in pair]

    def apply(x: Tensor) -> Tensor:
        padded = functional.pad(x, sides, mode="constant" if mode == "zeros" else mode)
        return convolve(padded, scaled, **settings)

    try:
        truth = dense_norm(apply, (weight.shape[1] * groups, *size))
    except RuntimeError:
        truth = None
    try:
        bound = Convolution(weight, size, padding=pairs, padding_mode=mode, **settings).upper_bound()
    except Exception as error:
        outcome = refusal(kind, error)
        refused = truth is not None and outcome.verdict == "refused"
        return Outcome("broken", kind, f"{error} ({case})") if refused else outcome
    if truth is None:
        return Outcome("broken", kind, f"bound {bound} of a layer that torch refuses: {case}")
    return compare(kind, math.ldexp(bound.value, -exponent), truth, f"{case}, {bound.method}", LOOSE)


def _exponent(weight: Tensor) -> int:
    return math.frexp(float(weight.detach().double().abs().max()))[1]


def _scaled_twin(module: nn.Module) -> tuple[nn.Module, int]:
    """The layer in float64 with its weights over a power of two, without bias, and the power's exponent."""
    twin = copy.deepcopy(module)
    exponent = _exponent(module.weight)
    scaled = module.weight.detach().double()
    for half in (exponent // 2, exponent - exponent // 2):  # 2 ** -exponent itself may be no float64
        scaled = torch.ldexp(scaled, torch.tensor(-half, dtype=torch.float64))
    twin.weight, twin.bias = nn.Parameter(scaled), None
    return twin, exponent


def _size(rng: random.Random, dimensions: int) -> tuple[int, ...]:
    return tuple(rng.randint(1, {1: 12, 2: 7, 3: 4}[dimensions]) for _ in range(dimensions))


def _linear(rng: random.Random) -> tuple[nn.Module, tuple[int, ...]]:
    inputs = rng.randint(1, 40)
    return nn.Linear(inputs, rng.randint(1, 40)), (inputs,)


def _convolution(rng: random.Random, *, transposed: bool) -> tuple[nn.Module, tuple[int, ...]]:
    dimensions = rng.choice([1, 2, 2, 2, 3])
    size = _size(rng, dimensions)
    groups = rng.choice([1, 1, 2, 3])
    inputs = groups * rng.randint(1, 3)
    outputs = groups * rng.randint(1, 3)
    each = [[rng.randint(low, high) for _ in size] for low, high in ((1, 4), (1, 3), (1, 2), (0, 3))]
    kernel, stride, dilation, padding = map(tuple, each)
    settings: dict[str, Any] = {"dilation": dilation, "groups": groups, "bias": rng.random() < 0.5}
    if transposed:
        extra = tuple(rng.randrange(max(s, d)) for s, d in zip(stride, dilation, strict=True))
        settings |= {"stride": stride, "padding": padding, "output_padding": extra}
        return _TRANSPOSED[dimensions](inputs, outputs, kernel, **settings), (inputs, *size)
    mode = rng.choice(["zeros", "zeros", "circular", "reflect", "replicate"])
    if rng.random() < 0.2:
        settings |= {"padding": rng.choice(["same", "valid"]), "padding_mode": mode}
    else:
        settings |= {"stride": stride, "padding": padding, "padding_mode": mode}
    return _CONVOLUTIONS[dimensions](inputs, outputs, kernel, **settings), (inputs, *size)


# Linear layers that have rules of their own, and small compositions


class Step(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor], text: str) -> None:
        super().__init__()
        self.function, self.text = function, text

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

    def extra_repr(self) -> str:
        return self.text


class Joined(nn.Module):
    """The outputs of several modules for one input: added up, or side by side."""

    def __init__(self, *parts: nn.Module, how: str) -> None:
        super().__init__()
        self.parts, self.how = nn.ModuleList(parts), how

    def forward(self, x: Tensor) -> Tensor:
        outputs = [part(x) for part in self.parts]
        return torch.cat(outputs, dim=1) if self.how == "concat" else sum(outputs[1:], outputs[0])

    def extra_repr(self) -> str:
        return self.how


def _layers(rng: random.Random, channels: int) -> list[Callable[[], nn.Module]]:
    """Linear layers on images [C, H, W], each made when it is called."""
    n = rng.randint
    kernel, stride = (n(1, 3), n(1, 3)), (n(1, 3), n(1, 2))
    padding = tuple(n(0, length // 2) for length in kernel)
    odd = 2 * n(0, 1) + 1
    ceil, inside, scale = rng.random() < 0.5, rng.random() < 0.5, rng.choice([-2.0, 0.5, 3.0])
    sides = [n(-1, 2) for _ in range(4)]
    reflected = [n(0, 1) for _ in range(4)]
    mode = rng.choice(["bilinear", "bicubic", "nearest", "area", "nearest-exact"])
    corners = rng.choice([True, False]) if mode in ("bilinear", "bicubic") else None
    size = (n(1, 7), n(1, 7))
    conv = nn.Conv2d(channels, channels, odd, padding=odd // 2)
    norm = nn.BatchNorm2d(channels)
    return [
        lambda: nn.AvgPool2d(kernel, stride, padding, ceil, inside, rng.choice([None, 3])),
        lambda: nn.AdaptiveAvgPool2d(size),
        lambda: nn.Upsample(size, mode=mode, align_corners=corners),
        lambda: nn.Upsample(scale_factor=rng.choice([0.7, 1.5, 2.0]), mode="bilinear"),
        lambda: nn.ConstantPad2d(sides, 0.5),
        lambda: nn.Sequential(nn.ZeroPad2d([abs(side) for side in sides]), nn.Conv2d(channels, 2, 2, stride=n(1, 2))),
        lambda: nn.ReflectionPad2d(reflected),
        lambda: nn.Sequential(nn.ReplicationPad2d(reflected), nn.Conv2d(channels, 2, 2)),
        lambda: nn.CircularPad2d(reflected),
        lambda: nn.Sequential(conv, norm),
        lambda: nn.Sequential(norm, conv),
        lambda: nn.Sequential(conv, norm, nn.AvgPool2d(2, 1, 1), nn.Conv2d(channels, 2, 1)),
        lambda: Joined(nn.Identity(), conv, how="sum"),
        lambda: Joined(Step(lambda x: scale * x, f"{scale} x"), conv, how="sum"),
        lambda: Joined(conv, nn.Identity(), how="concat"),
        lambda: Joined(conv, nn.Conv2d(channels, 1, odd, padding=odd // 2), nn.Identity(), how="concat"),
        lambda: nn.Linear(6, n(1, 5)),
        lambda: nn.Unfold(2, padding=n(0, 1), stride=n(1, 2)),
        lambda: WeightMap2d(channels, 5, 6, kernel=rng.choice(["smoothing", "unsharp"]), bias=True),
        lambda: Step(lambda x: x.mean(dim=(2, 3)), "mean"),
        lambda: Step(lambda x: x.sum(dim=1), "sum"),
        lambda: Step(lambda x: x.roll((1, 2), dims=(2, 3)) - scale * x.flip(3), "roll - c flip"),
        lambda: Step(lambda x: x[:, :, ::2, 1:] + x[:, :, ::2, :-1], "neighbours"),
        lambda: Step(lambda x: x[:, :, [0, 2, 0], :], "indices, one twice"),
        lambda: Step(lambda x: x.cumsum(dim=2), "cumsum"),
        lambda: Step(lambda x: torch.stack([x, -x, x], dim=1), "stack"),
        lambda: Step(lambda x: x.repeat(1, 2, 1, 1), "repeat"),
        lambda: Step(lambda x: torch.diff(x, dim=3), "diff"),
        lambda: Step(lambda x: (x.transpose(2, 3) @ torch.ones(5, 3, dtype=x.dtype)).flatten(1), "matmul"),
        lambda: Step(lambda x: x / torch.arange(1, 7, dtype=x.dtype) + 1, "division by constants"),
    ]


def _check_layer(rng: random.Random) -> Outcome:
    channels = rng.randint(1, 3)
    shape = (channels, 5, 6)
    layers = _layers(rng, channels)
    number = rng.randrange(len(layers))
    network = nn.Sequential(layers[number](), nn.Flatten())
    weights = fill(network, rng, SCALES[:-1])
    network = network.double().eval() if rng.random() < 0.5 else network.eval()
    kind = f"layer: {network[0]}".split("\n", maxsplit=1)[0].split("(", maxsplit=1)[0] + f" ({number})"
    case = f"{network[0]} on {shape}, {weights}"
    twin = copy.deepcopy(network).double()
    try:
        jacobian = torch.autograd.functional.jacobian(twin, torch.rand(1, *shape, dtype=torch.float64))
        truth = float(torch.linalg.matrix_norm(jacobian.view(-1, math.prod(shape)), 2))
    except RuntimeError:
        return Outcome("refused", kind, "torch refuses the layer")
    try:
        bound = float(LipschitzGraph(network, shape).upper_bound().lipschitz)
    except NoLipschitzRuleError as error:
        return Outcome("refused", kind, str(error))
    except Exception as error:
        return refusal(kind, error)
    return compare(kind, bound, truth, case, LOOSE_LAYER)

"""Random weights of many kinds: those of training, and those at the edges of what floating point holds."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _rank_one(shape: Sequence[int]) -> Tensor:
    factors = [torch.randn(length) for length in shape]
    product = factors[0]
    for factor in factors[1:]:
        product = product[..., None] * factor
    return product


def _sparse(shape: Sequence[int]) -> Tensor:
    return torch.randn(shape) * (torch.rand(shape) < 0.2)


def _signs(shape: Sequence[int]) -> Tensor:
    return torch.randn(shape).sign()


def _checkered(shape: Sequence[int]) -> Tensor:
    places = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij")).sum(dim=0)
    return (1.0 - 2.0 * places.remainder(2)) * torch.randn(shape).abs()


def _spread(shape: Sequence[int]) -> Tensor:
    return torch.randn(shape) * 10.0 ** torch.empty(shape).uniform_(-6, 6)


def _single(shape: Sequence[int]) -> Tensor:
    weight = torch.zeros(shape)
    weight.view(-1)[random.randrange(weight.numel())] = 1.0
    return weight


KINDS: dict[str, Callable[[Sequence[int]], Tensor]] = {
    "gaussian": torch.randn,
    "uniform": torch.rand,
    "rank one": _rank_one,
    "sparse": _sparse,
    "signs": _signs,
    "checkered": _checkered,
    "constant": torch.ones,
    "one entry": _single,
    "many magnitudes": _spread,
    "zero": torch.zeros,
}
SCALES = (1.0, 1.0, 1.0, 1e-3, 1e3, 1e-30, 1e30, 1e-42)
"""The last makes denormal numbers of float32."""


def random_weight(rng: random.Random, shape: Sequence[int], scales: Sequence[float] = SCALES) -> tuple[Tensor, str]:
    """A float32 weight, from torch's random stream, and the name of its kind."""
    kind, scale = rng.choice(list(KINDS)), rng.choice(scales)
    return KINDS[kind](tuple(shape)) * scale, kind if scale == 1 else f"{kind}, {scale:g}"


def fill(module: torch.nn.Module, rng: random.Random, scales: Sequence[float]) -> str:
    """Give all parameters of a module such weights, and batch normalisation random statistics; their kinds."""
    kinds = []
    with torch.no_grad():
        for parameter in module.parameters():
            weight, kind = random_weight(rng, parameter.shape, scales)
            parameter.copy_(weight)
            kinds.append(kind)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn(buffer.shape))
            if name.endswith("running_var"):
                buffer.copy_(torch.rand(buffer.shape) * 10.0 ** rng.uniform(-3, 2))
    return "; ".join(kinds)

"""The threat model: which changes of an input an adversary may make.

Training, evaluation and certification all speak this one object, so that "Linf, 8/255" means the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .checks import to_float
from .keywords import KnownKeywords
from .moved import make_alias

Norm = Literal["Linf", "L2", "L1"]
Bound = float | Tensor
"""A limit of the input range: one number, or a tensor that broadcasts against a batch."""

_SMALLEST = torch.finfo(torch.float32).tiny
"""The smallest radius, as a share of the ball that holds every image."""

_ORDERS: dict[str | float, Norm] = {
    **dict.fromkeys(("inf", "infty", "infinity", "∞", math.inf), "Linf"),
    **dict.fromkeys(("2", 2.0), "L2"),
    **dict.fromkeys(("1", 1.0), "L1"),
}
"""Norms by their orders, as text and as numbers: ART writes them so."""


@dataclass(frozen=True, init=False)
class ThreatModel(KnownKeywords):
    """All inputs within distance ``eps`` of the given one, in the Linf, L2 or L1 norm.

    Args:
        norm: ``"Linf"``, ``"L2"`` or ``"L1"``; see `parse_norm` for other spellings.
        eps: the radius, positive, in the units of the estimator's input (its ``clip_values``): a number, or a
            fraction as text such as ``"8/255"``.

    Raises:
        ValueError: for another norm, or a radius that is not a positive finite number.

    Example:
        >>> ThreatModel("Linf", "8/255").eps
        0.03137254901960784
        >>> ThreatModel("L2", 0.5).distance(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 0.1))
        tensor([0.3464])
    """

    norm: Norm
    eps: float

    def __init__(self, norm: str | float, eps: float | str) -> None:
        object.__setattr__(self, "norm", parse_norm(norm))
        object.__setattr__(self, "eps", parse_radius(eps))

    def __str__(self) -> str:
        return f"{self.norm} {self.radius_text}"

    @property
    def radius_text(self) -> str:
        """The radius as text, a small Linf radius in pixel levels: ``"8/255"``, ``"0.5"``."""
        levels = self.eps * 255
        # Pixel levels are how small Linf radii on [0, 1] are written; other radii are not meant so.
        pixels = self.norm == "Linf" and 0 < round(levels) <= 32 and abs(levels - round(levels)) < 1e-9
        return f"{round(levels)}/255" if pixels else f"{self.eps:g}"

    def scale(self, factor: float) -> ThreatModel:
        """The same threat with its radius multiplied, as for other units of the input or for a sweep of radii."""
        return ThreatModel(self.norm, self.eps * factor)

    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """Distance of each pair of samples in this norm: two batches [N, ...] -> [N]."""
        order = {"Linf": math.inf, "L2": 2, "L1": 1}[self.norm]
        distances: Tensor = torch.linalg.vector_norm((a - b).flatten(1), order, dim=1)
        return distances

    def project(self, x: Tensor, center: Tensor, low: Bound | None = None, high: Bound | None = None) -> Tensor:
        """Bring each sample of ``x`` [N, ...] into the ball around its ``center`` and into the range [low, high].

        The projection on the ball is the Euclidean one. Clipping after it cannot leave the ball, as long as the
        centers lie in the range.
        """
        delta = x - center
        if self.norm == "Linf":
            delta = delta.clamp(-self.eps, self.eps)
        elif self.norm == "L2":
            length = _per_sample(torch.linalg.vector_norm(delta.flatten(1), 2, dim=1), delta)
            delta = delta * (self.eps / length.clamp_min(self.eps))
        else:
            delta = _project_l1(delta.flatten(1), self.eps).view_as(delta)
        return clip(center + delta, low, high)

    def random_start(
        self, x: Tensor, low: Bound | None = None, high: Bound | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Points drawn uniformly from the ball around each sample of ``x`` [N, ...], then clipped to [low, high]."""
        return clip(x + self.random_change(x, generator), low, high)

    def random_change(self, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Changes drawn uniformly from the ball, one for each sample, in the shape and type of ``like`` [N, ...]."""
        flat = like.flatten(1)
        n, d = flat.shape
        kind: dict[str, Any] = {"device": like.device, "dtype": like.dtype, "generator": generator}
        if self.norm == "Linf":
            delta = (2 * torch.rand(n, d, **kind) - 1) * self.eps
        elif self.norm == "L2":
            direction = torch.randn(n, d, **kind)
            direction = direction / torch.linalg.vector_norm(direction, 2, dim=1, keepdim=True)
            delta = self.eps * torch.rand(n, 1, **kind) ** (1 / d) * direction
        else:
            # d + 1 exponential variables over their sum are uniform on the simplex; dropping one fills its inside.
            spacing = torch.empty(n, d + 1, device=like.device, dtype=like.dtype).exponential_(generator=generator)
            sign = 1 - 2 * torch.randint(0, 2, (n, d), device=like.device, generator=generator)
            delta = self.eps * sign * spacing[:, :d] / spacing.sum(dim=1, keepdim=True)
        return delta.view_as(like)

    def steepest_ascent(self, gradient: Tensor, step_size: float) -> Tensor:
        """The step of length ``step_size`` in this norm along which a linear function grows fastest.

        ``gradient`` [N, ...] -> step [N, ...]: the sign of the gradient for Linf, the normalised gradient for L2, the
        one largest coordinate for L1. Where the gradient is zero, so is the step.
        """
        if self.norm == "Linf":
            return step_size * gradient.sign()
        flat = gradient.flatten(1)
        step: Tensor
        if self.norm == "L2":
            # Dividing by the largest entry first keeps the squares of tiny gradients from underflowing.
            smallest = torch.finfo(flat.dtype).tiny
            flat = flat / flat.abs().amax(dim=1, keepdim=True).clamp_min(smallest)
            length = torch.linalg.vector_norm(flat, 2, dim=1, keepdim=True)
            step = step_size * flat / length.clamp_min(smallest)
        else:
            largest = flat.abs().argmax(dim=1, keepdim=True)
            step = torch.zeros_like(flat).scatter(1, largest, step_size * flat.gather(1, largest).sign())
        return step.view_as(gradient)

    def ascend(
        self,
        objective: Callable[[Tensor], Tensor],
        x: Tensor,
        start: Tensor,
        *,
        steps: int,
        step_size: float,
        low: Bound | None = None,
        high: Bound | None = None,
    ) -> Tensor:
        """Projected steepest ascent (PGD) on ``objective``, within the ball around ``x`` [N, ...], from ``start``.

        ``objective`` maps a batch to a scalar that sums over samples. Only the gradient of the input is computed:
        parameters get none. Returns the last iterate, detached.
        """
        current = start.detach()
        for _ in range(steps):
            current.requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(objective(current), current)
            moved = self.move(current.detach(), gradient, step_size, low, high)
            current = self.project(moved, x, low, high)
        return current

    def move(
        self, x: Tensor, gradient: Tensor, step_size: float, low: Bound | None = None, high: Bound | None = None
    ) -> Tensor:
        """``x`` [N, ...] after a step of steepest ascent, which may leave the ball and the range [low, high]."""
        if self.norm == "L1":
            # A step moves one coordinate: it must not be one that clipping would hold back.
            gradient = gradient * (clip(x + gradient.sign(), low, high) != x)
        return x + self.steepest_ascent(gradient, step_size)

    scaled = make_alias("ThreatModel.scaled", scale)
    moved = make_alias("ThreatModel.moved", move)


def clip(x: Tensor, low: Bound | None, high: Bound | None) -> Tensor:
    """Limit ``x`` to [low, high]; each limit is a number, a tensor that broadcasts, or None for no limit."""
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        x = x if low is None else torch.maximum(x, torch.as_tensor(low, dtype=x.dtype, device=x.device))
        return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype, device=x.device))
    return x if low is None and high is None else x.clamp(low, high)


def check_radius(
    threat: ThreatModel, low: Bound, high: Bound, size: int, *, name: str = "eps", value: float | None = None
) -> None:
    """Refuse a ball that holds every image of ``size`` numbers in [low, high]: its radius is likely in other units.

    One whose radius float32 does not hold, which would be the clean image alone, is refused as well.

    Args:
        threat: the ball.
        low: of each number: a number, or a tensor that broadcasts against an image.
        high: as ``low``.
        size: how many numbers an image has.
        name: what a refusal calls the radius.
        value: another length in the threat's norm, to be checked in place of the radius.

    Raises:
        ValueError: for such a radius.
    """
    radius, norm = threat.eps if value is None else value, threat.norm
    whole = _largest_distance(norm, low, high, size)
    smallest = _SMALLEST * whole if math.isfinite(whole) else 0.0
    if whole <= 0 or smallest <= radius < whole or radius == 0:
        return
    lowest, highest = torch.as_tensor(low, device="cpu").min().item(), torch.as_tensor(high, device="cpu").max().item()
    if radius < whole:
        raise ValueError(
            f"{name}: got {radius:g} for inputs in [{lowest:g}, {highest:g}], expected at least {smallest:.2g}, below "
            f"which float32 rounds changes of an image away."
        )
    levels = norm == "Linf" and 0 <= lowest < highest <= 1 <= radius <= 255
    hint = f"; did you mean '{radius:g}/255'?" if levels else "."
    raise ValueError(
        f"{name}: got {radius:g} for inputs in [{lowest:g}, {highest:g}], expected less than {whole:g}, the "
        f"{norm} radius of a ball that holds every image{hint}"
    )


def _largest_distance(norm: Norm, low: Bound, high: Bound, size: int) -> float:
    """Between two images whose numbers, of which there are ``size``, lie in [low, high]."""
    bottom, top = (torch.as_tensor(end, dtype=torch.float64, device="cpu") for end in (low, high))
    width = top - bottom
    if norm == "Linf":
        return float(width.max())
    # Broadcasting repeats each width equally often.
    return math.sqrt(float(width.square().mean()) * size) if norm == "L2" else float(width.mean()) * size


def parse_norm(norm: Any) -> Norm:
    """A norm by its name in any case (``"linf"``, ``"L_2"``), or its order alone (``numpy.inf``, ``"inf"``, ``2``).

    Raises:
        ValueError: for anything else.

    Example:
        >>> [parse_norm(norm) for norm in ("linf", "l2", "1", math.inf, 2.0)]
        ['Linf', 'L2', 'L1', 'Linf', 'L2']
    """
    order: str | float = to_float(norm)
    if isinstance(norm, str):
        plain = norm.strip().lower()
        order = plain[1:].lstrip("_-") if plain.startswith("l") else plain
    if order not in _ORDERS:
        raise ValueError(f"norm: got {norm!r}, expected one of 'Linf', 'L2', 'L1'.")
    return _ORDERS[order]


def parse_radius(eps: float | str, *, zero: bool = False, name: str = "eps") -> float:
    """A radius from a number or a fraction as text; with ``zero``, 0 is one. A refusal calls it ``name``.

    Raises:
        ValueError: for anything else.
    """
    if getattr(eps, "ndim", None) == 0:  # an array or a tensor of one number
        eps = eps.item()  # type: ignore[union-attr]
    value = _parse_fraction(eps) if isinstance(eps, str) else to_float(eps)
    if not (math.isfinite(value) and (value > 0 or (zero and value == 0))):
        wanted = "a number that is not negative" if zero else "a positive number"
        listed = name == "eps" and isinstance(eps, Iterable) and not isinstance(eps, str)
        several = "; sweep takes several radii" if listed else ""
        raise ValueError(f"{name}: got {eps!r}, expected {wanted} or a fraction such as '8/255'{several}.")
    return value


def _parse_fraction(text: str) -> float:
    """A number or a fraction of two, such as "8/255" or "0.5/255"; NaN for any other text."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(above)
    except (ValueError, ZeroDivisionError):
        return math.nan


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[N] -> [N, 1, ...], to multiply a batch ``like``."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _project_l1(delta: Tensor, radius: float) -> Tensor:
    """Euclidean projection of each row on the L1 ball: soft thresholding (Duchi et al., ICML 2008)."""
    magnitude = delta.abs()
    ordered = magnitude.sort(dim=1, descending=True).values
    rank = torch.arange(1, delta.shape[1] + 1, device=delta.device, dtype=delta.dtype)
    threshold = (ordered.cumsum(dim=1) - radius) / rank
    last = (ordered > threshold).sum(dim=1, keepdim=True).clamp_min(1) - 1
    shrunk = delta.sign() * (magnitude - threshold.gather(1, last)).clamp_min(0)
    return torch.where(magnitude.sum(dim=1, keepdim=True) <= radius, delta, shrunk)

"""Attacks on certificates: the nearest change of class, and the steepest place, that a few steps find."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from art_robust_plugins import PyTorchLipschitzCertifier
from art_robust_plugins.lipschitz import LipschitzGraph

CLASSES = 3


def attack(
    certifier: PyTorchLipschitzCertifier, network: nn.Module, mean_std: tuple[float, float], x: Tensor
) -> tuple[str | None, float | None]:
    """What breaks the certificates for ``x``, if anything; and the smallest distance found over the radius, minus 1."""
    prediction, radius = certifier.certify(x)
    constants = torch.from_numpy(certifier.lipschitz_constants())
    twin = copy.deepcopy(network).double().eval()

    def logits(images: Tensor) -> Tensor:
        outputs: Tensor = twin((images - mean_std[0]) / mean_std[1])
        return outputs

    points = x.double()
    radii, classes = torch.from_numpy(radius), torch.from_numpy(prediction)
    if bool(radii.isnan().any()) or bool(constants.isnan().any()):
        return f"radii {radius}, constants {constants.tolist()}", None
    with torch.no_grad():
        wrong = logits(points).argmax(dim=1) != classes
    if bool((wrong & (radii > 0)).any()):
        return f"classes {prediction} are not the network's, with radii {radius}", None
    problem = _steepness(logits, points, constants, _rounding(twin, mean_std, x.shape[1:]))
    if problem is not None:
        return problem, None
    distance = _nearest_change(logits, points, classes, radii)
    broken = distance < radii
    if bool(broken.any()):
        worst = int((distance / radii).argmin())
        return f"radius {radii[worst]:.6g}, but another class at distance {distance[worst]:.6g}", None
    ratios = (distance / radii)[(radii > 0) & distance.isfinite()]
    return None, float(ratios.min()) - 1 if len(ratios) else None


def _rounding(twin: nn.Module, mean_std: tuple[float, float], shape: torch.Size) -> Callable[[Tensor], Tensor]:
    """How far float64 may take the logits of inputs from those of exact arithmetic, for which the constants hold."""
    graph = LipschitzGraph(twin, shape, std=abs(mean_std[1]), dtype=torch.float64)
    rounding = graph.upper_bound().rounding
    return lambda x: rounding.errors(graph.run((x - mean_std[0]) / mean_std[1], rounding.nodes)[1])


def _steepness(
    logits: Callable[[Tensor], Tensor], x: Tensor, constants: Tensor, errors: Callable[[Tensor], Tensor]
) -> str | None:
    """Where a difference of two logits is steeper than its constant, if it is anywhere."""
    for scale, stride in ((0.0, 1e-3), (0.1, 0.1), (1.0, 1.0), (30.0, 1e-3)):
        places = (x + scale * torch.randn_like(x)).requires_grad_()
        outputs = logits(places)
        slopes = [
            torch.autograd.grad(outputs[:, j].sum(), places, retain_graph=True, allow_unused=True)[0]
            if outputs.requires_grad
            else None
            for j in range(CLASSES)
        ]
        rows = torch.stack([torch.zeros_like(x) if s is None else s for s in slopes], dim=1).flatten(2)
        steepest = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
        rounding = 1e-12 * rows.norm(dim=2).amax(dim=1)[:, None, None]
        over = steepest > constants * (1 + 1e-9) + rounding
        if bool(over.any()):
            n, i, j = over.nonzero()[0].tolist()
            return f"constant {constants[i, j]:.9g} of logits {i} and {j}, but a gradient of {steepest[n, i, j]:.9g}"
        with torch.no_grad():
            outputs = outputs.detach()
            step = stride * torch.randn_like(x)
            moved = logits(places.detach() + step)
            change = (moved - outputs)[:, :, None] - (moved - outputs)[:, None, :]
            length = step.flatten(1).norm(dim=1)[:, None, None]
            rounding = 1e-10 * torch.maximum(moved.abs(), outputs.abs()).amax(dim=1)[:, None, None]
            rounding = rounding + 2 * (errors(places.detach()) + errors(places.detach() + step))[:, None, None]
            over = change.abs() > constants * length * (1 + 1e-9) + rounding
        if bool(over.any()):
            n, i, j = over.nonzero()[0].tolist()
            slope = float(change[n, i, j].abs() / length[n, 0, 0])
            return f"constant {constants[i, j]:.9g} of logits {i} and {j}, but a difference quotient of {slope:.9g}"
    return None


def _nearest_change(logits: Callable[[Tensor], Tensor], x: Tensor, classes: Tensor, radii: Tensor) -> Tensor:
    """The distance [N] of the nearest input of another class that was found, infinite where none was."""
    found = torch.full((len(x),), math.inf, dtype=torch.float64)
    reach = _per_sample(_finite(radii), x)
    starts = [x, x + reach * _directions(x), x + reach * _directions(x)]
    for start in starts:
        for target in range(CLASSES):
            place = start.clone()
            for _ in range(12):  # steps to the linearised boundary, a little beyond it
                place = place.detach().requires_grad_()
                outputs = logits(place)
                gap = outputs[:, target] - outputs.gather(1, classes[:, None])[:, 0]
                if not gap.requires_grad:
                    break
                (slope,) = torch.autograd.grad(gap.sum(), place)
                square = slope.flatten(1).square().sum(dim=1).clamp_min(1e-300)
                step = (-gap.detach().clamp_max(0) / square * 1.02).nan_to_num(0, 0, 0)
                place = place.detach() + _per_sample(step, x) * slope.nan_to_num(0, 0, 0)
                found = torch.minimum(found, _bisect(logits, x, place, classes))
    for scale in (0.5, 0.9, 0.999, 3.0):
        ends = x + scale * reach * _directions(x)
        found = torch.minimum(found, _bisect(logits, x, ends, classes))
    return found


def _directions(x: Tensor) -> Tensor:
    direction = torch.randn_like(x)
    return direction / _per_sample(direction.flatten(1).norm(dim=1), x)


def _per_sample(values: Tensor, like: Tensor) -> Tensor:
    """[N] -> [N, 1, ...], to multiply a batch."""
    return values.view(-1, *[1] * (like.dim() - 1))


def _finite(radii: Tensor) -> Tensor:
    return torch.where(radii.isfinite(), radii, 100.0).clamp_min(1e-6)


@torch.no_grad()
def _bisect(logits: Callable[[Tensor], Tensor], x: Tensor, end: Tensor, classes: Tensor) -> Tensor:
    """How far from ``x`` towards ``end`` the class differs [N]; infinite where the end has the same class."""
    other = logits(end).argmax(dim=1) != classes
    if not bool(other.any()):
        return torch.full((len(x),), math.inf, dtype=torch.float64)
    low, high = torch.zeros(len(x), dtype=torch.float64), torch.ones(len(x), dtype=torch.float64)
    for _ in range(40):
        middle = (low + high) / 2
        differs = logits(x + _per_sample(middle, x) * (end - x)).argmax(dim=1) != classes
        low, high = torch.where(differs, low, middle), torch.where(differs, middle, high)
    distance = ((x + _per_sample(high, x) * (end - x)) - x).flatten(1).norm(dim=1)
    return torch.where(other, distance, math.inf)

"""Random noise as attacks of an evaluation, which succeed by their own measure. A library to copy from.

Amounts are in units of [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor

from .attack import Attack, Prepare


def _prepare_gaussian(deviation: float) -> Prepare:
    return lambda setting: (lambda x, y: (x + deviation * torch.randn_like(x)).clamp(0, 1), {"deviation": deviation})


def _prepare_uniform(width: float) -> Prepare:
    return lambda setting: (lambda x, y: (x + width * (2 * torch.rand_like(x) - 1)).clamp(0, 1), {"half_width": width})


def _prepare_salt_and_pepper(share: float) -> Prepare:
    def perturb(x: Tensor, y: Tensor) -> Tensor:
        where, value = torch.rand_like(x) < share, (torch.rand_like(x) < 0.5).to(x.dtype)
        return torch.where(where, value, x)

    return lambda setting: (perturb, {"share": share})


def _build(name: str, summary: str, prepare: Prepare) -> Attack:
    return Attack(name, summary, prepare, "none", gradients=False)


SUITES: dict[str, tuple[Attack, ...]] = {
    "noise": (
        *(_build(f"gaussian-{s}", "Gaussian noise", _prepare_gaussian(s)) for s in (0.05, 0.1, 0.15, 0.2, 0.3)),
        *(_build(f"uniform-{s}", "uniform noise", _prepare_uniform(s)) for s in (0.05, 0.1, 0.2, 0.3, 0.4)),
        *(
            _build(f"salt-and-pepper-{s}", "values set to 0 or 1", _prepare_salt_and_pepper(s))
            for s in (0.01, 0.02, 0.05, 0.1, 0.2)
        ),
    ),
}

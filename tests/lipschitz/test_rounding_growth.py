"""How much coarser than float64 a network rounds, by its data type and torch's settings."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from art_robust_plugins.lipschitz.agreement import rounding_growth


@pytest.mark.parametrize(
    ("dtype", "precision", "spacing"),
    [
        (torch.float64, "highest", 2.0**-52),
        (torch.float32, "highest", 2.0**-23),
        (torch.float32, "high", 2.0**-10),
        (torch.float32, "medium", 2.0**-7),
        (torch.bfloat16, "highest", 2.0**-7),
    ],
)
def test_the_growth_is_that_of_the_coarsest_products(dtype: torch.dtype, precision: str, spacing: float) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        assert rounding_growth(nn.Linear(2, 2).to(dtype)) == spacing / 2.0**-52
    finally:
        torch.set_float32_matmul_precision(before)

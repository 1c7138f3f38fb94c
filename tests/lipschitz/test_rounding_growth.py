"""How much coarser than float64 a network rounds, by its data type and torch's settings."""

from __future__ import annotations

from functools import reduce

import pytest
import torch
from torch import nn

from art_robust_plugins.lipschitz.agreement import find_product_rounding, find_rounding_growth


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
        assert find_rounding_growth(nn.Linear(2, 2).to(dtype)) == spacing / 2.0**-52
    finally:
        torch.set_float32_matmul_precision(before)


def test_the_coarsest_data_type_of_a_network_counts() -> None:
    network = nn.Sequential(nn.Linear(2, 2).double(), nn.Linear(2, 2).to(torch.bfloat16))
    assert find_rounding_growth(network) == 2.0**-7 / 2.0**-52


def test_tf32_is_switched_off_as_the_manual_says() -> None:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        assert find_product_rounding(torch.device("cuda")) == 2.0**-23
    finally:
        torch.backends.cudnn.allow_tf32 = before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch before 2.9")
@pytest.mark.parametrize(
    ("changes", "spacing"),
    [
        ({}, 2.0**-10),  # cuDNN's convolutions take TF32 unless they are told not to
        ({"cudnn.conv": "ieee"}, 2.0**-10),
        ({"cudnn.conv": "ieee", "cudnn.rnn": "ieee"}, 2.0**-23),
        ({"cudnn.conv": "ieee", "cudnn.rnn": "ieee", "cuda.matmul": "tf32"}, 2.0**-10),
    ],
)
def test_the_settings_of_a_gpu_are_read_as_torch_reads_them(changes: dict[str, str], spacing: float) -> None:
    owners = {name: reduce(getattr, name.split("."), torch.backends) for name in changes}
    before = {name: owner.fp32_precision for name, owner in owners.items()}
    try:
        for name, precision in changes.items():
            owners[name].fp32_precision = precision
        assert find_product_rounding(torch.device("cuda")) == spacing
    finally:
        for name, precision in before.items():
            owners[name].fp32_precision = precision

"""The report of a bound: operators, norms, shares."""

import json
import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch import nn

from .builders import Network, conv, linear, make_certifier

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_report_of_a_chain():
    weights = [np.diag([3.0, 1.0]), np.diag([1.0, 0.5]) * 0.5, np.float32([[2, 0], [0, 1], [0, 0]])]
    network = nn.Sequential(linear(weights[0]), nn.ReLU(), linear(weights[1]), nn.ReLU(), linear(weights[2]))
    report = make_certifier(network, (2,), 3).lipschitz_report()
    logs = np.log([3, 0.5, 2])
    rows = json.loads(json.dumps(report.rows))
    assert [row["module"] for row in rows] == ["0", "2", "4"]
    assert {row["kind"] for row in rows} == {"Linear"}
    assert [row["output_shape"] for row in rows] == [[2], [2], [3]]
    assert_allclose([row["norm"] for row in rows], [3, 0.5, 2], rtol=1e-8)
    assert_allclose([row["share"] for row in rows], logs / np.abs(logs).sum(), rtol=1e-6)
    assert rows[1]["share"] < 0
    assert report.lipschitz == pytest.approx(3)
    assert report.largest_pair == pytest.approx(1.5 * math.sqrt(5))
    lines = str(report).splitlines()
    assert len(lines) == 5
    assert len({line.index("svd") for line in lines[1:4]}) == 1
    assert "+50.0%" not in lines[2]
    assert "all logits: 3, difference of two: at most 3.3541" in lines[-1]


def test_report_of_a_residual_network():
    def forward(x, first, second, last):
        x = first(x)
        return last(torch.relu(x + 2 * torch.relu(second(x))))

    network = Network(forward, linear(np.eye(2) * 4), linear(np.eye(2) * 3), linear(np.eye(2) * 5))
    report = make_certifier(network, (2,), 2).lipschitz_report()
    assert report.lipschitz == pytest.approx(4 * (1 + 2 * 3) * 5)
    assert [row["kind"] for row in report.rows] == ["Linear", "Linear", "Scale", "Linear"]
    # d ln (1 + s n) / d ln n = d ln (1 + s n) / d ln s = 6 / 7 at n = 3, s = 2
    logs = np.array([math.log(4), 6 / 7 * math.log(3), 6 / 7 * math.log(2), math.log(5)])
    assert_allclose([row["share"] for row in report.rows], logs / logs.sum(), rtol=1e-6)
    assert sum(abs(row["share"]) for row in make_certifier(conv()).lipschitz_report().rows) == pytest.approx(1)

"""Running a graph, each sample for itself, with torch.vmap and without."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from art_robust_plugins.lipschitz import LipschitzGraph
from art_robust_plugins.lipschitz.execution import run_graph
from art_robust_plugins.lipschitz.tracing import NetworkTrace

from .builders import COLOURS, Network, conv


def refuse(*_):
    raise RuntimeError("vmap: we do not yet support aten::something.")


def test_what_vmap_lacks_runs_sample_by_sample(monkeypatch):
    network, x = conv(), torch.rand(5, *COLOURS)
    trace = NetworkTrace(network, COLOURS, torch.float32)
    nodes = [node for node in trace.dependent_nodes() if node.op == "call_function"][:2]
    expected = run_graph(trace, network, x, nodes)
    monkeypatch.setattr(torch, "vmap", refuse)
    for found, wanted in zip(run_graph(trace, network, x, nodes), expected, strict=True):
        torch.testing.assert_close(found, wanted)
    with pytest.raises(ValueError, match="network: its graph fails on a sample"):
        run_graph(trace, network, torch.rand(5, 2, 2, 2))


def test_random_slopes_in_evaluation_mode():
    network = Network(lambda x, last: functional.rrelu(last(x.flatten(1)), 0.2, 0.6), nn.Linear(108, 4)).eval()
    x = torch.randn(5, *COLOURS)
    torch.testing.assert_close(LipschitzGraph(network, COLOURS).run(x)[0], network(x))

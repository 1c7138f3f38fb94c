"""Evaluations whose attacks follow the compiled network."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from builders import Data, needs_compiler
from torch import Tensor, nn

from art_robust_plugins import ThreatModel, evaluate
from art_robust_plugins.evaluation import Evaluator
from art_robust_plugins.evaluation.report import EvaluationReport

from .builders import train_network, wrap

pytestmark = [pytest.mark.slow, needs_compiler]


@pytest.fixture
def some(data: Data) -> Data:
    return data[0][:40], data[1][:40]


def test_the_verdicts_are_those_of_the_network_and_the_report_says_what_was_compiled(some: Data, tmp_path: Any) -> None:
    network = train_network()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    plain, compiled = (
        evaluate(network, *some, "Linf", 0.1, compile=mode, verbose=False, state_dir=tmp_path / mode)
        for mode in ("no", "default")
    )
    assert 0 < plain.robust_accuracy < plain.clean_accuracy
    assert (plain.robust == compiled.robust).all()
    passes = [[(one.forward_calls, one.backward_calls) for one in each.attacks] for each in (plain, compiled)]
    assert passes[0] == passes[1]
    torch.testing.assert_close(compiled.adversarial[plain.robust], plain.adversarial[plain.robust])
    compiled.save(tmp_path)
    loaded = EvaluationReport.load(tmp_path)
    assert (loaded.settings["compile"], plain.settings["compile"]) == ("default", "no")
    assert "torch.compile" in (tmp_path / "report.html").read_text()
    assert all((network.state_dict()[name] == value).all() for name, value in before.items())
    # The same evaluation goes on without the compiler, too.
    again = evaluate(network, *some, "Linf", 0.1, verbose=False, state_dir=tmp_path / "default")
    assert (again.robust == plain.robust).all()


def test_parametrized_weights_and_arts_preprocessing_are_compiled_too(some: Data) -> None:
    network = train_network()
    nn.utils.parametrizations.weight_norm(network[0])
    nn.utils.parametrizations.spectral_norm(network[5])
    classifier = wrap(network, preprocessing=(0.1, 0.5))
    arguments: dict[str, Any] = {"attacks": ["apgd-ce", "square"], "verbose": False}
    plain, compiled = (
        Evaluator(classifier, ThreatModel("L2", 0.5), compile=mode, **arguments).evaluate(*some)  # type: ignore[arg-type]
        for mode in ("no", "default")
    )
    assert 0 < plain.robust_accuracy < plain.clean_accuracy
    assert (plain.robust == compiled.robust).all()


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.flatten(1) + 0.5 * torch.randn_like(x.flatten(1)))


def test_a_network_that_the_compiler_does_not_keep_as_it_is_is_refused(some: Data) -> None:
    import torch._inductor.config as inductor

    with pytest.raises(
        ValueError, match=r"compile: got 'default', and the compiled network's outputs or gradients differ"
    ):
        evaluate(Noisy(), *some, "Linf", 0.1, compile="default", verbose=False)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Tanh(), nn.Linear(10, 10))
    without = inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False})
    said = r"compile: got 'default', and the network cannot be compiled \(.*, expected 'no'"
    with without, pytest.raises(ValueError, match=said):
        evaluate(network, *some, "Linf", 0.1, compile="default", verbose=False)
    with pytest.raises(ValueError, match="compile: got True, expected one of 'no', 'default'"):
        evaluate(network, *some, "Linf", 0.1, compile=True)  # type: ignore[arg-type]

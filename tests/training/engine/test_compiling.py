"""Compiled forward passes."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from art_robust_plugins import (
    LocalBallTrainer,
    ThreatModel,
)
from art_robust_plugins.training import BANG, Layerwise

from .runs import PGD, X, close, cuda, named_weights, network, same_named, train, without_normalisation

needs_compiler = pytest.mark.skipif(
    all(shutil.which(name) is None for name in ("g++", "clang++")), reason="torch.compile needs a C++ compiler"
)


# ---------------------------------------------------------------------------------------------------------- compiling
class Watched(nn.Module):
    """Knows how often its own Python runs: never in a pass that is compiled already."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = without_normalisation()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.calls += 1
        return self.inner(x)


@needs_compiler
@pytest.mark.slow
def test_compiled_passes_give_the_results_of_plain_ones_in_training_and_in_the_ascent() -> None:
    """Preprocessing is compiled with the network, and BANG, which changes its backward pass."""
    shared = {**PGD, "preparation": {"preprocessing": (0.3, 0.5)}, "samples": 96}
    method = {**PGD["method"], "start": "none"}
    alone = train(Watched(), **{**shared, "method": method})
    shared["method"] = {**method, "instruments": [BANG(beta=2.0)]}
    plain = train(Watched(), **shared)
    before = plain.classifier.model.calls
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile:")
        model = Watched()
        compiled = train(model, **shared, compile="default")
    assert before > 18
    # 6 steps of two ascents and one pass in training; else checks of the classifier, and one more of the first batch.
    assert model.calls == before - 18 + 1
    assert close(named_weights(plain), named_weights(compiled), atol=1e-4)
    assert not close(named_weights(plain), named_weights(alone), atol=1e-3)
    assert compiled.classifier.model is model
    assert type(model.inner) is nn.Sequential
    assert "forward" not in vars(model)
    model.calls = 0
    compiled.logits(torch.from_numpy(X[:3]))  # after fit it is the plain network again
    assert model.calls == 1


class Branching(nn.Module):
    """Python that looks at a value, which no graph holds."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) if x.sum().item() > 0 else self.inner(-x)


@pytest.mark.parametrize("which", ["network", "instrument"])
def test_what_cannot_be_compiled_is_trained_uncompiled_with_one_warning(which: str) -> None:
    def run(compile: str) -> dict[str, Tensor]:
        model = Branching() if which == "network" else network()
        instruments = [Layerwise(0.1)] if which == "instrument" else []
        return named_weights(train(model, method={"instruments": instruments}, compile=compile))

    with pytest.warns(UserWarning, match="compile: ") as said:
        compiled = run("default")
    assert len([w for w in said if "compile:" in str(w.message)]) == 1
    assert same_named(compiled, run("no"))


def test_without_a_compiler_training_goes_on() -> None:
    import torch._inductor.config as inductor

    without = inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False})
    with without, pytest.warns(UserWarning, match="training goes on uncompiled"):
        compiled = train(compile="default")
    assert same_named(named_weights(compiled), named_weights(train()))


@needs_compiler
@pytest.mark.slow
def test_a_backward_pass_that_cannot_be_compiled_is_run_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._functorch.config
    import torch._inductor.config as inductor
    from torch._inductor.graph import GraphLowering

    if not hasattr(torch._functorch.config, "force_non_lazy_backward_lowering"):
        pytest.skip("this version of torch compiles backward passes when they run")
    real = GraphLowering.run

    def forwards_only(graph: GraphLowering, *arguments: Any) -> Any:
        if graph.is_backward:
            raise RuntimeError("no backward pass today")
        return real(graph, *arguments)

    monkeypatch.setattr(GraphLowering, "run", forwards_only)
    sentence = "training goes on uncompiled .*no backward pass today"
    with inductor.patch(force_disable_caches=True), pytest.warns(UserWarning, match=sentence):
        compiled = train(without_normalisation(), compile="default")
    assert same_named(named_weights(compiled), named_weights(train(without_normalisation())))


@needs_compiler
@pytest.mark.slow
def test_each_kind_of_pass_is_compiled_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, a local ball, and a smaller last batch: more kinds than torch compiles in one place."""
    method = {"threat": ThreatModel("Linf", 0.1), "steps": 3, "overfitting": "ignore", "start": "none"}
    shared = {"kind": LocalBallTrainer, "method": method, "samples": 70, "epochs": 1, "mixed_precision": "bf16"}
    made: list[object] = []
    real = torch.compile

    def count(function: Any, **settings: Any) -> Any:
        made.append(function)
        return real(function, **settings)

    monkeypatch.setattr(torch, "compile", count)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile:")
        compiled = train(without_normalisation(), **shared, compile="default")
    assert len(made) == 3  # evaluation with and without gradients, training with them
    assert close(named_weights(compiled), named_weights(train(without_normalisation(), **shared)), atol=5e-3)


def test_lack_of_memory_is_not_taken_for_a_network_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        def passes(x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return passes

    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(torch.OutOfMemoryError):
        train(compile="default")


def test_an_error_of_the_network_itself_stays_its_own() -> None:
    class Broken(Branching):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("the network's own mistake")
            return self.inner(x)

    with pytest.raises(RuntimeError, match="the network's own mistake"):
        train(Broken(), compile="default")


def test_cuda_graphs_need_cuda() -> None:
    with pytest.raises(ValueError, match=r"^compile: got 'reduce-overhead' .*cpu"):
        train(compile="reduce-overhead")


@cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_passes_on_a_gpu(mode: str) -> None:
    shared = {**PGD, "preparation": {"device_type": "gpu"}, "samples": 96}
    shared["method"] = {**PGD["method"], "start": "none"}
    plain = train(without_normalisation().cuda(), **shared)
    compiled = train(without_normalisation().cuda(), **shared, compile=mode)
    assert close(named_weights(plain), named_weights(compiled), atol=1e-3)

"""The engine's options: each does what it says, and leaves no trace."""

from __future__ import annotations

import shutil
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import Tensor, nn

from art_robust_plugins import PGDTrainer, RobustTrainer, StandardTrainer, ThreatModel, TrainingOptions
from art_robust_plugins.training import BANG, Layerwise

DIGITS, LABELS = load_digits(return_X_y=True)
X = (DIGITS / 16).astype(np.float32).reshape(-1, 1, 8, 8)[:200]
Y = LABELS[:200]
cuda = pytest.mark.cuda
needs_compiler = pytest.mark.skipif(
    all(shutil.which(name) is None for name in ("g++", "clang++")), reason="torch.compile needs a C++ compiler"
)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def without_normalisation(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(256, 10))


def classifier(model: nn.Module | None = None, optimizer: Any = None, **settings: Any) -> PyTorchClassifier:
    model = network() if model is None else model
    descent = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9) if optimizer is None else optimizer(model)
    settings = {"clip_values": (0, 1), **settings}
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer=descent, **settings)


def trained(
    model: nn.Module | None = None,
    *,
    kind: type[RobustTrainer] = StandardTrainer,
    optimizer: Any = None,
    method: dict[str, Any] | None = None,
    samples: int = 100,
    batch_size: int = 32,
    epochs: int = 2,
    validation: Any = None,
    scheduler: Any = None,
    preparation: dict[str, Any] | None = None,
    **options: Any,
) -> RobustTrainer:
    """A finished run on some digits."""
    estimator = classifier(model, optimizer, **(preparation or {}))
    trainer = kind(estimator, **(method or {}), options=TrainingOptions(**{"seed": 0, **options}))
    trainer.fit(
        X[:samples],
        Y[:samples],
        validation_data=validation,
        batch_size=batch_size,
        nb_epochs=epochs,
        scheduler=None if scheduler is None else scheduler(estimator.optimizer),
        verbose=False,
    )
    return trainer


def weights(trainer: RobustTrainer) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in trainer.classifier.model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def close(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 1e-5) -> bool:
    return one.keys() == other.keys() and all(
        torch.allclose(one[name].float(), other[name].float(), atol=atol) for name in one
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


PGD = {"kind": PGDTrainer, "method": {"threat": ThreatModel("Linf", 0.1), "steps": 2, "overfitting": "ignore"}}


@needs_compiler
@pytest.mark.slow
def test_compiled_passes_give_the_results_of_plain_ones_in_training_and_in_the_ascent() -> None:
    """Preprocessing is compiled with the network, and BANG, which changes its backward pass."""
    shared = {**PGD, "preparation": {"preprocessing": (0.3, 0.5)}, "samples": 96}
    method = {**PGD["method"], "start": "none"}
    alone = trained(Watched(), **{**shared, "method": method})
    shared["method"] = {**method, "instruments": [BANG(beta=2.0)]}
    plain = trained(Watched(), **shared)
    before = plain.classifier.model.calls
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile:")
        model = Watched()
        compiled = trained(model, **shared, compile="default")
    assert before > 18
    assert model.calls == before - 18  # 6 steps of two ascents and one pass in training; else checks of the classifier
    assert close(weights(plain), weights(compiled), atol=1e-4)
    assert not close(weights(plain), weights(alone), atol=1e-3)
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
        return weights(trained(model, method={"instruments": instruments}, compile=compile))

    with pytest.warns(UserWarning, match="compile: torch.compile does not take this network, training goes on") as said:
        compiled = run("default")
    assert len([w for w in said if "compile:" in str(w.message)]) == 1
    assert same(compiled, run("no"))


def test_without_a_compiler_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(inductor, "fx_graph_cache", False)
    with pytest.warns(UserWarning, match="training goes on uncompiled"):
        compiled = trained(compile="default")
    assert same(weights(compiled), weights(trained()))


def test_an_error_of_the_network_itself_stays_its_own() -> None:
    class Broken(Branching):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("the network's own mistake")
            return self.inner(x)

    with pytest.raises(RuntimeError, match="the network's own mistake"):
        trained(Broken(), compile="default")


def test_cuda_graphs_need_cuda() -> None:
    with pytest.raises(ValueError, match=r"compile: got 'reduce-overhead' \(CUDA graphs\) for a network on cpu"):
        trained(compile="reduce-overhead")


@cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_passes_on_a_gpu(mode: str) -> None:
    shared = {**PGD, "preparation": {"device_type": "gpu"}, "samples": 96}
    shared["method"] = {**PGD["method"], "start": "none"}
    plain = trained(without_normalisation().cuda(), **shared)
    compiled = trained(without_normalisation().cuda(), **shared, compile=mode)
    assert close(weights(plain), weights(compiled), atol=1e-3)

"""Fused steps of the optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from art_robust_plugins import (
    StandardTrainer,
    TrainingOptions,
)

from .runs import X, Y, classifier, close, cuda, named_weights, network, resumes_exactly, train, without_normalisation


class Calls(TorchDispatchMode):
    """The names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), settings: Any = None) -> Any:
        self.names.add(operation.__name__.split(".")[0])
        return operation(*arguments, **(settings or {}))


OPTIMIZERS = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda model: torch.optim.Adam(model.parameters(), 1e-3, foreach=True),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), 1e-3),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_fused_steps_are_those_of_the_optimizer(name: str) -> None:
    plain = train(without_normalisation(), optimizer=OPTIMIZERS[name], epochs=3)
    with Calls() as calls:
        fused = train(without_normalisation(), optimizer=OPTIMIZERS[name], epochs=3, fused_optimizer=True)
    assert f"_fused_{name}_" in calls.names
    assert close(named_weights(plain), named_weights(fused), atol=1e-5)
    one, other = (trainer.classifier.optimizer for trainer in (plain, fused))
    assert {k: v for k, v in one.param_groups[0].items() if k != "params"} == {
        k: v for k, v in other.param_groups[0].items() if k != "params"
    }
    with Calls() as calls:  # afterwards it is the user's own again, and goes on where it was
        for trainer in (plain, fused):
            StandardTrainer(trainer.classifier, options=TrainingOptions(seed=1)).fit(X[:64], Y[:64], verbose=False)
    assert f"_fused_{name}_" not in calls.names
    assert close(named_weights(plain), named_weights(fused), atol=1e-4)


def test_a_fused_optimizer_resumes(tmp_path: Path) -> None:
    resumes_exactly(tmp_path, optimizer=OPTIMIZERS["adam"], fused_optimizer=True)


def test_fused_momentum_begins_where_a_layer_is_trained_later() -> None:
    results = []
    for fused in (False, True):
        model = without_normalisation()
        model[0].requires_grad_(False)
        estimator = classifier(model)
        for _ in range(2):
            trainer = StandardTrainer(estimator, options=TrainingOptions(seed=0, fused_optimizer=fused))
            trainer.fit(X[:64], Y[:64], batch_size=32, nb_epochs=2, verbose=False)
            model[0].requires_grad_(True)
        results.append(named_weights(trainer))
    assert close(*results)


def test_other_optimizers_have_no_fused_step() -> None:
    class OwnStep(torch.optim.SGD):
        pass

    for kind in (torch.optim.RMSprop, OwnStep):
        with pytest.raises(ValueError, match=f"got the optimizer {kind.__name__},"):
            train(optimizer=lambda model, kind=kind: kind(model.parameters(), 0.01), fused_optimizer=True)
    with pytest.raises(ValueError, match="fused_optimizer: got 1,"):
        TrainingOptions(fused_optimizer=1)


@cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_fused_adam_on_a_gpu_counts_its_steps_there_and_then_on_the_cpu_again() -> None:
    trainer = train(network().cuda(), optimizer=OPTIMIZERS["adam"], preparation={"device_type": "gpu"})
    optimizer = trainer.classifier.optimizer
    options = TrainingOptions(seed=0, fused_optimizer=True)
    StandardTrainer(trainer.classifier, options=options).fit(X, Y, batch_size=64, nb_epochs=1, verbose=False)
    steps = [state["step"] for state in optimizer.state.values()]
    assert {step.device.type for step in steps} == {"cpu"}
    assert {step.item() for step in steps} == {2 * 4 + 4}

"""Networks, batches and optimizers that fail in training are refused before anything is trained."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from art_robust_plugins import (
    LayerwiseAdversarialTrainer,
    PGDTrainer,
    StandardTrainer,
    TRADESTrainer,
    TrainingOptions,
)

from ..builders import same, weights
from .small import LINF, X, Y, check_refusal, classifier, fit, network


class WithAuxiliary(nn.Module):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.form = network(), form

    def forward(self, x: Tensor) -> Any:
        logits = self.inner(x)
        return self.form(logits) if self.training else logits


class Pair(NamedTuple):
    logits: Tensor
    auxiliary: Tensor


FORMS: dict[str, Callable[[Tensor], Any]] = {
    "tuple": lambda z: (z, z),
    "dict": lambda z: {"out": z},
    "list": lambda z: [z],
    "Pair": lambda z: Pair(z, z),
    "NoneType": lambda z: None,
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("make", [StandardTrainer, lambda c: TRADESTrainer(c, threat=LINF, steps=1)])
def test_auxiliary_outputs_in_training_mode_are_refused(make: Any, form: Any) -> None:
    kind = type(form(torch.zeros(1))).__name__
    check_refusal(make(classifier(WithAuxiliary(form))), f"in training mode is a {kind}")


@pytest.mark.parametrize(
    ("form", "shape"),
    [
        (lambda z: torch.cat([z, z], 1), "(64, 20)"),
        (lambda z: z[:, :1], "(64, 1)"),
        (lambda z: z[..., None], "(64, 10, 1)"),
        (lambda z: z.mean(), "()"),
        (lambda z: z[:3], "(3, 10)"),
    ],
)
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MSELoss()])
def test_outputs_of_another_shape_in_training_mode_are_refused(form: Any, shape: str, loss: nn.Module) -> None:
    check_refusal(StandardTrainer(classifier(WithAuxiliary(form), loss)), f"in training mode is {shape}", "(64, 10)")


def test_auxiliary_outputs_are_refused_before_compiling() -> None:
    trainer = StandardTrainer(classifier(WithAuxiliary(FORMS["dict"])), options=TrainingOptions(compile="default"))
    check_refusal(trainer, "in training mode is a dict")


def test_a_last_batch_of_one_before_batch_normalisation() -> None:
    def trainer(**options: Any) -> StandardTrainer:
        return StandardTrainer(classifier(network(normalised_at_end=True)), options=TrainingOptions(**options))

    for last in ({"x": X[:129], "y": Y[:129]}, {"x": X[:1], "y": Y[:1]}):
        check_refusal(trainer(), "batch_size: got a batch of one sample", "drop_last", **last)
    check_refusal(trainer(accumulation_steps=3), "batch_size: got", x=X[:60], y=Y[:60], batch_size=5)
    fit(trainer(drop_last=True), x=X[:129], y=Y[:129])
    fit(trainer(freeze_batch_norm=True), x=X[:129], y=Y[:129])
    fit(StandardTrainer(classifier()), x=X[:129], y=Y[:129])  # images have several pixels to normalise
    data = TensorDataset(torch.from_numpy(X[:65]), torch.from_numpy(Y[:65]))
    batches = [(torch.from_numpy(X[rows]), torch.from_numpy(Y[rows])) for rows in (slice(32), slice(1))]
    for loader, trained in ((DataLoader(data, batch_size=32), False), (batches, True)):
        unlucky = trainer()
        before = weights(unlucky.classifier)
        with pytest.raises(ValueError, match="batch_size: got a batch of one sample"):
            unlucky.fit_loader(loader, nb_epochs=1, verbose=False)
        assert same(before, weights(unlucky.classifier)) is not trained  # a list tells its sizes too late
    trainer().fit_loader(DataLoader(data, batch_size=32, drop_last=True), nb_epochs=1, verbose=False)


class AsksForClosure(SGD):
    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "a closure is needed"


class NeedsClosure(SGD):
    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return closure()


def test_optimizers_that_do_not_train_the_network_are_refused() -> None:
    for kind in (AsksForClosure, NeedsClosure):
        trainer = StandardTrainer(classifier(optimizer=lambda weights, kind=kind: kind(weights, 0.1)))  # type: ignore[misc]
        check_refusal(trainer, kind.__name__, "closure")
    check_refusal(StandardTrainer(classifier(optimizer=torch.optim.SparseAdam)), "SparseAdam", "dense gradients")
    check_refusal(StandardTrainer(classifier(optimizer=lambda _: SGD(network().parameters(), 0.1))), "no weight")
    frozen = network().requires_grad_(False)
    check_refusal(StandardTrainer(classifier(frozen)), "need no gradient")


class Waits(SGD):
    """Does nothing, or waits for the second call as one with accumulated gradients does."""

    calls, every = 0, 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        return super().step(closure) if self.every and self.calls % self.every == 0 else None


def test_an_optimizer_that_moves_nothing_is_told_of() -> None:
    with pytest.warns(UserWarning, match="5 steps .*Waits"):
        fit(StandardTrainer(classifier(optimizer=lambda weights: Waits(weights, 0.1))), nb_epochs=1)
    every_second = classifier(optimizer=lambda weights: Waits(weights, 0.1))
    every_second.optimizer.every = 2
    warming_up = classifier(optimizer=lambda weights: SGD(weights, 0.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for estimator in (every_second, warming_up):
            fit(StandardTrainer(estimator), nb_epochs=1)


@pytest.mark.parametrize(("which", "kept"), [(False, [0, 0]), (True, [1, 1]), (["1"], [1, 0]), (["5*"], [0, 1])])
@pytest.mark.parametrize("make", [StandardTrainer, lambda c, **o: PGDTrainer(c, threat=LINF, steps=1, **o)])
def test_frozen_batch_normalisation_keeps_its_statistics(make: Any, which: Any, kept: list[int]) -> None:
    estimator = classifier(network(normalised_at_end=True))
    layers = [estimator.model[1], estimator.model[5]]
    before = [(layer.running_mean.clone(), layer.weight.detach().clone()) for layer in layers]
    fit(make(estimator, options=TrainingOptions(freeze_batch_norm=which)))
    assert [torch.equal(layer.running_mean, mean) for layer, (mean, _) in zip(layers, before, strict=True)] == kept
    assert not any(torch.equal(layer.weight, weight) for layer, (_, weight) in zip(layers, before, strict=True))


def test_layerwise_perturbs_frozen_normalisations_too() -> None:
    def result(eps: float) -> list[Tensor]:
        options = TrainingOptions(seed=0, freeze_batch_norm=True)
        return weights(fit(LayerwiseAdversarialTrainer(classifier(), eps=eps, options=options)).classifier)

    assert not same(result(0.0), result(0.5))


@pytest.mark.parametrize("which", ["1", 1, [2], ["nowhere"]])
def test_what_is_frozen_must_be_there(which: Any) -> None:
    with pytest.raises(ValueError, match="freeze_batch_norm: got"):
        StandardTrainer(classifier(), options=TrainingOptions(freeze_batch_norm=which))

"""What training refuses before its first step, what it tells of, and what leaves a trainer whole."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art import config
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ExponentialLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, TensorDataset

from art_robust_plugins import (
    BANGTrainer,
    LayerwiseAdversarialTrainer,
    LipschitzMarginTrainer,
    LocalBallTrainer,
    PGDTrainer,
    PyTorchLipschitzCertifier,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    TRADESTrainer,
    TrainingOptions,
)
from art_robust_plugins.data import load_data
from art_robust_plugins.runs import TrainingPlan, train_run
from art_robust_plugins.training import BANG

DIGITS, LABELS = load_digits(return_X_y=True)
X = (DIGITS / 16).astype(np.float32).reshape(-1, 1, 8, 8)[:300]
Y = LABELS[:300]
SOFT = np.eye(10)[Y] * 0.9 + 0.01
LINF = ThreatModel("Linf", 0.1)


def network(*, normalised_at_end: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    end = [nn.BatchNorm1d(12)] if normalised_at_end else []
    return nn.Sequential(
        *(nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(128, 12), *end, nn.Linear(12, 10)),
    )


def classifier(
    model: nn.Module | None = None,
    loss: nn.Module | None = None,
    optimizer: Callable[[Any], Optimizer] = lambda weights: SGD(weights, 0.05, momentum=0.9),
    **settings: Any,
) -> PyTorchClassifier:
    model = network() if model is None else model
    arguments = {"nb_classes": 10, "clip_values": (0, 1), "device_type": "cpu", **settings}
    return PyTorchClassifier(
        model, loss or nn.CrossEntropyLoss(), (1, 8, 8), optimizer=optimizer(model.parameters()), **arguments
    )


def fit(trainer: RobustTrainer, x: Any = X, y: Any = Y, **arguments: Any) -> RobustTrainer:
    trainer.fit(x, y, **{"nb_epochs": 2, "batch_size": 64, "verbose": False, **arguments})
    return trainer


def state(estimator: PyTorchClassifier) -> list[Tensor]:
    return [tensor.clone() for tensor in estimator.model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def refused(trainer: RobustTrainer, *words: str, **arguments: Any) -> None:
    """``fit`` refuses with a sentence that has these words, and leaves weights and buffers as they were."""
    before = state(trainer.classifier)
    with pytest.raises(ValueError) as refusal:  # noqa: PT011 (the words are compared below)
        fit(trainer, **arguments)
    for word in words:
        assert word in str(refusal.value)
    assert same(before, state(trainer.classifier))


# ------------------------------------------------------------------------------------------- radii in other units


PER_CHANNEL = (np.zeros((1, 8, 8), np.float32), np.linspace(1, 10, 64, dtype=np.float32).reshape(1, 8, 8))


@pytest.mark.parametrize(
    ("limits", "norm", "whole"),
    [
        ((0, 1), "Linf", 1.0),
        ((0, 1), "L2", 8.0),
        ((-1, 1), "L1", 128.0),
        (PER_CHANNEL, "Linf", 10.0),
        (PER_CHANNEL, "L2", float(np.linalg.norm(PER_CHANNEL[1]))),
        (PER_CHANNEL, "L1", float(PER_CHANNEL[1].sum())),
    ],
)
@pytest.mark.parametrize("make", [StandardTrainer, PGDTrainer])
def test_a_ball_that_holds_every_input_is_refused(make: Any, limits: Any, norm: str, whole: float) -> None:
    make(classifier(clip_values=limits), threat=ThreatModel(norm, whole * 0.999))
    with pytest.raises(ValueError, match="eps: got "):
        make(classifier(clip_values=limits), threat=ThreatModel(norm, whole * 1.001))


@pytest.mark.parametrize("limits", [None, (-np.inf, np.inf)])
def test_without_limits_any_radius_is_one(limits: Any) -> None:
    StandardTrainer(classifier(clip_values=limits), threat=ThreatModel("Linf", 8))


def test_limits_that_shrink_after_the_trainer_is_made() -> None:
    estimator = classifier(clip_values=(0, 255))
    trainer = PGDTrainer(estimator, threat=ThreatModel("Linf", 8), steps=1)
    estimator.set_params(clip_values=(0, 1))
    refused(trainer, "eps: got 8", "'8/255'")


def test_other_lengths_in_other_units() -> None:
    with pytest.raises(ValueError, match="step_size: got 2 "):
        PGDTrainer(classifier(), threat=ThreatModel("Linf", "8/255"), step_size=2)
    with pytest.raises(ValueError, match="c: got 36 "):
        LipschitzMarginTrainer(classifier(), c=36)
    certifier = PyTorchLipschitzCertifier.from_classifier(classifier())
    assert 0 <= certifier.certified_accuracy(X[:5], Y[:5], 0) <= 1
    with pytest.raises(ValueError, match="eps: got 36 "):
        certifier.certified_accuracy(X[:5], Y[:5], 36)


# ------------------------------------------------------------------------------------------------- chance, classes


def test_a_training_that_ends_at_chance_is_told_of() -> None:
    still = lambda weights: SGD(weights, 1e-9)  # noqa: E731
    with pytest.warns(UserWarning, match="training ended at chance: after 10 epochs"):
        fit(StandardTrainer(classifier(optimizer=still)), nb_epochs=10)
    batches = [(torch.from_numpy(X[i : i + 30]), torch.from_numpy(Y[i : i + 30])) for i in range(0, 300, 30)]
    with pytest.warns(UserWarning, match="training ended at chance"):
        StandardTrainer(classifier(optimizer=still)).fit_loader(batches, nb_epochs=6, verbose=False)


@pytest.mark.parametrize("case", ["learned", "short", "imbalanced", "imbalanced, squared error", "class weights"])
def test_a_network_that_has_learned_something_is_not_told_of(case: str) -> None:
    rare = (Y == 3).astype(int)  # one class holds 90 %
    loss = {"imbalanced, squared error": nn.MSELoss(), "class weights": nn.CrossEntropyLoss(torch.tensor([1.0, 9.0]))}
    several = case in ("learned", "short")
    model = network() if several else nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    estimator = classifier(model, loss.get(case), nb_classes=10 if several else 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(StandardTrainer(estimator), y=Y if several else rare, nb_epochs=1 if case == "short" else 12)


def test_a_class_without_images_is_told_of_once(tmp_path: Path) -> None:
    without = np.where(Y == 4, 5, Y)
    with pytest.warns(UserWarning, match="y: got no image of class 4 of 10 classes") as told:
        fit(StandardTrainer(classifier()), y=without)
    assert len(told) == 1
    batches = [(torch.from_numpy(X[i::5]), torch.from_numpy(without[i::5])) for i in range(5)]
    with pytest.warns(UserWarning, match="y: got no image of class 4 of 10 classes") as told:
        StandardTrainer(classifier()).fit_loader(batches, nb_epochs=2, verbose=False)
    assert len(told) == 1

    arrays = {"x_train": X[:150], "y_train": Y[:150] + 1, "x_test": X[:10], "y_test": Y[:10] + 1}
    np.savez(tmp_path / "from-one.npz", **arrays)
    with pytest.warns(UserWarning, match="y_train: got no image of class 0 of 11 classes"):
        data = load_data(tmp_path / "from-one.npz")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train_run(
            TrainingPlan("standard", network="small-cnn", epochs=1), data, tmp_path / "run", seed=0, verbose=False
        )


def test_few_images_may_leave_classes_out() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(StandardTrainer(classifier()), x=X[:9], y=Y[:9])


# ---------------------------------------------------------------------------------------------------------- losses


class Coupled(nn.Module):
    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        return (outputs - y).square().mean() + (outputs - outputs.mean(dim=0)).square().mean()


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(ignore_index=3),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0] * 9 + [1.01])),
        nn.CrossEntropyLoss(weight=torch.arange(1.0, 11), label_smoothing=0.1),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.NLLLoss(ignore_index=0),
        nn.MSELoss(reduction="sum"),
        Coupled(),
    ],
)
def test_losses_that_are_no_means_over_samples_are_not_cut(loss: nn.Module) -> None:
    trainer = StandardTrainer(classifier(loss=loss), options=TrainingOptions(accumulation_steps=4))
    refused(trainer, "accumulation_steps average over samples", type(loss).__name__)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.MultiMarginLoss(weight=torch.arange(1.0, 11)),
        nn.BCEWithLogitsLoss(pos_weight=torch.full((10,), 3.0)),
        nn.HuberLoss(),
    ],
)
def test_the_gradients_of_parts_are_those_of_the_batch(loss: nn.Module) -> None:
    model = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10))  # noqa: E731
    states = []
    for parts in (1, 5):
        torch.manual_seed(0)
        estimator = classifier(model(), copy.deepcopy(loss))
        fit(StandardTrainer(estimator, options=TrainingOptions(seed=0, accumulation_steps=parts)))
        states.append(state(estimator))
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*states, strict=True))


def test_a_batch_that_counts_for_nothing_is_refused_by_its_reason() -> None:
    weight = torch.ones(10)
    weight[2] = 0
    ignoring = StandardTrainer(classifier(loss=nn.CrossEntropyLoss(ignore_index=2)))
    for trainer in (ignoring, StandardTrainer(classifier(loss=nn.CrossEntropyLoss(weight)))):
        refused(trainer, "y: got a batch of 20 labels all of class 2", x=X[:20], y=np.full(20, 2))
        fit(trainer, batch_size=300)  # a batch with others trains


def test_losses_that_give_no_number_are_refused() -> None:
    class OfEach(nn.Module):
        def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
            return (outputs - y).square().mean(dim=1)

    refused(StandardTrainer(classifier(loss=nn.CrossEntropyLoss(reduction="none"))), "reduction 'none'")
    refused(StandardTrainer(classifier(loss=OfEach())), "a tensor of shape (64,)")


def test_binary_losses_of_several_outputs_are_one_class_against_the_rest() -> None:
    estimator = classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), nn.BCEWithLogitsLoss())
    trainer = StandardTrainer(estimator)
    x, y = torch.from_numpy(X[:8]), torch.from_numpy(Y[:8])
    expected = functional.binary_cross_entropy_with_logits(trainer.logits(x), functional.one_hot(y, 10).float())
    assert torch.equal(trainer.training_loss(x, y), expected)
    assert fit(trainer, nb_epochs=10).history[-1]["loss"] < 0.35


# ----------------------------------------------------------------------------------------------------- soft labels


def test_soft_labels_train_as_torch_takes_them() -> None:
    estimator, by_hand = classifier(), network()
    fit(StandardTrainer(estimator, options=TrainingOptions(shuffle=False)), y=SOFT)
    optimizer = SGD(by_hand.parameters(), 0.05, momentum=0.9)
    for start in [*range(0, 300, 64)] * 2:
        optimizer.zero_grad()
        rows = slice(start, start + 64)
        functional.cross_entropy(by_hand(torch.from_numpy(X[rows])), torch.from_numpy(SOFT[rows]).float()).backward()
        optimizer.step()
    assert same(state(estimator), [*by_hand.state_dict().values()])


@pytest.mark.parametrize(
    ("make", "loss"),
    [
        (BANGTrainer, nn.CrossEntropyLoss()),
        (LayerwiseAdversarialTrainer, nn.CrossEntropyLoss()),
        (lambda c: TRADESTrainer(c, threat=LINF, steps=1), nn.CrossEntropyLoss()),
        (lambda c: PGDTrainer(c, threat=LINF, steps=1), nn.MSELoss()),
        (StandardTrainer, nn.BCEWithLogitsLoss()),
    ],
)
def test_methods_and_losses_that_take_soft_labels(make: Any, loss: nn.Module) -> None:
    assert np.isfinite(fit(make(classifier(loss=loss)), x=X[:100], y=SOFT[:100], nb_epochs=1).history[0]["loss"])


@pytest.mark.parametrize(
    ("y", "loss", "word"),
    [
        (SOFT, nn.MultiMarginLoss(), "MultiMarginLoss does not take"),
        (SOFT, nn.CrossEntropyLoss(ignore_index=2), "ignore_index does not take"),
        (SOFT * 2, nn.CrossEntropyLoss(), "in row 0"),
        (SOFT - 0.02, nn.CrossEntropyLoss(), "-0.01"),
        (np.where(SOFT > 0.5, np.nan, SOFT), nn.CrossEntropyLoss(), "nan"),
        (SOFT[:-1], nn.CrossEntropyLoss(), "299 labels for 300 samples"),
    ],
)
def test_soft_labels_that_do_not_fit_are_refused(y: Any, loss: nn.Module, word: str) -> None:
    refused(StandardTrainer(classifier(loss=loss)), "y: got", word, y=y)


def test_lipschitz_margins_need_one_class() -> None:
    refused(LipschitzMarginTrainer(classifier(), c=0.1), "y: got class probabilities", y=SOFT)


# ---------------------------------------------------------------------------------------------- networks, optimizers


class WithAuxiliary(nn.Module):
    def __init__(self, form: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.form = network(), form

    def forward(self, x: Tensor) -> Any:
        logits = self.inner(x)
        return self.form(logits) if self.training else logits


@pytest.mark.parametrize("form", [lambda z: (z, z), lambda z: {"out": z}, lambda z: [z]], ids=["tuple", "dict", "list"])
@pytest.mark.parametrize("make", [StandardTrainer, lambda c: TRADESTrainer(c, threat=LINF, steps=1)])
def test_auxiliary_outputs_in_training_mode_are_refused(make: Any, form: Any) -> None:
    kind = type(form(torch.zeros(1))).__name__
    refused(make(classifier(WithAuxiliary(form))), f"in training mode is a {kind}")


def test_a_last_batch_of_one_before_batch_normalisation() -> None:
    def trainer(**options: Any) -> StandardTrainer:
        return StandardTrainer(classifier(network(normalised_at_end=True)), options=TrainingOptions(**options))

    for last in ({"x": X[:129], "y": Y[:129]}, {"x": X[:1], "y": Y[:1]}):
        refused(trainer(), "batch_size: got a batch of one sample", "drop_last", **last)
    refused(trainer(accumulation_steps=3), "batch_size: got", x=X[:60], y=Y[:60], batch_size=5)
    fit(trainer(drop_last=True), x=X[:129], y=Y[:129])
    fit(trainer(freeze_batch_norm=True), x=X[:129], y=Y[:129])
    fit(StandardTrainer(classifier()), x=X[:129], y=Y[:129])  # images have several pixels to normalise
    data = TensorDataset(torch.from_numpy(X[:65]), torch.from_numpy(Y[:65]))
    batches = [(torch.from_numpy(X[rows]), torch.from_numpy(Y[rows])) for rows in (slice(32), slice(1))]
    for loader, trained in ((DataLoader(data, batch_size=32), False), (batches, True)):
        unlucky = trainer()
        before = state(unlucky.classifier)
        with pytest.raises(ValueError, match="batch_size: got a batch of one sample"):
            unlucky.fit_loader(loader, nb_epochs=1, verbose=False)
        assert same(before, state(unlucky.classifier)) is not trained  # a list tells its sizes too late
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
        refused(trainer, kind.__name__, "closure")
    refused(StandardTrainer(classifier(optimizer=lambda _: SGD(network().parameters(), 0.1))), "no weight")
    frozen = network().requires_grad_(False)
    refused(StandardTrainer(classifier(frozen)), "need no gradient")


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
        return state(fit(LayerwiseAdversarialTrainer(classifier(), eps=eps, options=options)).classifier)

    assert not same(result(0.0), result(0.5))


@pytest.mark.parametrize("which", ["1", 1, [2], ["nowhere"]])
def test_what_is_frozen_must_be_there(which: Any) -> None:
    with pytest.raises(ValueError, match="freeze_batch_norm: got"):
        StandardTrainer(classifier(), options=TrainingOptions(freeze_batch_norm=which))


# ------------------------------------------------------------------------------------------------------ schedulers


class NeedsEpoch:
    def step(self, epoch: int) -> None:
        raise AssertionError("never called")


ELSEWHERE = SGD([nn.Parameter(torch.ones(1))], 0.1)
STEPS = {"scheduler_interval": "step"}  # 5 in an epoch, 10 in all
BAD_SCHEDULERS: dict[str, tuple[Callable[[Optimizer], Any], dict[str, Any], str]] = {
    "class": (lambda _: StepLR, {}, "the class StepLR"),
    "function": (lambda _: lambda epoch: 1.0, {}, "function"),
    "other optimizer": (lambda _: StepLR(ELSEWHERE, 1), {}, "StepLR over another SGD"),
    "other optimizer, chained": (lambda _: ChainedScheduler([StepLR(ELSEWHERE, 1)]), {}, "over another SGD"),
    "arguments": (lambda _: NeedsEpoch(), {}, "NeedsEpoch needs epoch"),
    "too short": (lambda o: OneCycleLR(o, 0.1, total_steps=9), STEPS, "9 of 9 steps to go"),
    "part too short": (
        lambda o: SequentialLR(o, [StepLR(o, 1), OneCycleLR(o, 0.1, total_steps=7)], [2]),
        STEPS,
        "at least the 8",
    ),
    "nothing to monitor": (lambda o: ReduceLROnPlateau(o, "max"), {}, "mode 'max'"),
}


@pytest.mark.parametrize("case", BAD_SCHEDULERS)
def test_schedulers_that_would_fail_or_do_nothing_are_refused_at_once(case: str) -> None:
    make, options, word = BAD_SCHEDULERS[case]
    estimator = classifier()
    trainer = StandardTrainer(estimator, options=TrainingOptions(**options))
    refused(trainer, "scheduler: ", word, scheduler=make(estimator.optimizer))


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda o: OneCycleLR(o, 0.1, total_steps=10), STEPS),
        (lambda o: SequentialLR(o, [StepLR(o, 1), OneCycleLR(o, 0.1, total_steps=8)], [2]), STEPS),
        (lambda o: ChainedScheduler([StepLR(o, 1), ExponentialLR(o, 0.9)]), {}),
    ],
)
def test_schedulers_that_just_fit_run(make: Any, options: dict[str, Any]) -> None:
    estimator = classifier()
    fit(StandardTrainer(estimator, options=TrainingOptions(**options)), scheduler=make(estimator.optimizer))


class Recording(ReduceLROnPlateau):
    def step(self, metrics: Any, epoch: Any = None) -> None:
        self.seen = [*getattr(self, "seen", []), metrics]
        super().step(metrics, epoch)


@pytest.mark.parametrize(
    ("mode", "threat", "key"),
    [
        ("min", LINF, "loss"),
        ("max", None, "validation_accuracy"),
        ("max", ThreatModel("Linf", 0.02), "validation_robust_accuracy"),
    ],
)
def test_what_a_plateau_monitors(mode: Any, threat: ThreatModel | None, key: str) -> None:
    estimator = classifier()
    scheduler = Recording(estimator.optimizer, mode)
    trainer = StandardTrainer(estimator, threat=threat, options=TrainingOptions(validation_steps=1))
    fit(trainer, scheduler=scheduler, validation_data=(X[:40], Y[:40]), nb_epochs=3)
    assert scheduler.seen == [record[key] for record in trainer.history]


# ------------------------------------------------------------------------------------- copies, numbers, augmentation


METHODS: dict[str, Callable[..., RobustTrainer]] = {
    "standard": StandardTrainer,
    "bang": lambda c, **o: BANGTrainer(c, ratio=0.5, **o),
    "layerwise": LayerwiseAdversarialTrainer,
    "lipschitz-margin": lambda c, **o: LipschitzMarginTrainer(c, c=0.2, **o),
    "local-ball": lambda c, **o: LocalBallTrainer(c, threat=LINF, overfitting="rollback", instruments=[BANG()], **o),
    "trades": lambda c, **o: TRADESTrainer(c, threat=LINF, steps=1, **o),
}


@pytest.mark.parametrize("name", METHODS)
def test_every_trainer_copies_and_pickles(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(config, "ART_DATA_PATH", str(tmp_path))  # where ART pickles weights
    options = TrainingOptions(seed=0, schedule="cosine", ema_decay=0.5)
    trainer = METHODS[name](classifier(preprocessing=(0.1, 0.5)), options=options)
    small: dict[str, Any] = {"x": X[:64], "y": Y[:64], "batch_size": 32, "nb_epochs": 1}
    if name == "lipschitz-margin":  # which takes seconds to trace
        fit(trainer, **small)
    for _ in range(1 if name == "lipschitz-margin" else 2):  # before and after fit
        twins = [copy.deepcopy(trainer), pickle.loads(pickle.dumps(trainer)), copy.copy(trainer)]
        before = state(trainer.classifier)
        for twin in twins[:2]:
            assert twin.history == trainer.history
            assert same(state(twin.classifier), before)
            fit(twin, **small)
            assert not same(state(twin.classifier), before)
        assert same(state(trainer.classifier), before)
        fit(twins[2], **small)  # which trains the same network
        assert all(same(state(twin.classifier), state(trainer.classifier)) for twin in twins)


def test_numbers_of_numpy_are_numbers() -> None:
    plain = TrainingOptions(seed=3, crop_padding=2, schedule="piecewise", milestones=(1, 1.5), ema_decay=0.5)
    given = TrainingOptions(
        seed=np.int64(3),  # type: ignore[arg-type]
        crop_padding=np.uint8(2),  # type: ignore[arg-type]
        schedule="piecewise",
        milestones=[np.int32(1), np.float32(1.5)],
        ema_decay=np.float32(0.5),  # type: ignore[arg-type]
    )
    assert repr(given) == repr(plain)
    assert repr(BANG(np.int64(1), np.float32(0.5), cap=np.int64(9))) == repr(BANG(1, 0.5, cap=9))  # type: ignore[arg-type]
    trainer = LocalBallTrainer(
        classifier(),
        threat=ThreatModel("Linf", Fraction(1, 8)),  # type: ignore[arg-type]
        steps=np.int64(2),  # type: ignore[arg-type]
        radius=np.float32(0.5),  # type: ignore[arg-type]
    )
    assert [type(trainer.parameters[name]) for name in ("steps", "radius")] == [int, float]
    fit(trainer, batch_size=np.int64(150), nb_epochs=np.int32(1))
    assert len(trainer.history) == 1
    plan = TrainingPlan("standard", epochs=np.int64(2), validation=np.int64(3))  # type: ignore[arg-type]
    assert repr(plan) == repr(TrainingPlan("standard", epochs=2, validation=3))
    for wrong in (True, 0.5):
        with pytest.raises(ValueError, match="validation: got"):
            TrainingPlan("standard", validation=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eps: got True"):
        ThreatModel("L2", True)
    with pytest.raises(ValueError, match="norm: got True"):
        ThreatModel(True, 1)


@pytest.mark.parametrize("limits", [(-np.inf, np.inf), (np.full((1, 8, 8), -np.inf), np.full((1, 8, 8), np.inf))])
def test_crops_without_a_lower_limit_are_padded_with_zeros(limits: Any) -> None:
    losses = []
    for clip_values in (None, limits):
        options = TrainingOptions(seed=0, augmentation="crop-flip", crop_padding=2)
        trainer = StandardTrainer(classifier(clip_values=clip_values), options=options)
        losses.append(fit(trainer, x=X[:64], y=Y[:64]).history[-1]["loss"])
    assert losses[0] == losses[1]

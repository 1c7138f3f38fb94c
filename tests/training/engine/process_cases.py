"""What each of two processes trains, in a launch of its own, and one process for comparison."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from art.defences.preprocessor import MixupPyTorch
from art.estimators.classification import PyTorchClassifier
from builders import make_classifier
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from art_robust_plugins import (
    BANGTrainer,
    LayerwiseAdversarialTrainer,
    LipschitzMarginTrainer,
    LocalBallTrainer,
    PyTorchWeightMapClassifier,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
)
from art_robust_plugins.training import BANG, Layerwise, PGDTrainer, TRADESTrainer

from ..builders import IMAGES, LABELS

X = IMAGES[:101]
Y = LABELS[:101]
TWO_CHANNELS = np.concatenate([X, 1 - X], axis=1)
VALIDATION = (IMAGES[101:160], LABELS[101:160])
THREAT = ThreatModel("Linf", 0.03)
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
Result = dict[str, Any]
Case = Callable[[Path], Result]
CASES: dict[str, Case] = {}


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


class Network(nn.Module):
    """No dropout and no batch normalisation, which see a share of the batch; and a layer that no loss reaches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10)
        )
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x)
        return logits


class Precise(Network):
    """Computes in float64: near x a divergence is so flat that in float32 signs of its gradient hang on rounding."""

    def forward(self, x: Tensor) -> Tensor:
        weights = {name: parameter.double() for name, parameter in self.layers.named_parameters()}
        logits: Tensor = functional_call(self.layers, weights, x.double())
        return logits


@cache
def train_start(channels: int) -> dict[str, Tensor]:
    """Weights that know something of digits: a network that knows nothing has gradients as small as rounding."""
    torch.manual_seed(0)
    model = Network(channels)
    optimizer = torch.optim.Adam([p for name, p in model.named_parameters() if "unused" not in name], 0.01)
    x, y = torch.from_numpy(X if channels == 1 else TWO_CHANNELS), torch.from_numpy(Y)
    for _ in range(40):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.state_dict()


def classifier(kind: type[Network] = Network, channels: int = 1, **settings: Any) -> PyTorchClassifier:
    """The weights of the first process count: the others begin elsewhere."""
    model = kind(channels)
    if not rank():
        model.load_state_dict(train_start(channels))
    optimizer = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.01)
    return make_classifier(model, optimizer=optimizer, input_shape=(channels, 8, 8), **settings)


def outcome(trainer: RobustTrainer, **others: Tensor) -> Result:
    weights = {name: tensor.clone() for name, tensor in trainer.classifier.model.state_dict().items()}
    history = [{name: value for name, value in record.items() if name != "seconds"} for record in trainer.history]
    return {"weights": {**weights, **others}, "history": history}


def run_fit(trainer: RobustTrainer, x: Any = X, y: Any = Y, **settings: Any) -> Result:
    """Batches of 25 (shares of 13 and 12), and a last one of a single sample, which the second process lacks."""
    trainer.fit(x, y, **{"batch_size": 25, "nb_epochs": 3, "verbose": False, **settings})
    return outcome(trainer)


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


@case
def standard(_: Path) -> Result:
    trained = classifier()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(trained.optimizer, factor=0.5, patience=0, threshold=0.9)
    result = run_fit(StandardTrainer(trained, options=TrainingOptions(seed=1)), nb_epochs=4, scheduler=plateau)
    assert result["history"][-1]["learning_rate"] < 0.1
    return result


@case
def bang(_: Path) -> Result:
    return run_fit(BANGTrainer(classifier(), ratio=0.5, options=TrainingOptions(seed=1, max_gradient_norm=0.5)))


@case
def layerwise(folder: Path) -> Result:
    options = TrainingOptions(seed=1, checkpoint_dir=folder / "layerwise")
    result = run_fit(LayerwiseAdversarialTrainer(classifier(), eps=0.3, options=options))
    # The signs of the whole batch are in the checkpoint, with which a run of any number of processes goes on.
    options = TrainingOptions(seed=1, checkpoint_dir=folder / "layerwise", resume=True)
    trainer = LayerwiseAdversarialTrainer(classifier(), eps=0.3, options=options)
    resumed = run_fit(trainer, nb_epochs=4)
    assert resumed["history"][:3] == result["history"]
    return resumed


@case
def local_ball_with_two_instruments(_: Path) -> Result:
    trainer = LocalBallTrainer(
        classifier(Precise),
        threat=THREAT,
        steps=2,
        eps_warmup_epochs=1,
        instruments=[BANG(layers=["layers.5"]), Layerwise(0.1)],
        options=TrainingOptions(seed=1, keep_best=True),
    )
    result = run_fit(trainer, validation_data=VALIDATION, nb_epochs=2)
    assert {"own_adversary_accuracy", "strong_adversary_accuracy", "validation_robust_accuracy"} <= {
        *result["history"][-1]
    }
    return result


@case
def rolled_back(_: Path) -> Result:
    trainer = LocalBallTrainer(
        classifier(Precise),
        threat=THREAT,
        overfitting="rollback",
        instruments=[Layerwise(0.3)],
        options=TrainingOptions(seed=1, channels_last=True),
    )
    counts = iter([(50, 50, 64), (50 - 40 * rank(), 5, 64), (50, 50, 64)])
    real = trainer.overfitting_watch.count_resisting

    def count() -> tuple[int, int, int]:
        real()
        own, strong, images = next(counts)
        found = torch.tensor([own])
        trainer.copy_from_main_process([found])
        return int(found), strong, images

    trainer.overfitting_watch.count_resisting = count  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = run_fit(trainer)
    assert [record.get("rolled_back") for record in result["history"]] == [None, 1, None]
    return result


@case
def pgd_in_l2(_: Path) -> Result:
    return run_fit(PGDTrainer(classifier(), threat=ThreatModel("L2", 0.2), steps=3, options=TrainingOptions(seed=1)))


@case
def pgd_in_l1(_: Path) -> Result:
    return run_fit(PGDTrainer(classifier(), threat=ThreatModel("L1", 0.5), steps=3, options=TrainingOptions(seed=1)))


@case
def trades(_: Path) -> Result:
    options = TrainingOptions(seed=1, channels_last=True)
    trainer = TRADESTrainer(classifier(Precise, channels=2), threat=THREAT, steps=2, start="gaussian", options=options)
    return run_fit(trainer, TWO_CHANNELS)


@case
def fused_steps_of_channels_last(_: Path) -> Result:
    """A fused step walks through memory: gradients in another order than the weights' would move wrong ones."""
    options = TrainingOptions(seed=1, channels_last=True, fused_optimizer=True)
    return run_fit(StandardTrainer(classifier(channels=2), options=options), TWO_CHANNELS)


@case
def parts_augmentation_and_average(_: Path) -> Result:
    """Each part of a batch (of 13 and 12 samples) is shared, with the random starts of the whole part."""
    options = TrainingOptions(seed=1, accumulation_steps=2, ema_decay=0.9, augmentation="crop-flip", crop_padding=1)
    trainer = PGDTrainer(classifier(Precise), threat=THREAT, steps=2, options=options)
    return run_fit(trainer, validation_data=VALIDATION)


@case
def from_the_previous_adversary(folder: Path) -> Result:
    """All processes keep the changes of all samples, of which each had a share."""
    changes: dict[str, Any] = {"steps": 1, "step_size": 0.02, "start": "previous", "start_noise": 0.5}
    moved: dict[str, Any] = {"augmentation": "crop-flip", "crop_padding": 1, "accumulation_steps": 2}
    for epochs in (2, 3):
        options = TrainingOptions(seed=1, checkpoint_dir=folder / "previous", resume=epochs > 2, **moved)
        trainer = PGDTrainer(classifier(Precise), threat=THREAT, **changes, options=options)
        result = run_fit(trainer, nb_epochs=epochs)
    assert trainer.change_store is not None
    assert trainer.change_store.complete
    return {**result, "weights": result["weights"] | {"changes": trainer.change_store.changes.clone()}}


@case
def lipschitz_margin(_: Path) -> Result:
    trainer = LipschitzMarginTrainer(classifier(), c=0.1, c_warmup_epochs=2, options=TrainingOptions(seed=1))
    result = run_fit(trainer)
    vectors = {name: vector.clone() for name, vector in trainer.graph.vectors.items()}
    assert vectors
    return {**result, "weights": result["weights"] | vectors}


@case
def weight_map(_: Path) -> Result:
    trained = PyTorchWeightMapClassifier.from_classifier(classifier(), kernel="unsharp")
    return run_fit(StandardTrainer(trained, options=TrainingOptions(seed=1)))


@case
def loader(_: Path) -> Result:
    """A loader that shuffles by torch's global random numbers, of a length that is not known, with labels mixed."""
    data = DataLoader(TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), batch_size=7, shuffle=True)

    class Stream:
        def __iter__(self) -> Iterator[Any]:
            return iter(data)

    mixup = MixupPyTorch(num_classes=10, apply_fit=True, apply_predict=False)
    trainer = StandardTrainer(classifier(preprocessing_defences=mixup), options=TrainingOptions(seed=1))
    trainer.fit_loader(Stream(), nb_epochs=2, verbose=False)
    return outcome(trainer)


class Smoothed(RobustTrainer):
    """A method of one's own, which draws noise for two copies of a batch at once."""

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        twice = torch.cat([x, x])
        logits = self.logits(twice + 0.1 * self.draw(torch.randn_like, twice))
        return self.loss(logits, torch.cat([y, y]))


@case
def smoothed(_: Path) -> Result:
    return run_fit(Smoothed(classifier(), options=TrainingOptions(seed=1)), X[:7], Y[:7], batch_size=4)


class Poisoned(RobustTrainer):
    """Its loss is not a number in one process alone, from the second epoch on."""

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.loss(self.logits(x), y)
        return loss * float("nan") if rank() and self.epochs_done >= 1 else loss


def refusal(work: Callable[[], object]) -> str:
    try:
        work()
    except (ValueError, FloatingPointError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("nothing was refused")


def rate_set_to(rate: float) -> PyTorchClassifier:
    trained = classifier()
    trained.optimizer.param_groups[0]["lr"] = rate
    return trained


def with_rate(rate: float) -> PyTorchClassifier:
    return make_classifier(Network(1), optimizer=partial(torch.optim.SGD, lr=rate))


def fit(trainer: RobustTrainer, x: Any = X, y: Any = Y, **settings: Any) -> None:
    trainer.fit(x, y, **{"batch_size": 25, "nb_epochs": 1, "verbose": False, **settings})


def step_lr(trained: PyTorchClassifier) -> Any:
    return torch.optim.lr_scheduler.StepLR(trained.optimizer, 1, gamma=0.5 + 0.1 * rank())


def refusals() -> dict[str, str]:
    """What two processes refuse, both of them."""
    other_eps, other_parts = ThreatModel("Linf", 0.03 * (1 + rank())), TrainingOptions(accumulation_steps=1 + rank())
    other_validation = (VALIDATION[0], np.roll(VALIDATION[1], rank()))
    trained = classifier()
    batches, other = [(X[:10], Y[:10]), (X[10:20], Y[10:20])], [(X[:10], Y[:10]), (X[10:20], Y[10:20][::-1].copy())]
    return {
        "labels": refusal(lambda: fit(StandardTrainer(classifier()), y=np.roll(Y, rank()))),
        "images": refusal(lambda: fit(StandardTrainer(classifier()), np.roll(X, rank(), axis=0))),
        "fewer": refusal(lambda: fit(StandardTrainer(classifier()), X[rank() :], Y[rank() :])),
        "lr": refusal(lambda: fit(StandardTrainer(with_rate(0.01 * (1 + rank()))))),
        "lr now": refusal(lambda: fit(StandardTrainer(rate_set_to(0.01 * (1 + rank()))))),
        "scheduler": refusal(lambda: fit(StandardTrainer(trained), scheduler=step_lr(trained))),
        "eps": refusal(lambda: fit(PGDTrainer(classifier(), threat=other_eps))),
        "accumulation_steps": refusal(lambda: fit(StandardTrainer(classifier(), options=other_parts))),
        "validation": refusal(lambda: fit(StandardTrainer(classifier()), validation_data=other_validation)),
        "unvalidated": refusal(
            lambda: fit(StandardTrainer(classifier()), validation_data=VALIDATION if rank() else None)
        ),
        "epochs": refusal(lambda: fit(StandardTrainer(classifier()), nb_epochs=1 + rank())),
        "loader": refusal(lambda: StandardTrainer(classifier()).fit_loader([batches, other][rank()], verbose=False)),
        "shorter": refusal(lambda: StandardTrainer(classifier()).fit_loader(batches[: 2 - rank()], verbose=False)),
        "loss": refusal(lambda: fit(Poisoned(classifier()), nb_epochs=2)),
    }


class Noisy(RobustTrainer):
    """Notes the noise that it meets: what is drawn for the whole batch, and its own, as dropout draws it."""

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.share_of_whole, self.own = self.draw(torch.rand_like, x), torch.rand(1000)
        return self.loss(self.logits(x), y)


def noise() -> dict[str, Tensor]:
    trainer = Noisy(classifier(), options=TrainingOptions(seed=1))
    trainer.fit(X[:20], Y[:20], batch_size=20, nb_epochs=1, verbose=False)
    return {"own": trainer.own, "share_of_whole": trainer.share_of_whole}


def main(folder: Path) -> None:
    """What each of the two processes does."""
    torch.set_num_threads(1)
    results: dict[str, Any] = {name: function(folder) for name, function in CASES.items()}
    results |= {"refusals": refusals(), "noise": noise()}
    torch.save(results, folder / f"{rank()}.pt")
    torch.distributed.destroy_process_group()

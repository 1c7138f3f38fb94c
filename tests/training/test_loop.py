"""The training loop: ART's contract, repeatability, resuming, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from art.attacks.evasion import FastGradientMethod, ProjectedGradientDescent
from art.data_generators import DataGenerator, NumpyDataGenerator, PyTorchDataGenerator
from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.defences.trainer import Trainer
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from art_robust_plugins import BANGTrainer, RobustTrainer, StandardTrainer, ThreatModel, TrainingOptions
from art_robust_plugins.files import load_state, save_state
from art_robust_plugins.training import BANG, Instrument

DIGITS, LABELS = load_digits(return_X_y=True)
X = (DIGITS / 16).astype(np.float32).reshape(-1, 1, 8, 8)[:600]
Y = LABELS[:600]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(128, 10),
    )


def classifier(loss: nn.Module | None = None, optimizer: str = "SGD", **settings: Any) -> PyTorchClassifier:
    model = network()
    rates = {"SGD": {"lr": 0.05, "momentum": 0.9}, "Adam": {"lr": 0.003}, "RMSprop": {"lr": 0.001}}
    settings = {"clip_values": (0, 1), **settings}
    return PyTorchClassifier(
        model,
        loss or nn.CrossEntropyLoss(),
        (1, 8, 8),
        10,
        optimizer=getattr(torch.optim, optimizer)(model.parameters(), **rates[optimizer]),
        **settings,
    )


def weights(trained: PyTorchClassifier) -> list[Tensor]:
    return [tensor.clone() for tensor in trained.model.state_dict().values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def accuracy(trained: PyTorchClassifier) -> float:
    return float((trained.predict(X).argmax(axis=1) == Y).mean())


# ------------------------------------------------------------------------------------------- the loop is plain torch


def test_it_equals_a_loop_written_by_hand() -> None:
    trained, by_hand = classifier(), network()
    trained.model[6].p = by_hand[6].p = 0.0  # dropout would draw other random numbers
    trainer = StandardTrainer(trained, options=TrainingOptions(shuffle=False))
    trainer.fit(X, Y, batch_size=64, nb_epochs=2, verbose=False)
    optimizer = torch.optim.SGD(by_hand.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(2):
        for start in range(0, len(X), 64):
            x, y = torch.from_numpy(X[start : start + 64]), torch.from_numpy(Y[start : start + 64])
            optimizer.zero_grad()
            loss = functional.cross_entropy(by_hand(x), y)
            losses.append(loss.item() * len(x))
            loss.backward()
            optimizer.step()
    assert same(weights(trained), [t.clone() for t in by_hand.state_dict().values()])
    assert trainer.history[1]["loss"] == pytest.approx(sum(losses[10:]) / len(X), rel=1e-6)


def test_it_is_an_art_trainer_that_trains_the_users_own_object() -> None:
    trained = classifier()
    model, optimizer = trained.model, trained.optimizer
    trainer = StandardTrainer(trained)
    assert isinstance(trainer, Trainer)
    trainer.fit(X, np.eye(10)[Y], nb_epochs=5, verbose=False)
    assert trainer.get_classifier() is trained
    assert trainer.classifier is trained
    assert trained.model is model
    assert trained.optimizer is optimizer
    assert accuracy(trained) > 0.8
    assert not any(module.training for module in model.modules())
    assert all(p.requires_grad for p in model.parameters())


def test_arts_attacks_run_on_the_trained_classifier_and_training_goes_on_after_them() -> None:
    """ART's loss_gradient leaves evaluation mode and gradients behind; neither may leak into training."""
    one, other = classifier(), classifier()
    for trained in (one, other):
        trainer = StandardTrainer(trained, options=TrainingOptions(seed=0))
        trainer.fit(X, Y, nb_epochs=3, verbose=False)
        if trained is one:
            attack = ProjectedGradientDescent(trained, eps=0.1, eps_step=0.02, max_iter=5, verbose=False)
            adversarial = attack.generate(X[:100])
            assert np.abs(adversarial - X[:100]).max() <= 0.1 + 1e-6
            assert (trained.predict(adversarial).argmax(axis=1) == Y[:100]).mean() < accuracy(trained)
            FastGradientMethod(trained, eps=0.1).generate(X[:20], Y[:20])
            assert trained.model[0].weight.grad is not None
        trainer.fit(X, Y, nb_epochs=1, verbose=False)
    assert same(weights(one), weights(other))


# -------------------------------------------------------------------------------- every set-up of a PyTorchClassifier


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop"])
@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), nn.MultiMarginLoss(), nn.MSELoss()])
def test_losses_and_optimizers(loss: nn.Module, optimizer: str) -> None:
    trained = classifier(loss, optimizer)
    StandardTrainer(trained, options=TrainingOptions(seed=0)).fit(X, Y, nb_epochs=8, batch_size=32, verbose=False)
    assert accuracy(trained) > 0.7


def test_nll_loss_with_a_log_softmax_network() -> None:
    model = nn.Sequential(network(), nn.LogSoftmax(dim=1))
    trained = PyTorchClassifier(model, nn.NLLLoss(), (1, 8, 8), 10, optimizer=torch.optim.Adam(model.parameters()))
    StandardTrainer(trained).fit(X, Y, nb_epochs=5, verbose=False)
    assert accuracy(trained) > 0.5


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.BCELoss()])
def test_a_binary_network_with_one_output(loss: nn.Module) -> None:
    rows = Y < 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.Identity())
    if isinstance(loss, nn.BCELoss):
        model[2] = nn.Sigmoid()
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    trained = PyTorchClassifier(model, loss, (1, 8, 8), 2, optimizer=optimizer, clip_values=(0, 1))
    trainer = StandardTrainer(trained, threat=ThreatModel("Linf", 0.1))
    trainer.fit(X[rows], Y[rows], validation_data=(X[rows], Y[rows]), nb_epochs=10, verbose=False)
    assert trainer.history[-1]["validation_accuracy"] > 0.95
    assert 0 < trainer.history[-1]["validation_robust_accuracy"] <= trainer.history[-1]["validation_accuracy"]


class Brighten(PreprocessorPyTorch):
    """Adds a constant, and counts its calls."""

    def __init__(self, amount: float, **settings: Any) -> None:
        super().__init__(device_type="cpu", is_fitted=True, **settings)
        self.amount, self.calls = amount, 0

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        self.calls += 1
        return x + self.amount, y


class SoftLabels(PreprocessorPyTorch):
    """Mixes each label with the uniform distribution, in training only, as mixup-like defences do."""

    def __init__(self) -> None:
        super().__init__(device_type="cpu", is_fitted=True, apply_fit=True, apply_predict=False)

    def forward(self, x: Tensor, y: Any = None) -> tuple[Tensor, Any]:
        return x, 0.5 * y + 0.05


def test_preprocessing_is_that_of_the_classifier() -> None:
    """Mean and deviation, and a defence of fit and predict: training sees what predict sees."""
    defended = classifier(preprocessing=(0.3, 0.5), preprocessing_defences=Brighten(0.25))
    StandardTrainer(defended, options=TrainingOptions(shuffle=False)).fit(X[:64], Y[:64], nb_epochs=1, verbose=False)
    plain = classifier(clip_values=None)
    prepared = (X[:64] + 0.25 - 0.3) / 0.5
    StandardTrainer(plain, options=TrainingOptions(shuffle=False)).fit(prepared, Y[:64], nb_epochs=1, verbose=False)
    for one, other in zip(weights(defended), weights(plain), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_defences_that_act_in_fit_alone_act_in_every_batch_and_not_in_validation() -> None:
    defence = Brighten(0.1, apply_fit=True, apply_predict=False)
    trainer = StandardTrainer(classifier(preprocessing_defences=defence))
    trainer.fit(X[:128], Y[:128], validation_data=(X[128:160], Y[128:160]), batch_size=32, nb_epochs=2, verbose=False)
    assert defence.calls == 8


def test_defences_in_an_order_that_cannot_be_kept_are_refused() -> None:
    both, fit_only = Brighten(0.1), Brighten(0.2, apply_fit=True, apply_predict=False)
    StandardTrainer(classifier(preprocessing_defences=[fit_only, both]))
    with pytest.raises(ValueError, match="the training-only defence Brighten comes after Brighten, expected it before"):
        StandardTrainer(classifier(preprocessing_defences=[both, fit_only]))


def test_parameters_outside_the_optimizer_keep_no_gradients() -> None:
    trained = classifier()
    trained._optimizer = torch.optim.SGD(trained.model[7].parameters(), 0.1)
    StandardTrainer(trained).fit(X[:128], Y[:128], batch_size=64, nb_epochs=1, verbose=False)
    after_two_steps = trained.model[0].weight.grad.clone()
    alone = classifier()
    alone._optimizer = torch.optim.SGD(alone.model[7].parameters(), 0.1)
    options = TrainingOptions(seed=0)
    StandardTrainer(alone, options=options).fit(X[:64], Y[:64], batch_size=64, nb_epochs=1, verbose=False)
    assert after_two_steps.norm() < 2 * alone.model[0].weight.grad.norm()


def test_defences_that_change_labels() -> None:
    seen: list[Tensor] = []

    class Watching(BANGTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(y)
            return super().training_loss(x, y)

    Watching(classifier(preprocessing_defences=SoftLabels()), ratio=0.5).fit(X[:64], Y[:64], nb_epochs=1, verbose=False)
    assert seen[0].shape == (64, 10)
    assert seen[0].max() == pytest.approx(0.55)


def test_channels_last_classifiers() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.movedim(-1, 1))

    model = Last()
    optimizer = torch.optim.Adam(model.parameters())
    trained = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        (8, 8, 1),
        10,
        optimizer=optimizer,
        channels_first=False,
        clip_values=(0, 1),
        preprocessing=(np.array([0.3]), np.array([0.5])),
    )
    trainer = StandardTrainer(trained, threat=ThreatModel("L2", 0.5))
    last = X.transpose(0, 2, 3, 1)
    trainer.fit(last, Y, validation_data=(last[:50], Y[:50]), nb_epochs=4, batch_size=32, verbose=False)
    assert (trained.predict(last).argmax(axis=1) == Y).mean() > 0.7


def test_tensors_and_clip_values_of_each_feature() -> None:
    low, high = np.zeros((1, 8, 8), np.float32), np.linspace(0.5, 1.5, 64, dtype=np.float32).reshape(1, 8, 8)
    trainer = StandardTrainer(classifier(clip_values=(low, high)), threat=ThreatModel("Linf", 0.1))
    x = torch.from_numpy(X * high)
    trainer.fit(x, torch.from_numpy(Y), validation_data=(x[:50], Y[:50]), nb_epochs=1, verbose=False)
    assert set(trainer.history[0]) >= {"validation_accuracy", "validation_robust_accuracy"}


# ------------------------------------------------------------------------------------- arrays, generators and loaders


class Custom(DataGenerator):
    """A generator that can only be asked for the next batch."""

    def __init__(self) -> None:
        super().__init__(size=100, batch_size=32)
        self.asked = 0

    def get_batch(self) -> tuple[np.ndarray, np.ndarray]:
        rows = slice(32 * (self.asked % 4), 32 * (self.asked % 4) + 32)
        self.asked += 1
        return X[:100][rows], Y[:100][rows]


def test_three_ways_in_one_loop() -> None:
    """The same batches in the same order give the same weights, wherever they come from."""
    results = []
    options = TrainingOptions(seed=0, shuffle=False)
    dataset = TensorDataset(torch.from_numpy(X[:100]), torch.from_numpy(Y[:100]))
    loader = DataLoader(dataset, batch_size=32)
    sources = {
        "fit": lambda t: t.fit(X[:100], Y[:100], batch_size=32, nb_epochs=2, verbose=False),
        "fit_loader": lambda t: t.fit_loader(loader, nb_epochs=2, verbose=False),
        "numpy": lambda t: t.fit_generator(
            NumpyDataGenerator(X[:100], np.eye(10)[Y[:100]], 32, drop_remainder=False), nb_epochs=2, verbose=False
        ),
        "torch": lambda t: t.fit_generator(PyTorchDataGenerator(loader, 100, 32), nb_epochs=2, verbose=False),
        "custom": lambda t: t.fit_generator(Custom(), nb_epochs=2, verbose=False),
    }
    for run in sources.values():
        trained = classifier()
        trained.model[6].p = 0.0  # a loader draws from the random stream that dropout draws from
        run(StandardTrainer(trained, options=options))
        results.append(weights(trained))
    assert all(same(results[0], other) for other in results[1:])


def test_a_whole_epoch_sees_each_sample_once_and_drop_last_leaves_out_the_rest() -> None:
    seen: list[Tensor] = []

    class Watching(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(x)
            return super().training_loss(x, y)

    Watching(classifier()).fit(X[:100], Y[:100], batch_size=32, nb_epochs=1, verbose=False)
    assert [len(x) for x in seen] == [32, 32, 32, 4]
    assert sorted(torch.cat(seen).flatten(1).tolist()) == sorted(X[:100].reshape(100, -1).tolist())
    seen.clear()
    Watching(classifier(), options=TrainingOptions(drop_last=True)).fit(X[:100], Y[:100], batch_size=32, nb_epochs=1)
    assert [len(x) for x in seen] == [32, 32, 32]


# ----------------------------------------------------------------------------------------- seeds, schedules, selection


def run(seed: int | None, **options: Any) -> list[Tensor]:
    trained = classifier()
    trainer = BANGTrainer(trained, options=TrainingOptions(seed=seed, **options))
    trainer.fit(X[:200], Y[:200], nb_epochs=2, verbose=False)
    return weights(trained)


def test_one_seed_makes_a_run_repeatable_and_leaves_the_global_state_alone() -> None:
    first = run(3)
    trainer = BANGTrainer(classifier(), options=TrainingOptions(seed=3))
    torch.manual_seed(11)
    np.random.seed(11)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    trainer.fit(X[:200], Y[:200], nb_epochs=2, verbose=False)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]
    assert same(first, weights(trainer.classifier))
    assert not same(first, run(4))


def test_training_on_a_cpu_leaves_the_random_numbers_of_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = StandardTrainer(classifier(), options=TrainingOptions(seed=3))
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail(f"all GPUs were seeded with {seed}"))
    trainer.fit(X[:64], Y[:64], nb_epochs=1, verbose=False)


def test_without_a_seed_the_global_one_decides() -> None:
    results = []
    for seed in (5, 5, 6):
        trained = classifier()
        torch.manual_seed(seed)
        BANGTrainer(trained).fit(X[:200], Y[:200], nb_epochs=1, verbose=False)
        results.append(weights(trained))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_validation_does_not_change_the_training() -> None:
    results = []
    for validation in (None, (X[300:400], Y[300:400])):
        trained = classifier()
        trainer = BANGTrainer(trained, threat=ThreatModel("L1", 2.0), options=TrainingOptions(seed=0))
        trainer.fit(X[:200], Y[:200], validation_data=validation, nb_epochs=2, verbose=False)
        results.append(weights(trained))
    assert same(*results)


def test_schedulers_per_epoch_and_per_step() -> None:
    for interval, expected in (("epoch", [0.05, 0.025, 0.0125]), ("step", [0.025, 0.00625, 0.0015625])):
        trained = classifier()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(trained.optimizer, 0.5)
        trainer = StandardTrainer(trained, options=TrainingOptions(scheduler_interval=interval))
        trainer.fit(X[:100], Y[:100], batch_size=50, nb_epochs=3, scheduler=scheduler, verbose=False)
        assert [record["learning_rate"] for record in trainer.history] == pytest.approx(expected)
    trained = classifier()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(trained.optimizer, patience=0, threshold=1e9)
    trainer = StandardTrainer(trained)
    trainer.fit(X[:100], Y[:100], nb_epochs=3, scheduler=plateau, verbose=False)
    assert trainer.history[-1]["learning_rate"] < 0.05


def test_robust_validation_is_that_of_a_pgd_attack() -> None:
    trained = classifier()
    trainer = StandardTrainer(trained, threat=ThreatModel("Linf", 0.1))
    trainer.fit(X, Y, validation_data=(X[:200], Y[:200]), nb_epochs=4, verbose=False)
    attack = ProjectedGradientDescent(trained, eps=0.1, eps_step=0.025, max_iter=10, num_random_init=1, verbose=False)
    against = (trained.predict(attack.generate(X[:200], Y[:200])).argmax(axis=1) == Y[:200]).mean()
    assert trainer.history[-1]["validation_robust_accuracy"] == pytest.approx(against, abs=0.03)
    assert trainer.history[-1]["validation_accuracy"] == pytest.approx(
        (trained.predict(X[:200]).argmax(axis=1) == Y[:200]).mean()
    )


def test_the_best_epoch_is_kept() -> None:
    states = []

    class Falling(StandardTrainer):
        """Learns for two epochs, then destroys what it learnt."""

        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            sign = 1 if len(self.history) < 2 else -1
            return sign * super().training_loss(x, y)

        def _validate(self, x: Tensor, y: Tensor, batch_size: int = 500) -> dict[str, float]:
            states.append(weights(self.classifier))
            return super()._validate(x, y, batch_size)

    trained = classifier()
    trainer = Falling(trained, options=TrainingOptions(keep_best=True))
    trainer.fit(X, Y, validation_data=(X, Y), nb_epochs=4, verbose=False)
    found = [record["validation_accuracy"] for record in trainer.history]
    best = int(np.argmax(found))
    assert best < 3
    assert same(weights(trained), states[best])
    assert accuracy(trained) == pytest.approx(found[best])


def test_gradient_clipping_channels_last_and_bf16() -> None:
    small = classifier()
    before = small.model[0].weight.detach().clone()
    options = TrainingOptions(max_gradient_norm=1e-6)
    StandardTrainer(small, options=options).fit(X[:64], Y[:64], batch_size=64, nb_epochs=1, verbose=False)
    assert 0 < (small.model[0].weight.detach() - before).norm() <= 0.05 * 1e-6 * 1.01
    results = []
    for options in (TrainingOptions(seed=0), TrainingOptions(seed=0, channels_last=True)):
        trained = classifier()
        StandardTrainer(trained, options=options).fit(X[:256], Y[:256], nb_epochs=1, verbose=False)
        results.append(weights(trained))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one.float(), other.float(), atol=1e-4)
    seen: list[torch.dtype] = []

    class Watching(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            logits = self.logits(x)
            seen.append(logits.dtype)
            return self.loss(logits, y)

    half = classifier()
    inside: list[torch.dtype] = []
    half.model[-1].register_forward_hook(lambda module, _, out: inside.append(out.dtype) if module.training else None)
    Watching(half, options=TrainingOptions(seed=0, mixed_precision="bf16")).fit(X, Y, nb_epochs=5, verbose=False)
    assert set(inside) == {torch.bfloat16}
    assert set(seen) == {torch.float32}  # for the loss
    assert half.model[0].weight.dtype == torch.float32
    assert accuracy(half) > 0.8


# ------------------------------------------------------------------------------------------------ stopping, resuming


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    class Breaking(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            self.steps = getattr(self, "steps", 0) + 1
            return super().training_loss(x, y) * (torch.nan if self.steps == 7 else 1.0)

    trained = classifier()
    trainer = Breaking(trained, options=TrainingOptions(checkpoint_dir=tmp_path))
    with pytest.raises(FloatingPointError, match=r"the loss became nan in epoch 2, step 3"):
        trainer.fit(X[:128], Y[:128], batch_size=32, nb_epochs=3, verbose=False)
    assert all(tensor.isfinite().all() for tensor in weights(trained))
    saved = torch.load(tmp_path / "training.pt", weights_only=True)
    assert saved["epochs"] == 1


def resumable(folder: Path, resume: bool, epochs: int) -> tuple[list[Tensor], list[dict[str, float]]]:
    trained = classifier(optimizer="Adam")
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(trained.optimizer, 5)
    options = TrainingOptions(seed=2, checkpoint_dir=folder, resume=resume, keep_best=True)
    trainer = BANGTrainer(trained, ratio=0.5, threat=ThreatModel("Linf", 0.1), options=options)
    validation = (X[300:400], Y[300:400])
    trainer.fit(X[:300], Y[:300], validation_data=validation, nb_epochs=epochs, scheduler=scheduler, verbose=False)
    return weights(trained), trainer.history


def test_a_resumed_run_equals_one_that_was_never_stopped(tmp_path: Path) -> None:
    whole, history = resumable(tmp_path / "whole", False, 5)
    resumable(tmp_path / "parts", False, 2)
    resumable(tmp_path / "parts", True, 3)
    resumed, resumed_history = resumable(tmp_path / "parts", True, 5)
    assert same(whole, resumed)
    for one, other in zip(history, resumed_history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    finished, _ = resumable(tmp_path / "parts", True, 5)
    assert same(whole, finished)


def test_generators_and_loaders_resume_too(tmp_path: Path) -> None:
    def training(folder: Path, resume: bool, epochs: int, kind: str) -> list[Tensor]:
        trained = classifier()
        trainer = StandardTrainer(trained, options=TrainingOptions(seed=0, checkpoint_dir=folder, resume=resume))
        if kind == "loader":
            dataset = TensorDataset(torch.from_numpy(X[:100]), torch.from_numpy(Y[:100]))
            trainer.fit_loader(DataLoader(dataset, 32, shuffle=True), nb_epochs=epochs, verbose=False)
        else:
            generator = NumpyDataGenerator(X[:100], Y[:100], 32, shuffle=True)
            trainer.fit_generator(generator, nb_epochs=epochs, verbose=False)
        return weights(trained)

    for kind in ("loader", "generator"):
        whole = training(tmp_path / kind / "whole", False, 3, kind)
        training(tmp_path / kind / "parts", False, 1, kind)
        assert same(whole, training(tmp_path / kind / "parts", True, 3, kind))


KILLED = textwrap.dedent(
    """
    import sys, time
    import torch
    torch.set_num_threads(1)
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from training import test_loop

    def slow(self, x, y, plain=test_loop.BANGTrainer.training_loss):
        time.sleep(0.02)
        return plain(self, x, y)

    test_loop.BANGTrainer.training_loss = slow
    print("ready", flush=True)
    test_loop.resumable(Path(sys.argv[2]), True, 5)
    """
)


def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole, _ = resumable(tmp_path / "whole", False, 5)
    folder = tmp_path / "killed"
    kills = 0
    for delay in (0.11, 0.23, 0.05):
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[1]), str(folder)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        before = (folder / "training.pt").stat().st_mtime if (folder / "training.pt").exists() else 0.0
        while process.poll() is None:
            if (folder / "training.pt").exists() and (folder / "training.pt").stat().st_mtime > before:
                time.sleep(delay)
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        kills += process.wait() == -signal.SIGKILL
        process.stdout.close()
    assert kills >= 1
    resumed, _ = resumable(folder, True, 5)
    assert same(whole, resumed)


def test_weights_that_became_nan_do_not_replace_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Poisoned(StandardTrainer):
        """A finite loss with a NaN gradient in the last step of the second epoch."""

        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            self.steps = getattr(self, "steps", 0) + 1
            loss = super().training_loss(x, y)
            if self.steps == 8:
                loss.register_hook(lambda gradient: gradient * torch.nan)
            return loss

    trainer = Poisoned(classifier(), options=TrainingOptions(checkpoint_dir=tmp_path))
    with pytest.raises(FloatingPointError, match="the weights became NaN or infinite in epoch 2"):
        trainer.fit(X[:128], Y[:128], batch_size=32, nb_epochs=4, verbose=False)
    saved = torch.load(tmp_path / "training.pt", weights_only=True)
    assert saved["epochs"] == 1
    assert all(tensor.isfinite().all() for tensor in saved["network"].values())


class Counting(Instrument):
    """Adds what it remembers to the first layer's output: a resumed run that forgets it would differ."""

    name = "counting"

    def __init__(self) -> None:
        self.seen = torch.zeros(())

    def __repr__(self) -> str:
        return "Counting()"

    def attached(self, network: nn.Module) -> AbstractContextManager[object]:
        def hook(module: nn.Module, _: object, output: Tensor) -> Tensor:
            return output + 0.001 * self.seen if module.training else output

        handle = network[0].register_forward_hook(hook)  # type: ignore[index]
        return contextlib.closing(SimpleNamespace(close=handle.remove))

    def begin_step(self, y: Tensor) -> None:
        self.seen += len(y)

    def state_dict(self) -> dict[str, Tensor]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.seen = state["seen"]


@pytest.mark.parametrize("kind", ["instrument", "best", "milestones", "loader generator", "numpy rate"])
def test_what_else_a_resumed_run_remembers(kind: str, tmp_path: Path) -> None:
    def training(folder: Path, resume: bool, epochs: int) -> list[Tensor]:
        trained = classifier()
        options = TrainingOptions(seed=0, checkpoint_dir=folder, resume=resume, keep_best=kind == "best")
        trainer = StandardTrainer(trained, instruments=[Counting()] if kind == "instrument" else [], options=options)
        optimizer, scheduler = trained.optimizer, None
        if kind == "milestones":
            parts = [
                torch.optim.lr_scheduler.LinearLR(optimizer),
                torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 1]),
            ]
            scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, parts, milestones=[1])
        if kind == "numpy rate":
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: np.interp(epoch, [0, 4], [1, 0]))
        if kind == "loader generator":
            dataset = TensorDataset(torch.from_numpy(X[:100]), torch.from_numpy(Y[:100]))
            order = torch.Generator().manual_seed(5)
            trainer.fit_loader(DataLoader(dataset, 32, shuffle=True, generator=order), nb_epochs=epochs, verbose=False)
        else:
            # With the first epoch of the falling rate as the best one, a run that forgets it ends with other weights.
            validation = (X[:100], (Y[:100] + (kind == "best")) % 10)
            trainer.fit(
                X[:100], Y[:100], validation, batch_size=32, nb_epochs=epochs, scheduler=scheduler, verbose=False
            )
        return weights(trained)

    whole = training(tmp_path / "whole", False, 4)
    training(tmp_path / "parts", False, 2)
    assert same(whole, training(tmp_path / "parts", True, 4))


def test_instruments_and_rates_must_be_those_of_the_checkpoint(tmp_path: Path) -> None:
    def start(beta: float, lr: float, resume: bool) -> None:
        trained = classifier()
        trained.optimizer.defaults["lr"] = lr
        options = TrainingOptions(seed=0, checkpoint_dir=tmp_path, resume=resume)
        trainer = StandardTrainer(trained, instruments=[BANG(beta)], options=options)
        trainer.fit(X[:64], Y[:64], nb_epochs=1, verbose=False)

    start(0.5, 0.05, resume=False)
    start(0.5, 0.05, resume=True)
    with pytest.raises(
        ValueError, match=r"was written with instruments \[BANG\(.*beta=0.5.*but this run has .*beta=1.0"
    ):
        start(1.0, 0.05, resume=True)
    with pytest.raises(
        ValueError, match=r"was written with optimizer SGD .*'lr': 0.05.*but this run has .*'lr': 0.001"
    ):
        start(0.5, 0.001, resume=True)


class Weighted(RobustTrainer):
    """A method with a setting that is shown with its address in memory, another in each process."""

    def __init__(self, trained: PyTorchClassifier, *, weight: Any, **settings: Any) -> None:
        self.weight = weight
        super().__init__(trained, **settings)

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        return self.weight(self.loss(self.logits(x), y))


def test_where_a_setting_is_in_memory_does_not_matter(tmp_path: Path) -> None:
    def start(weight: Any, resume: bool) -> None:
        options = TrainingOptions(seed=0, checkpoint_dir=tmp_path, resume=resume)
        trainer = Weighted(classifier(), weight=weight, options=options)
        trainer.fit(X[:64], Y[:64], nb_epochs=1, verbose=False)

    halves = [lambda loss: loss / 2 for _ in range(2)]
    assert str(halves[0]) != str(halves[1])
    start(halves[0], resume=False)
    start(halves[1], resume=True)
    with pytest.raises(ValueError, match=r"was written with weight <function .*<lambda>>, but this run has <built-in"):
        start(torch.sqrt, resume=True)


def test_an_archive_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "training.pt")
    trainer = StandardTrainer(classifier(), options=TrainingOptions(checkpoint_dir=tmp_path, resume=True))
    with pytest.raises(ValueError, match=r"checkpoint_dir: .*training.pt is not a checkpoint of this loop"):
        trainer.fit(X[:64], Y[:64], verbose=False)


def test_ctrl_c_leaves_the_network_usable_and_the_checkpoint(tmp_path: Path) -> None:
    class Interrupted(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            if len(self.history) == 2:
                raise KeyboardInterrupt
            return super().training_loss(x, y)

    trained = classifier()
    with pytest.raises(KeyboardInterrupt):
        Interrupted(trained, options=TrainingOptions(checkpoint_dir=tmp_path)).fit(X[:99], Y[:99], nb_epochs=5)
    assert torch.load(tmp_path / "training.pt", weights_only=True)["epochs"] == 2
    assert not trained.model.training


def test_another_run_is_refused_by_what_differs(tmp_path: Path) -> None:
    resumable(tmp_path, False, 1)
    with pytest.raises(ValueError, match=r"checkpoint_dir: .* holds an earlier run, expected resume=True"):
        resumable(tmp_path, False, 2)
    trainer = BANGTrainer(
        classifier(optimizer="Adam"),
        ratio=0.25,
        threat=ThreatModel("Linf", 0.1),
        options=TrainingOptions(seed=2, checkpoint_dir=tmp_path, resume=True, keep_best=True),
    )
    with pytest.raises(ValueError, match=r"was written with ratio 0.5, but this run has 0.25"):
        trainer.fit(X[:300], Y[:300], validation_data=(X[:9], Y[:9]), nb_epochs=5, verbose=False)


# ------------------------------------------------------------------------------------------------------ bad input


ONE_HOT_OF_9 = np.eye(9)[np.minimum(Y, 8)]
WITH_NAN = np.where(np.arange(64).reshape(1, 8, 8) == 3, np.nan, X[:10])
REFUSED = [
    ({"x": WITH_NAN, "y": Y[:10]}, "x: got NaN or infinity, expected finite numbers."),
    ({"x": X * 255}, "x: got values in [0, 255], expected the classifier's clip_values [0, 1]."),
    ({"x": X[:, :, :7]}, "x: got an array of shape (600, 1, 7, 8), expected (N, 1, 8, 8)."),
    ({"x": X[0]}, "x: got an array of shape (1, 8, 8), expected (N, 1, 8, 8)."),
    ({"x": X[:0], "y": Y[:0]}, "x: got no samples, expected at least one."),
    ({"x": X.astype(str)}, "x: got values of type <U32, expected numbers."),
    ({"y": ONE_HOT_OF_9}, "y: got labels of shape (600, 9), expected class indices (N,) or one-hot rows (N, 10)."),
    (
        {"y": np.full((600, 10), 0.2)},
        "y: got [0.2, 0.2, 0.2, 0.2, ...] in row 0, expected class indices, one-hot rows, or probabilities, not "
        "negative and with sum 1.",
    ),
    ({"y": Y + 1}, "y: got labels from 1 to 10, expected 0 to 9."),
    ({"y": Y + 0.5}, "y: got labels that are not whole numbers, expected class indices."),
    ({"y": Y[:-1]}, "y: got 599 labels for 600 samples, expected one for each."),
    ({"batch_size": 0}, "batch_size: got 0, expected a positive whole number."),
    ({"nb_epochs": 1.5}, "nb_epochs: got 1.5, expected a positive whole number."),
    ({"scheduler": "cosine"}, "scheduler: got str, expected an object with a method step()."),
    ({"validation_data": X}, "validation_data: got ndarray, expected a pair (x, y)."),
    (
        {"validation_data": (X * 2, Y)},
        "validation_data[0]: got values in [0, 2], expected the classifier's clip_values [0, 1].",
    ),
]


@pytest.mark.parametrize(("changed", "sentence"), REFUSED, ids=[sentence for _, sentence in REFUSED])
def test_bad_input_is_refused_before_anything_is_trained(changed: dict[str, Any], sentence: str) -> None:
    trained = classifier()
    before = weights(trained)
    arguments = {"x": X, "y": Y, "nb_epochs": 1, "verbose": False, **changed}
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole sentence is compared)
        StandardTrainer(trained).fit(**arguments)
    assert str(error.value) == sentence
    assert same(before, weights(trained))


def test_unknown_keywords_raise_where_art_swallows_them() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'epochs'"):
        StandardTrainer(classifier()).fit(X, Y, epochs=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("instruments", [BANG(), ["bang"], [BANG], 3])
def test_what_is_no_list_of_instruments_is_refused(instruments: Any) -> None:
    with pytest.raises(TypeError, match=r"instruments: got .*, expected a list of Instrument objects, as \[BANG\(\)\]"):
        StandardTrainer(classifier(), instruments=instruments)


def test_one_instrument_cannot_be_given_twice() -> None:
    bang = BANG()
    with pytest.raises(ValueError, match=r"instruments: got one object twice in .*, expected each once"):
        StandardTrainer(classifier(), instruments=[bang, bang])
    with pytest.raises(ValueError, match="layers: got 7, expected names or types of layers"):
        BANG(layers=7)  # type: ignore[arg-type]


def test_unfit_classifiers_are_refused() -> None:
    without = PyTorchClassifier(network(), nn.CrossEntropyLoss(), (1, 8, 8), 10)
    with pytest.raises(ValueError, match="classifier: it has no optimizer"):
        StandardTrainer(without)
    with pytest.raises(TypeError, match="classifier: got Sequential, expected an ART PyTorchClassifier"):
        StandardTrainer(network())  # type: ignore[arg-type]
    model = nn.Sequential(network(), nn.Softmax(dim=1))
    softmax = PyTorchClassifier(
        model, nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer=torch.optim.SGD(model.parameters(), 0.1)
    )
    with pytest.raises(ValueError, match="outputs are softmax probabilities, expected logits"):
        StandardTrainer(softmax)
    with pytest.raises(TypeError, match="abstract"):
        RobustTrainer(classifier())  # type: ignore[abstract]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scheduler_interval": "batch"}, "scheduler_interval: got 'batch', expected one of 'epoch', 'step'."),
        ({"mixed_precision": "fp16"}, "mixed_precision: got 'fp16', expected one of 'no', 'bf16'."),
        ({"seed": -1}, "seed: got -1, expected a whole number from 0 to 2**63 - 1."),
        ({"max_gradient_norm": 0}, "max_gradient_norm: got 0, expected a positive number."),
        ({"validation_steps": 0}, "validation_steps: got 0, expected a positive whole number."),
        ({"resume": True}, "resume: got True without checkpoint_dir, expected the folder of the run to continue."),
    ],
)
def test_options_are_checked(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011
        TrainingOptions(**options)
    assert str(error.value) == sentence


def test_optimizers_and_schedulers_that_the_loop_cannot_drive() -> None:
    trained = classifier()
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(trained.optimizer)
    with pytest.raises(ValueError, match="scheduler: got ReduceLROnPlateau per step"):
        StandardTrainer(trained, options=TrainingOptions(scheduler_interval="step")).fit(X, Y, scheduler=plateau)
    trained._optimizer = torch.optim.LBFGS(trained.model.parameters())
    with pytest.raises(ValueError, match="classifier: its optimizer LBFGS needs a closure"):
        StandardTrainer(trained).fit(X, Y)


def test_streams_have_no_length() -> None:
    class Stream(IterableDataset):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[tuple[Tensor, int]]:
            yield from zip(torch.from_numpy(X[:50]), Y[:50].tolist(), strict=True)

    trainer = StandardTrainer(classifier())
    trainer.fit_loader(DataLoader(Stream(), batch_size=16), nb_epochs=2, verbose=False)
    assert len(trainer.history) == 2


def test_loaders_are_checked() -> None:
    trainer = StandardTrainer(classifier())
    with pytest.raises(TypeError, match="generator: got list, expected an ART DataGenerator"):
        trainer.fit_generator([(X, Y)], verbose=False)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="loader: got list_iterator, expected an iterable"):
        trainer.fit_loader(iter([(X, Y)]), verbose=False)
    with pytest.raises(ValueError, match=r"loader: got a batch of type Tensor, expected a pair"):
        trainer.fit_loader([torch.zeros(3)], verbose=False)
    with pytest.raises(ValueError, match="loader: got no batch in an epoch"):
        trainer.fit_loader([], verbose=False)
    with pytest.raises(ValueError, match="validation_data: got none with keep_best"):
        StandardTrainer(classifier(), options=TrainingOptions(keep_best=True)).fit(X, Y, verbose=False)


def test_a_sampler_of_its_own_random_numbers_resumes(tmp_path: Path) -> None:
    def run(folder: Path, *ends: int) -> dict[str, torch.Tensor]:
        for epochs in ends:
            draws = torch.Generator().manual_seed(5)
            sampler = torch.utils.data.WeightedRandomSampler(torch.ones(60), 60, generator=draws)
            data = torch.utils.data.TensorDataset(torch.from_numpy(X[:60]), torch.from_numpy(Y[:60]))
            loader = torch.utils.data.DataLoader(data, batch_size=20, sampler=sampler)
            trained = classifier()
            options = TrainingOptions(seed=0, checkpoint_dir=folder, resume=True)
            StandardTrainer(trained, options=options).fit_loader(loader, nb_epochs=epochs, verbose=False)
        return trained.model.state_dict()

    whole, parts = run(tmp_path / "whole", 3), run(tmp_path / "parts", 1, 3)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_run_does_not_resume_for_fewer_epochs_than_it_has(tmp_path: Path) -> None:
    for epochs in (2, 2):
        options = TrainingOptions(seed=0, checkpoint_dir=tmp_path, resume=True)
        StandardTrainer(classifier(), options=options).fit(X[:50], Y[:50], nb_epochs=epochs, verbose=False)
    with pytest.raises(ValueError, match=r"nb_epochs: got 1, but .*training.pt holds 2, expected at least as many."):
        StandardTrainer(classifier(), options=options).fit(X[:50], Y[:50], nb_epochs=1, verbose=False)


def test_a_network_may_have_an_extra_state(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += self.training
            logits: torch.Tensor = self.inner(x)
            return logits

        def get_extra_state(self) -> dict[str, int]:
            return {"calls": self.calls}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.calls = state["calls"]

    torch.manual_seed(0)
    model = Counting()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer=optimizer, clip_values=(0, 1))
    options = TrainingOptions(seed=0, keep_best=True, checkpoint_dir=tmp_path)
    wrong = (X[:50], (Y[:50] + 1) % 10)  # it only gets worse
    trainer = StandardTrainer(estimator, options=options)
    trainer.fit(X[:50], Y[:50], wrong, 25, 3, verbose=False)
    best = int(np.argmax([record["validation_accuracy"] for record in trainer.history]))
    assert best < 2
    assert model.calls == 2 * (best + 1)
    options = TrainingOptions(seed=0, keep_best=True, checkpoint_dir=tmp_path, resume=True)
    StandardTrainer(estimator, options=options).fit(X[:50], Y[:50], wrong, 25, 4, verbose=False)
    assert model.calls == 2 * (best + 1)  # the fourth epoch is no better


def test_empty_and_whole_parameters_need_no_check(tmp_path: Path) -> None:
    trained = classifier()
    trained.model.register_parameter("place", nn.Parameter(torch.empty(0)))
    trained.model.register_parameter("count", nn.Parameter(torch.tensor(3), requires_grad=False))
    StandardTrainer(trained).fit(X[:50], Y[:50], nb_epochs=1, verbose=False)


def test_checkpoints_of_an_earlier_form_resume(tmp_path: Path) -> None:
    def run(epochs: int, resume: bool) -> list[Tensor]:
        trained = classifier()
        options = TrainingOptions(seed=0, checkpoint_dir=tmp_path, resume=resume)
        StandardTrainer(trained, options=options).fit(X[:50], Y[:50], nb_epochs=epochs, verbose=False)
        return weights(trained)

    run(1, False)
    state = load_state(tmp_path / "training.pt")
    save_state(tmp_path / "training.pt", {**state, "order": None})
    resumed = run(2, True)
    whole = classifier()
    StandardTrainer(whole, options=TrainingOptions(seed=0)).fit(X[:50], Y[:50], nb_epochs=2, verbose=False)
    assert same(resumed, weights(whole))
    save_state(tmp_path / "training.pt", {**state, "order": [torch.Generator().get_state()]})
    with pytest.raises(ValueError, match=r"was written with 1 random generators of the loader, but this run has 0."):
        run(2, True)


@pytest.mark.parametrize("parts", [1, 4])
def test_validation_needs_no_larger_passes_than_training(parts: int) -> None:
    sizes: dict[bool, list[int]] = {True: [], False: []}
    saved: list[bool] = []
    trained = classifier()

    def look(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes[module.training].append(len(inputs[0]))
        saved.append(module.training or not any(p.requires_grad for p in module.parameters()) or len(inputs[0]) == 2)

    options = TrainingOptions(seed=0, accumulation_steps=parts)
    trainer = StandardTrainer(trained, threat=ThreatModel("Linf", 0.1), options=options)
    handle = trained.model.register_forward_pre_hook(look)
    trainer.fit(X[:80], Y[:80], (X[:150], Y[:150]), batch_size=40, nb_epochs=1, verbose=False)
    handle.remove()
    assert max(sizes[True]) == max(sizes[False]) == 40 // parts
    assert all(saved)  # gradients of weights are not prepared for where they are not used
    assert all(p.requires_grad for p in trained.model.parameters())

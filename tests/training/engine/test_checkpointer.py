"""Checkpoints: a stopped run goes on as if it had not been stopped, and another run is refused."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from art.data_generators import NumpyDataGenerator
from art.estimators.classification import PyTorchClassifier
from builders import make_classifier, make_linear
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from art_robust_plugins import BANGTrainer, RobustTrainer, StandardTrainer, ThreatModel, TrainingOptions
from art_robust_plugins.files import load_state, save_state
from art_robust_plugins.training import BANG, Instrument

from ..builders import same, weights
from .digits import OPTIMIZERS, X, Y, classifier


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(tmp_path: Path) -> None:
    class Breaking(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            self.steps = getattr(self, "steps", 0) + 1
            return super().training_loss(x, y) * (torch.nan if self.steps == 7 else 1.0)

    trained = classifier()
    trainer = Breaking(trained, options=TrainingOptions(checkpoint_dir=tmp_path))
    with pytest.raises(FloatingPointError, match=r"loss .*nan .*epoch 2, step 3"):
        trainer.fit(X[:128], Y[:128], batch_size=32, nb_epochs=3, verbose=False)
    assert all(tensor.isfinite().all() for tensor in weights(trained))
    saved = torch.load(tmp_path / "training.pt", weights_only=True)
    assert saved["epochs"] == 1


def resumable(folder: Path, resume: bool, epochs: int) -> tuple[list[Tensor], list[dict[str, float]]]:
    trained = classifier(optimizer=OPTIMIZERS["Adam"])
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
    from training.engine import digits, test_checkpointer

    def slow(self, x, y, plain=digits.BANGTrainer.training_loss):
        time.sleep(0.02)
        return plain(self, x, y)

    digits.BANGTrainer.training_loss = slow
    print("ready", flush=True)
    test_checkpointer.resumable(Path(sys.argv[2]), True, 5)
    """
)


def test_a_run_killed_at_any_moment_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole, _ = resumable(tmp_path / "whole", False, 5)
    folder = tmp_path / "killed"
    kills = 0
    for delay in (0.11, 0.23, 0.05):
        command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[2]), str(folder)]
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
    with pytest.raises(FloatingPointError, match=r"weights .*epoch 2"):
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
    with pytest.raises(ValueError, match=r"^resume: .*BANG\(.*beta=0\.5.*beta=1\.0"):
        start(1.0, 0.05, resume=True)
    with pytest.raises(ValueError, match=r"^resume: .*SGD .*'lr': 0\.05.*'lr': 0\.001"):
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
    with pytest.raises(ValueError, match=r"^resume: .*weight <function .*<lambda>>.* <built-in"):
        start(torch.sqrt, resume=True)


def test_an_archive_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "training.pt")
    trainer = StandardTrainer(classifier(), options=TrainingOptions(checkpoint_dir=tmp_path, resume=True))
    with pytest.raises(ValueError, match=r"checkpoint_dir: .*training.pt "):
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
    with pytest.raises(ValueError, match=r"^checkpoint_dir: "):
        resumable(tmp_path, False, 2)
    trainer = BANGTrainer(
        classifier(optimizer=OPTIMIZERS["Adam"]),
        ratio=0.25,
        threat=ThreatModel("Linf", 0.1),
        options=TrainingOptions(seed=2, checkpoint_dir=tmp_path, resume=True, keep_best=True),
    )
    with pytest.raises(ValueError, match=r"^resume: .*ratio 0\.5, .* 0\.25"):
        trainer.fit(X[:300], Y[:300], validation_data=(X[:9], Y[:9]), nb_epochs=5, verbose=False)


def test_a_run_does_not_resume_for_fewer_epochs_than_it_has(tmp_path: Path) -> None:
    for epochs in (2, 2):
        options = TrainingOptions(seed=0, checkpoint_dir=tmp_path, resume=True)
        StandardTrainer(classifier(), options=options).fit(X[:50], Y[:50], nb_epochs=epochs, verbose=False)
    with pytest.raises(ValueError, match=r"nb_epochs: got 1, .*training\.pt .* 2,"):
        StandardTrainer(classifier(), options=options).fit(X[:50], Y[:50], nb_epochs=1, verbose=False)


def test_a_network_may_have_an_extra_state(tmp_path: Path) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.calls = make_linear(), 0

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
    estimator = make_classifier(model, optimizer=partial(torch.optim.SGD, lr=0.1))
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
    with pytest.raises(ValueError, match=r"^resume: .*training\.pt .* 1 .* 0"):
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

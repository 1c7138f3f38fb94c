"""Catastrophic overfitting: when it is seen, what a rollback brings back, and what a run remembers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from builders import make_linear
from torch import Tensor, nn

from art_robust_plugins import LocalBallTrainer, PGDTrainer, ThreatModel, TrainingOptions, WeightMapPreprocessor
from art_robust_plugins.training import Instrument
from art_robust_plugins.training.overfitting import OverfittingWatch

from .builders import IMAGES, LABELS, make_builder, same, weights

X = torch.from_numpy(IMAGES)
Y = torch.from_numpy(LABELS)
THREAT = ThreatModel("Linf", 0.1)
GOOD, BAD = (0.9, 0.8), (0.9, 0.1)


def network(width: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, 4, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(36, 10),
    )


classifier = make_builder(network, partial(torch.optim.Adam, lr=0.01))


def moments(trained: PyTorchClassifier) -> list[Tensor]:
    return [value.clone() for state in trained.optimizer.state_dict()["state"].values() for value in state.values()]


def fit(trainer: LocalBallTrainer, epochs: int, samples: int = 80, batch_size: int = 40, **arguments: Any) -> None:
    trainer.fit(X[:samples], Y[:samples], nb_epochs=epochs, batch_size=batch_size, verbose=False, **arguments)


@contextmanager
def messages() -> Iterator[list[str]]:
    """The warnings of catastrophic overfitting."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found.extend(str(w.message) for w in caught if "catastrophic overfitting" in str(w.message))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let the two adversaries leave given accuracies, epoch by epoch."""

    def follow(*accuracies: tuple[float, float]) -> None:
        def counts(watch: OverfittingWatch) -> tuple[float, float, int]:
            own, strong = accuracies[len(watch.trainer.history)]
            return 64 * own, 64 * strong, 64

        monkeypatch.setattr(OverfittingWatch, "count_resisting", counts)

    return follow


class Remembering(LocalBallTrainer):
    """Keeps what the network and the optimizer were at the end of each epoch, before and after the watch acted."""

    source: ClassVar[str] = ""

    def end_epoch(self, record: dict[str, float]) -> None:
        estimator = self.classifier
        self.__dict__.setdefault("before", []).append((weights(estimator), moments(estimator)))
        super().end_epoch(record)
        self.__dict__.setdefault("after", []).append((weights(estimator), moments(estimator)))


class Counter(Instrument):
    """Counts the batches that it saw."""

    name = "counter"

    def __init__(self) -> None:
        self.batches = torch.tensor(0)

    def __repr__(self) -> str:
        return "Counter()"

    @contextmanager
    def attached(self, network: nn.Module) -> Iterator[None]:
        yield

    def begin_step(self, y: Tensor) -> None:
        self.batches += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.batches = state["batches"]


# ------------------------------------------------------------------------------------------------------ when it is seen


def test_it_is_seen_where_it_happens() -> None:
    """One step against a large radius: the network learns to resist that step, and nothing more."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))
    estimator = classifier(model, optimizer=partial(torch.optim.Adam, lr=0.003))
    settings: dict[str, Any] = {"steps": 1, "step_size": 0.6, "eps_warmup_epochs": 6}
    trainer = PGDTrainer(estimator, threat=ThreatModel("Linf", 0.4), **settings, options=TrainingOptions(seed=0))
    with messages() as found:
        fit(trainer, 20, samples=1000, batch_size=64)
    assert len(found) == 1
    last = trainer.history[-1]
    assert last["own_adversary_accuracy"] > 0.25
    assert last["strong_adversary_accuracy"] < 0.1


@pytest.mark.parametrize("global_loss", ["ce", "kl"])
def test_a_linear_network_cannot_overfit_to_its_adversary(global_loss: Any) -> None:
    """One step is its worst case already: whatever the two adversaries leave, nothing catastrophic has happened."""
    model = make_linear(classes=2)
    nn.init.zeros_(model[1].weight)
    estimator = classifier(model, optimizer=partial(torch.optim.SGD, lr=0.05), nb_classes=2)
    threat = ThreatModel("Linf", 0.25)
    trainer = LocalBallTrainer(estimator, threat=threat, global_loss=global_loss, options=TrainingOptions(seed=0))
    with messages() as found:
        trainer.fit(X[:500], Y[:500] % 2, nb_epochs=5, batch_size=100, verbose=False)
    assert found == []


@pytest.mark.parametrize("global_loss", ["ce", "kl"])
def test_it_is_not_seen_where_training_goes_well(global_loss: Any) -> None:
    """A radius that few steps can train against, from the first epochs of a network that knows nothing."""
    trainer = LocalBallTrainer(
        classifier(network(16)), threat=THREAT, global_loss=global_loss, options=TrainingOptions(seed=0)
    )
    with messages() as found:
        fit(trainer, 8, samples=500, batch_size=32)
    assert found == []
    assert trainer.history[-1]["strong_adversary_accuracy"] > 0.3


@pytest.mark.parametrize(
    ("own", "strong", "bad"),
    [
        (0.9, 0.44, True),
        (0.9, 0.45, False),  # half as many
        (0.9, 0.0, True),
        (0.35, 0.0, True),
        (0.28, 0.0, False),  # fewer than 30 points
        (0.5, 0.24, False),
        (0.625, 0.3125, False),
        (0.2, 0.6, False),
        (0.0, 0.0, False),
    ],
)
def test_the_judgement(script: Any, own: float, strong: float, bad: bool) -> None:
    script((own, strong))
    trainer = LocalBallTrainer(classifier(), threat=THREAT)
    with messages() as found:
        fit(trainer, 1)
    assert len(found) == bad
    record = trainer.history[0]
    assert record["own_adversary_accuracy"] == own
    assert record["strong_adversary_accuracy"] == strong


def test_the_accuracies_are_those_of_the_two_adversaries(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 64 images of the last whole batch, in evaluation mode: the trainer's own adversary, and PGD of 10 steps."""
    batches: list[tuple[Tensor, Tensor]] = []
    points: list[tuple[str, Tensor]] = []
    ascend = ThreatModel.ascend

    def watch_ascent(self: ThreatModel, objective: Any, x: Tensor, start: Tensor, **arguments: Any) -> Tensor:
        found = ascend(self, objective, x, start, **arguments)
        if len(x) == 64:
            assert not trainer.classifier.model.training
            assert float(self.distance(found, batches[-2][0][:64]).max()) <= 0.1 + 1e-6
            if arguments["steps"] == 10:
                assert arguments["step_size"] == pytest.approx(0.025)
            points.append(("strong" if arguments["steps"] == 10 else "own", found))
        return found

    class Watching(LocalBallTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            batches.append((x, y))
            return super().training_loss(x, y)

        def end_epoch(self, record: dict[str, float]) -> None:
            points.clear()
            super().end_epoch(record)
            assert [name for name, _ in points] == ["own", "strong"]
            for name, adversary in points:
                with torch.no_grad():
                    right = self.logits(adversary).argmax(dim=1) == batches[-2][1][:64]  # of 100, 100 and 30 images
                assert record[f"{name}_adversary_accuracy"] == pytest.approx(float(right.float().mean()))
            assert record["strong_adversary_accuracy"] <= record["own_adversary_accuracy"] + 0.05

    monkeypatch.setattr(ThreatModel, "ascend", watch_ascent)
    trainer = Watching(classifier(), threat=THREAT, steps=2, options=TrainingOptions(seed=0))
    fit(trainer, 6, samples=230, batch_size=100)
    assert 0.2 < trainer.history[-1]["strong_adversary_accuracy"] < 1


def test_few_images_are_all_used_and_a_small_last_batch_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    counts = OverfittingWatch.count_resisting

    def count(watch: OverfittingWatch) -> tuple[int, int, int]:
        sizes.append(counts(watch)[2])
        return 64, 64, 64

    monkeypatch.setattr(OverfittingWatch, "count_resisting", count)
    fit(LocalBallTrainer(classifier(), threat=THREAT), 2, samples=50, batch_size=20)
    fit(LocalBallTrainer(classifier(), threat=THREAT), 1, samples=300, batch_size=300)
    assert sizes == [20, 20, 64]


# ------------------------------------------------------------------------------------------------------------- warnings


def test_warn_says_it_once_and_clearly(script: Any) -> None:
    script(GOOD, BAD, GOOD, BAD, BAD)
    trainer = LocalBallTrainer(classifier(), threat=THREAT)
    with messages() as found:
        fit(trainer, 5)
    (message,) = found
    assert "in epoch 2: of 64 training images 90% resist the adversary of 1 steps and 10% one of 10" in message
    assert "training goes on" in message
    assert "eps_warmup_epochs" in message
    assert not any("rolled_back" in record for record in trainer.history)


def test_a_new_run_may_warn_again(script: Any) -> None:
    script(BAD)
    trainer = LocalBallTrainer(classifier(), threat=THREAT)
    with messages() as found:
        fit(trainer, 1)
        fit(trainer, 1)
    assert len(found) == 2


def test_watching_does_not_change_the_training(script: Any) -> None:
    script(BAD, BAD, GOOD)
    results = []
    for action in ("warn", "ignore"):
        trainer = LocalBallTrainer(classifier(), threat=THREAT, overfitting=action, options=TrainingOptions(seed=0))
        with messages():
            fit(trainer, 3)
        results.append(weights(trainer.classifier))
    assert same(*results)


@pytest.mark.parametrize(("action", "steps", "watched"), [("ignore", 1, False), ("warn", 10, False), ("warn", 9, True)])
def test_what_is_not_watched_costs_no_passes(action: Any, steps: int, watched: bool) -> None:
    taken: list[bool] = []
    trainer = PGDTrainer(classifier(), threat=THREAT, steps=steps, overfitting=action)
    trainer.classifier.model.register_forward_hook(lambda module, _, __: taken.append(module.training))
    with messages():
        fit(trainer, 2)
        of_two_epochs = len(taken)
        fit(trainer, 1)
    an_epoch = 2 * of_two_epochs - len(taken)  # without the passes that look at the network before a run
    assert an_epoch == 2 * trainer.passes.forward + watched * (10 + steps + 2)  # both ascents and both verdicts
    assert ("own_adversary_accuracy" in trainer.history[0]) == watched
    assert sum(taken) == 6


# ------------------------------------------------------------------------------------------------------------- rollback


def test_rollback_brings_back_the_last_good_epoch_but_not_the_learning_rate(script: Any) -> None:
    script(GOOD, GOOD, BAD, BAD, GOOD, BAD)
    estimator, counter = classifier(), Counter()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(estimator.optimizer, 0.5)
    trainer = Remembering(
        estimator, threat=THREAT, overfitting="rollback", instruments=[counter], options=TrainingOptions(seed=0)
    )
    with messages() as found:
        fit(trainer, 6, scheduler=scheduler)
    assert [record.get("rolled_back", 0.0) for record in trainer.history] == [0, 0, 1, 1, 0, 1]
    assert len(found) == 3
    assert all("went back to the last good epoch" in message for message in found)
    for epoch, good in enumerate([0, 1, 1, 1, 4, 4]):
        for now, then in zip(trainer.after[epoch], trainer.before[good], strict=True):
            assert same(now, then)
    for epoch in (2, 3, 5):
        for one, other in zip(trainer.before[epoch], trainer.after[epoch], strict=True):
            assert not same(one, other)
    assert not same(trainer.before[2][0], trainer.before[3][0])  # with other random numbers, and another learning rate
    assert [record["learning_rate"] for record in trainer.history] == pytest.approx([0.01 / 2**k for k in range(6)])
    assert int(counter.batches) == 6  # the good epochs are the first, the second and the fifth, of 2 batches each
    assert same(weights(estimator), trainer.before[4][0])


def test_a_rollback_brings_back_a_weight_map_on_the_input_too(script: Any) -> None:
    script(GOOD, BAD)
    maps = WeightMapPreprocessor((1, 8, 8))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    estimator = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        (1, 8, 8),
        10,
        optimizer=optimizer,
        clip_values=(0, 1),
        preprocessing_defences=[maps],
    )
    maps.join(estimator)
    seen = []

    class Watching(LocalBallTrainer):
        def end_epoch(self, record: dict[str, float]) -> None:
            seen.append(maps.layer.map.detach().clone())
            super().end_epoch(record)
            seen.append(maps.layer.map.detach().clone())

    with messages():
        fit(Watching(estimator, threat=THREAT, overfitting="rollback"), 2)
    good, _, bad, after = seen
    assert not torch.equal(good, bad)
    assert torch.equal(good, after)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "RMSprop"])
def test_a_rollback_is_kept_apart_from_the_training_that_follows(script: Any, optimizer: str) -> None:
    """The optimizer goes on in tensors of its own: a second rollback finds the good state unchanged."""
    script(GOOD, BAD, BAD, BAD)
    estimator = classifier(optimizer=partial(getattr(torch.optim, optimizer), lr=0.01))
    trainer = Remembering(estimator, threat=THREAT, overfitting="rollback")
    with messages():
        fit(trainer, 4)
    for epoch in (1, 2, 3):
        for now, good in zip(trainer.after[epoch], trainer.before[0], strict=True):
            assert same(now, good)
    assert not same(trainer.before[1][0], trainer.before[2][0])


def test_rollback_without_a_good_epoch_goes_on(script: Any) -> None:
    script(BAD, BAD, GOOD, BAD)
    trainer = Remembering(classifier(), threat=THREAT, overfitting="rollback")
    with messages() as found:
        fit(trainer, 4)
    assert ["no good epoch" in message for message in found] == [True, True, False]
    assert [record.get("rolled_back", 0.0) for record in trainer.history] == [0, 0, 0, 1]
    assert same(trainer.before[0][0], trainer.after[0][0])
    assert same(trainer.before[2][0], trainer.after[3][0])


def test_a_second_fit_does_not_go_back_into_the_first(script: Any) -> None:
    script(GOOD)
    trainer = Remembering(classifier(), threat=THREAT, overfitting="rollback")
    fit(trainer, 1)
    script(BAD)
    with messages() as found:
        fit(trainer, 1)
    assert "no good epoch" in found[0]
    assert same(trainer.before[1][0], trainer.after[1][0])
    assert not same(trainer.before[0][0], trainer.after[1][0])


# ---------------------------------------------------------------------------------------------------------- across runs


def resume(folder: Path, epochs: int, action: Any = "rollback") -> Remembering:
    options = TrainingOptions(seed=0, checkpoint_dir=folder, resume=(folder / "training.pt").exists())
    trainer = Remembering(classifier(), threat=THREAT, overfitting=action, instruments=[Counter()], options=options)
    fit(trainer, epochs)
    return trainer


def test_a_resumed_run_goes_back_to_the_epoch_that_it_began_with(script: Any, tmp_path: Path) -> None:
    script(GOOD, BAD, BAD)
    with messages():
        first = resume(tmp_path, 1)
        assert torch.load(tmp_path / "training.pt", weights_only=True)["method"] == {"good": torch.tensor(True)}
        after_bad = resume(tmp_path, 2)
        again = resume(tmp_path, 3)
    for trainer in (after_bad, again):
        assert trainer.history[-1]["rolled_back"] == 1
        for now, good in zip(trainer.after[0], first.after[0], strict=True):
            assert same(now, good)
        assert int(trainer.instruments[0].batches) == 2


def test_a_resumed_run_without_a_good_epoch_has_none(script: Any, tmp_path: Path) -> None:
    script(BAD, BAD)
    with messages():
        resume(tmp_path, 1)
    assert torch.load(tmp_path / "training.pt", weights_only=True)["method"] == {"good": torch.tensor(False)}
    with messages() as found:
        trainer = resume(tmp_path, 2)
    assert "no good epoch" in found[0]
    assert "rolled_back" not in trainer.history[1]


def test_what_only_warns_keeps_no_state(script: Any, tmp_path: Path) -> None:
    script(GOOD, BAD)
    trainer = resume(tmp_path, 1, "warn")
    assert trainer.state_dict() == {}
    with messages() as found:
        trainer = resume(tmp_path, 2, "warn")
    assert len(found) == 1
    assert same(trainer.before[0][0], trainer.after[0][0])


def test_a_killed_epoch_is_repeated_as_it_was(script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the epoch after a rollback: its repetition begins with the good weights, and goes the same way."""
    script(GOOD, BAD, GOOD)

    def interrupt(self: LocalBallTrainer, x: Tensor, y: Tensor, plain: Any = LocalBallTrainer.training_loss) -> Tensor:
        if len(self.history) == 2 and self.epochs_done > 2:
            raise KeyboardInterrupt
        loss: Tensor = plain(self, x, y)
        return loss

    with messages():
        whole = resume(tmp_path / "whole", 3)
        with monkeypatch.context() as patched:
            patched.setattr(LocalBallTrainer, "training_loss", interrupt)
            with pytest.raises(KeyboardInterrupt):
                resume(tmp_path / "parts", 3)
        parts = resume(tmp_path / "parts", 3)
    assert same(weights(whole.classifier), weights(parts.classifier))

"""Several processes train like one: the same weights within rounding, for every method and instrument."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.defences.preprocessor import MixupPyTorch
from art.estimators.classification import PyTorchClassifier
from sklearn.datasets import load_digits
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
    load_classifier,
)
from art_robust_plugins.checkpoint import describe_classifier
from art_robust_plugins.cli import app
from art_robust_plugins.training import BANG, Layerwise, PGDTrainer, TRADESTrainer
from art_robust_plugins.training.processes import Processes, ProcessLostError, Share

DIGITS, LABELS = load_digits(return_X_y=True)
X = (DIGITS / 16).astype(np.float32).reshape(-1, 1, 8, 8)[:101]
Y = LABELS[:101]
TWO_CHANNELS = np.concatenate([X, 1 - X], axis=1)
VALIDATION = ((DIGITS / 16).astype(np.float32).reshape(-1, 1, 8, 8)[101:160], LABELS[101:160])
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
def started(channels: int) -> dict[str, Tensor]:
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
        model.load_state_dict(started(channels))
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=0.01)
    loss = nn.CrossEntropyLoss()
    return PyTorchClassifier(model, loss, (channels, 8, 8), 10, optimizer=optimizer, clip_values=(0, 1), **settings)


def outcome(trainer: RobustTrainer, **others: Tensor) -> Result:
    weights = {name: tensor.clone() for name, tensor in trainer.classifier.model.state_dict().items()}
    history = [{name: value for name, value in record.items() if name != "seconds"} for record in trainer.history]
    return {"weights": {**weights, **others}, "history": history}


def fitted(trainer: RobustTrainer, x: Any = X, y: Any = Y, **settings: Any) -> Result:
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
    result = fitted(StandardTrainer(trained, options=TrainingOptions(seed=1)), nb_epochs=4, scheduler=plateau)
    assert result["history"][-1]["learning_rate"] < 0.1
    return result


@case
def bang(_: Path) -> Result:
    return fitted(BANGTrainer(classifier(), ratio=0.5, options=TrainingOptions(seed=1, max_gradient_norm=0.5)))


@case
def layerwise(folder: Path) -> Result:
    options = TrainingOptions(seed=1, checkpoint_dir=folder / "layerwise")
    result = fitted(LayerwiseAdversarialTrainer(classifier(), eps=0.3, options=options))
    # The signs of the whole batch are in the checkpoint, with which a run of any number of processes goes on.
    options = TrainingOptions(seed=1, checkpoint_dir=folder / "layerwise", resume=True)
    trainer = LayerwiseAdversarialTrainer(classifier(), eps=0.3, options=options)
    resumed = fitted(trainer, nb_epochs=4)
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
    result = fitted(trainer, validation_data=VALIDATION, nb_epochs=2)
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
    real = trainer._watch._counts

    def counted() -> tuple[int, int, int]:
        real()
        own, strong, images = next(counts)
        found = torch.tensor([own])
        trainer.copy_from_main_process([found])
        return int(found), strong, images

    trainer._watch._counts = counted  # type: ignore[method-assign]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = fitted(trainer)
    assert [record.get("rolled_back") for record in result["history"]] == [None, 1, None]
    return result


@case
def pgd_in_l2(_: Path) -> Result:
    return fitted(PGDTrainer(classifier(), threat=ThreatModel("L2", 0.2), steps=3, options=TrainingOptions(seed=1)))


@case
def pgd_in_l1(_: Path) -> Result:
    return fitted(PGDTrainer(classifier(), threat=ThreatModel("L1", 0.5), steps=3, options=TrainingOptions(seed=1)))


@case
def trades(_: Path) -> Result:
    options = TrainingOptions(seed=1, channels_last=True)
    trainer = TRADESTrainer(classifier(Precise, channels=2), threat=THREAT, steps=2, start="gaussian", options=options)
    return fitted(trainer, TWO_CHANNELS)


@case
def fused_steps_of_channels_last(_: Path) -> Result:
    """A fused step walks through memory: gradients in another order than the weights' would move wrong ones."""
    options = TrainingOptions(seed=1, channels_last=True, fused_optimizer=True)
    return fitted(StandardTrainer(classifier(channels=2), options=options), TWO_CHANNELS)


@case
def parts_augmentation_and_average(_: Path) -> Result:
    """Each part of a batch (of 13 and 12 samples) is shared, with the random starts of the whole part."""
    options = TrainingOptions(seed=1, accumulation_steps=2, ema_decay=0.9, augmentation="crop-flip", crop_padding=1)
    trainer = PGDTrainer(classifier(Precise), threat=THREAT, steps=2, options=options)
    return fitted(trainer, validation_data=VALIDATION)


@case
def lipschitz_margin(_: Path) -> Result:
    trainer = LipschitzMarginTrainer(classifier(), c=0.1, c_warmup_epochs=2, options=TrainingOptions(seed=1))
    result = fitted(trainer)
    vectors = {name: vector.clone() for name, vector in trainer.graph.vectors.items()}
    assert vectors
    return {**result, "weights": result["weights"] | vectors}


@case
def weight_map(_: Path) -> Result:
    trained = PyTorchWeightMapClassifier.from_classifier(classifier(), kernel="unsharp")
    return fitted(StandardTrainer(trained, options=TrainingOptions(seed=1)))


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
        logits = self.logits(twice + 0.1 * self.drawn(torch.randn_like, twice))
        return self.loss(logits, torch.cat([y, y]))


@case
def smoothed(_: Path) -> Result:
    return fitted(Smoothed(classifier(), options=TrainingOptions(seed=1)), X[:7], Y[:7], batch_size=4)


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
    model = Network(1)
    optimizer = torch.optim.SGD(model.parameters(), rate)
    return PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 8, 8), 10, optimizer=optimizer, clip_values=(0, 1))


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
        self.share_of_whole, self.own = self.drawn(torch.rand_like, x), torch.rand(1000)
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


# ------------------------------------------------------------------------------------------------------------ the tests


class One:
    """A process of several, as `Share` sees it, without the others."""

    def __init__(self, index: int, count: int) -> None:
        self.index, self.count = index, count


@pytest.mark.parametrize(("whole", "count"), [(8, 2), (7, 2), (1, 2), (10, 4), (3, 4)])
def test_shares_are_a_partition_as_even_as_possible(whole: int, count: int) -> None:
    shares = [Share(One(index, count), whole) for index in range(count)]  # type: ignore[arg-type]
    counted = [range(whole)[share.rows] for share in shares if share.size]
    assert list(chain.from_iterable(counted)) == list(range(whole))
    assert max(share.size for share in shares) - min(share.size for share in shares) <= 1
    # A mean over processes of the weighted means over shares is the mean over the samples.
    values = torch.arange(whole, dtype=torch.float64) ** 2
    means = [values[share.rows].mean() * share.weight for share in shares]
    assert float(sum(means)) / count == pytest.approx(float(values.mean()))
    copies = torch.cat([values, -values])
    for share in shares:
        assert torch.equal(share.of_copies(copies), torch.cat([values[share.rows], -values[share.rows]]))


class Pair(Processes):
    """This process as the first of two, of which the other one is not there."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"), moment="at noon", advice="wait.")
        self.count = 2


def test_what_ends_a_wait_is_said_unless_it_is_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(error: Exception) -> Callable[..., None]:
        def all_reduce(*_: object) -> None:
            raise error

        return all_reduce

    monkeypatch.setattr(torch.distributed, "all_reduce", failing(RuntimeError("Connection closed\nby peer")))
    sentence = r"^another process ended at noon, or did not answer in time \(Connection closed\); wait\.$"
    with pytest.raises(ProcessLostError, match=sentence):
        Pair().wait()
    monkeypatch.setattr(torch.distributed, "all_reduce", failing(torch.OutOfMemoryError("no room")))
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        Pair().sum(torch.zeros(1))


def test_settings_of_several_processes_are_compared_in_full_and_shown_where_they_differ(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(one: dict[str, str], other: dict[str, str]) -> str:
        def gathered(everyone: list[Any], _: object) -> None:
            everyone[:] = [one, other]

        monkeypatch.setattr(torch.distributed, "all_gather_object", gathered)
        return refusal(lambda: Pair().check_same_settings(one))

    same = "expected the same in all processes."
    long = "a" * 500
    assert refused({"x": long, "y": "1"}, {"x": long, "y": "2"}).startswith("ValueError: y: got 1 in process 0 and 2")
    assert refused({"x": "1"}, {}) == f"ValueError: x: got 1 in process 0 and none in process 1, {same}"
    said = refused({"x": f"{long}0{long}"}, {"x": f"{long}1{long}"})
    shown = [f"...{'a' * 30}{digit}{'a' * 29}..." for digit in "01"]
    assert said == f"ValueError: x: got {shown[0]} in process 0 and {shown[1]} in process 1, {same}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the two processes write."""
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def two(folder: Path) -> list[dict[str, Any]]:
    """The results of two processes, from one launch for all tests."""
    tests = str(Path(__file__).parents[1])
    script = folder / "run.py"
    script.write_text(
        "import pathlib, sys\n"
        f"sys.path.insert(0, {tests!r})\n"
        "from training import test_several_processes\n"
        f"test_several_processes.main(pathlib.Path({str(folder)!r}))\n"
    )
    done = subprocess.run([*LAUNCH, str(script)], check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{index}.pt", weights_only=True) for index in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_two_processes_train_like_one(name: str, two: list[dict[str, Any]], tmp_path: Path) -> None:
    one, (first, second) = CASES[name](tmp_path), (result[name] for result in two)
    assert one["weights"].keys() == first["weights"].keys()
    for key, expected in one["weights"].items():
        assert torch.equal(first["weights"][key], second["weights"][key]), key
        torch.testing.assert_close(first["weights"][key], expected, rtol=1e-4, atol=1e-5, msg=key)
    assert first["history"] == second["history"]
    for record, expected in zip(first["history"], one["history"], strict=True):
        assert record == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_what_two_processes_began_one_can_go_on_with(two: list[dict[str, Any]], folder: Path, tmp_path: Path) -> None:
    CASES["layerwise"](tmp_path)
    ends = []
    for begun in (folder, tmp_path):
        options = TrainingOptions(seed=1, checkpoint_dir=begun / "layerwise", resume=True)
        ends.append(fitted(LayerwiseAdversarialTrainer(classifier(), eps=0.3, options=options), nb_epochs=5))
    for key, expected in ends[1]["weights"].items():
        torch.testing.assert_close(ends[0]["weights"][key], expected, rtol=1e-4, atol=1e-5, msg=key)
    assert len(ends[0]["history"]) == 5


@pytest.mark.slow
def test_a_layer_that_no_loss_reaches_stays_as_it_was(two: list[dict[str, Any]]) -> None:
    assert torch.equal(two[1]["standard"]["weights"]["unused.weight"], started(1)["unused.weight"])


@pytest.mark.slow
def test_two_processes_refuse_alike_and_in_one_sentence(two: list[dict[str, Any]]) -> None:
    first, second = (result["refusals"] for result in two)
    assert first == second
    same = "expected the same in all processes."
    assert first["labels"].startswith("ValueError: y, checksum: got ")
    assert first["labels"].endswith(same)
    for name, begin in (
        ("images", "x, checksum: got "),
        ("validation", "validation_data[1], checksum: got "),
        ("unvalidated", "validation_data[0], checksum: got none in process 0 and "),
        ("scheduler", "scheduler, state: got "),
    ):
        assert first[name].startswith(f"ValueError: {begin}"), first[name]
        assert first[name].endswith(same)
    for name, begin, own, others in (
        ("fewer", "samples: got ", "101", "100"),
        ("eps", "threat: got ", "Linf 0.03", "Linf 0.06"),
        ("accumulation_steps", "accumulation_steps: got ", "1", "2"),
    ):
        assert first[name] == f"ValueError: {begin}{own} in process 0 and {others} in process 1, {same}"
    for name, begin in (("lr", "optimizer: got SGD "), ("lr now", "optimizer, group 0: got ")):
        found = rf"ValueError: {begin}.*'lr': 0\.01, .* in process 0 and .*'lr': 0\.02, .* in process 1, {same}"
        assert re.fullmatch(found, first[name]), first[name]
        assert len(first[name]) < 250
    assert first["epochs"] == f"ValueError: nb_epochs: got 1 in process 0 and 2 in process 1, {same}"
    assert first["loader"].startswith("ValueError: loader, checksum of a batch's labels: got ")
    assert first["shorter"] == (
        f"ValueError: loader, samples in a batch (0 after the last): got 10 in process 0 and 0 in process 1, {same}"
    )
    assert first["loss"].startswith("FloatingPointError: the loss became nan in epoch 2, step 1;")


@pytest.mark.slow
def test_each_process_has_noise_of_its_own_beside_that_of_the_batch(two: list[dict[str, Any]]) -> None:
    one, (first, second) = noise(), (result["noise"] for result in two)
    assert torch.equal(torch.cat([first["share_of_whole"], second["share_of_whole"]]), one["share_of_whole"])
    assert (first["own"] - second["own"]).abs().mean() > 0.2


TRAIN = ["-m", "art_robust_plugins", "train", "bang", "--model-set", "channels=4", "--model-set", "hidden=16"]
TRAIN += ["--batch-size", "200", "--epochs", "20", "--validation", "100", "--eps", "0.05", "--keep-best", "--out"]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_which_then_goes_on(tmp_path: Path) -> None:
    """The survivor says what happened; resumed, the run ends as one process does that nobody kills."""
    run, output = tmp_path / "two", tmp_path / "output"
    with output.open("w") as file:
        launcher = subprocess.Popen([*LAUNCH, *TRAIN, str(run)], stdout=file, stderr=file)
        deadline = time.monotonic() + 120
        while not (run / "training.pt").exists() and time.monotonic() < deadline:
            assert launcher.poll() is None, output.read_text()
            time.sleep(0.02)
        workers = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
        os.kill(int(workers[-1]), signal.SIGKILL)
        assert launcher.wait(timeout=60) == 1
    said = output.read_text()
    sentence = r"error: another process ended in epoch \d+, or did not answer in time \(.+\); start all of them again"
    assert re.search(sentence, said) or "ended by SIGTERM; to continue: art-robust train" in said
    assert not (run / "classifier.json").exists()
    resume = [*LAUNCH, *TRAIN, str(run), "--resume"]
    done = subprocess.run(resume, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Saved in") == 1
    app([*TRAIN[2:], str(tmp_path / "one")], standalone_mode=False)
    one, two = (load_classifier(folder).model.state_dict() for folder in (tmp_path / "one", run))
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-3, atol=1e-4, msg=name)
    histories = [describe_classifier(folder)["extra"]["history"] for folder in (tmp_path / "one", run)]
    assert [record["loss"] for record in histories[1]] == pytest.approx(
        [record["loss"] for record in histories[0]], 1e-3
    )
    assert len(histories[1]) == 20

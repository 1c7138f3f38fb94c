"""The engine's options: each does what it says, and leaves no trace."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from scipy.stats import chi2
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from art_robust_plugins import (
    BANGTrainer,
    LayerwiseAdversarialTrainer,
    LipschitzMarginTrainer,
    LocalBallTrainer,
    PGDTrainer,
    RobustTrainer,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
)
from art_robust_plugins.training import BANG, Layerwise, TRADESTrainer
from art_robust_plugins.training.engine.augmentation import cropped_and_flipped
from art_robust_plugins.training.engine.compiling import Compiled
from art_robust_plugins.training.engine.learning_rates import one_cycle
from art_robust_plugins.training.engine.prefetch import prefetched

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


def two_convolutions(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    convolutions = nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 8, 3, stride=2)
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(72, 10))


def classifier(model: nn.Module | None = None, optimizer: Any = None, **settings: Any) -> PyTorchClassifier:
    model = network() if model is None else model
    descent = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9) if optimizer is None else optimizer(model)
    settings = {"clip_values": (0, 1), "device_type": "cpu", **settings}
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


def test_without_a_compiler_training_goes_on() -> None:
    import torch._inductor.config as inductor

    without = inductor.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False})
    with without, pytest.warns(UserWarning, match="training goes on uncompiled"):
        compiled = trained(compile="default")
    assert same(weights(compiled), weights(trained()))


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
        compiled = trained(without_normalisation(), compile="default")
    assert same(weights(compiled), weights(trained(without_normalisation())))


@needs_compiler
@pytest.mark.slow
def test_each_kind_of_pass_is_compiled_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three steps, a local ball, and a smaller last batch: more kinds than torch compiles in one place."""
    method = {"threat": ThreatModel("Linf", 0.1), "steps": 3, "overfitting": "ignore", "start": "none"}
    shared = {"kind": LocalBallTrainer, "method": method, "samples": 70, "epochs": 1, "mixed_precision": "bf16"}
    made: list[Compiled] = []
    real = Compiled._compiled

    def counted(self: Compiled) -> Any:
        made.append(self)
        return real(self)

    monkeypatch.setattr(Compiled, "_compiled", counted)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="compile:")
        compiled = trained(without_normalisation(), **shared, compile="default")
    assert len(made) == 3  # evaluation with and without gradients, training with them
    assert close(weights(compiled), weights(trained(without_normalisation(), **shared)), atol=5e-3)


def test_lack_of_memory_is_not_taken_for_a_network_that_cannot_be_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> Any:
        def passes(x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return passes

    monkeypatch.setattr(torch, "compile", full)
    with pytest.raises(torch.OutOfMemoryError):
        trained(compile="default")


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


# --------------------------------------------------------------------------------------------- channels_last, in bf16


@pytest.mark.parametrize("optimizer", [partial(torch.optim.SGD, lr=0.05, momentum=0.9), torch.optim.Adam])
def test_fused_steps_in_channels_last_go_on_from_an_earlier_training(optimizer: Any) -> None:
    """What the optimizer keeps of the weights must lie in memory as they do."""
    results = []
    for options in ({}, {"channels_last": True}, {"channels_last": True, "fused_optimizer": True}):
        model = two_convolutions()
        estimator = classifier(model, lambda model: optimizer(model.parameters()))
        for further in ({}, options):
            trainer = StandardTrainer(estimator, options=TrainingOptions(seed=0, **further))
            trainer.fit(X[:64], Y[:64], batch_size=32, nb_epochs=2, verbose=False)
        results.append(weights(trainer))
    assert close(results[0], results[1])
    assert close(results[0], results[2])


def test_fused_steps_in_channels_last_resume(tmp_path: Path) -> None:
    resumes_exactly(tmp_path, model=two_convolutions, channels_last=True, fused_optimizer=True)


def test_after_training_in_channels_last_everything_lies_as_it_did() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 8, 3), nn.Tanh(), nn.Conv2d(8, 4, 3)),
        *(nn.Flatten(), nn.Linear(16, 10)),
    )
    model[4].to(memory_format=torch.channels_last)  # the user's own choice, which stays
    model.register_buffer("expanded", torch.ones(1, 3, 1, 1).expand(1, 3, 8, 8))
    before = [parameter.stride() for parameter in model.parameters()]
    last = torch.channels_last
    seen: list[bool] = []

    def look(module: nn.Module, *_: Any) -> None:
        if module.training:
            seen.append(module.weight.is_contiguous(memory_format=last))

    for layer in (model[2], model[4]):
        layer.register_forward_hook(look)
    trainer = trained(model, optimizer=lambda model: torch.optim.Adam(model.parameters()), channels_last=True)
    assert seen
    assert all(seen)
    assert [parameter.stride() for parameter in model.parameters()] == before
    assert not model[2].weight.is_contiguous(memory_format=last)
    assert model[4].weight.is_contiguous(memory_format=last)
    for parameter in model.parameters():
        state = trainer.classifier.optimizer.state[parameter]
        assert state["exp_avg"].stride() == parameter.grad.stride() == parameter.stride()


def test_losses_of_bfloat16_outputs_are_in_float32() -> None:
    class Precise(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            loss = super().training_loss(x, y)
            assert self.logits(x).dtype == loss.dtype == torch.float32
            return loss

    assert not same(weights(trained(kind=Precise, mixed_precision="bf16")), weights(trained()))


# ---------------------------------------------------------------------------------------------- average of the weights


class Recording(StandardTrainer):
    """Keeps the weights before each step, and those that are validated."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.steps: list[dict[str, Tensor]] = []
        self.validated: list[dict[str, Tensor]] = []

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.steps.append(weights(self))
        return super().training_loss(x, y)

    def _validate(self, x: Tensor, y: Tensor, batch_size: int = 500) -> dict[str, float]:
        self.validated.append(weights(self))
        return super()._validate(x, y, batch_size)


def test_the_average_of_the_weights_is_the_formula() -> None:
    decay = 0.7
    plain = trained(kind=Recording, epochs=3)
    averaged = trained(kind=Recording, epochs=3, ema_decay=decay, validation=(X[:50], Y[:50]))
    assert all(same(one, other) for one, other in zip(plain.steps, averaged.steps, strict=True))
    visited = [*plain.steps, weights(plain)]
    names = dict(plain.classifier.model.named_parameters())
    by_hand = {name: visited[0][name].double() for name in names}
    validated = []
    for step, after in enumerate(visited[1:], start=1):
        by_hand = {name: decay * by_hand[name] + (1 - decay) * after[name].double() for name in names}
        if step % 4 == 0:  # an epoch has 4 steps
            validated.append(by_hand)
    result = weights(averaged)
    for name in result:
        if name in names:
            torch.testing.assert_close(result[name].double(), by_hand[name], rtol=1e-5, atol=1e-7)
        else:  # batch normalisation's running statistics are those of the trained network
            assert torch.equal(result[name], visited[-1][name])
    assert len(averaged.validated) == len(validated) == 3
    for one, other in zip(averaged.validated, validated, strict=True):
        for name in names:
            torch.testing.assert_close(one[name].double(), other[name], rtol=1e-5, atol=1e-7)


def test_the_best_epoch_holds_averaged_weights() -> None:
    validation = (X[:100], (Y[:100] + 1) % 10)  # wrong labels: it only gets worse
    trainer = trained(kind=Recording, epochs=3, ema_decay=0.9, validation=validation, keep_best=True)
    found = [record["validation_accuracy"] for record in trainer.history]
    best = int(np.argmax(found))
    assert same(weights(trainer), trainer.validated[best])
    assert best < 2
    assert not same(weights(trainer), trainer.steps[4 * (best + 1)])  # nor those that were trained


def test_going_back_to_earlier_weights_starts_the_average_anew() -> None:
    class Backward(Recording):
        def end_epoch(self, record: dict[str, float]) -> None:
            self.classifier.model.load_state_dict(self.steps[0])
            record["rolled_back"] = 1.0

    trainer = trained(kind=Backward, epochs=1, ema_decay=0.9)
    assert same(weights(trainer), trainer.steps[0])


def resumes_exactly(folder: Path, model: Callable[[], nn.Module] = network, **settings: Any) -> None:
    """A run of 4 epochs equals one that was stopped after 1 and after 3."""
    shared = {"scheduler": None, "kind": StandardTrainer, **settings}
    whole = trained(model(), epochs=4, checkpoint_dir=folder / "whole", **shared)
    for epochs in (1, 3, 4):
        parts = trained(model(), epochs=epochs, checkpoint_dir=folder / "parts", resume=epochs > 1, **shared)
    assert same(weights(whole), weights(parts))
    for one, other in zip(whole.history, parts.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}


@pytest.mark.parametrize("keep_best", [False, True])
def test_the_average_is_resumed(tmp_path: Path, keep_best: bool) -> None:
    validation = (X[:50], (Y[:50] + 1) % 10)
    resumes_exactly(tmp_path, ema_decay=0.9, keep_best=keep_best, validation=validation)
    with pytest.raises(ValueError, match=r"was written with ema_decay 0.9, but this run has None"):
        trained(epochs=5, checkpoint_dir=tmp_path / "parts", resume=True, keep_best=keep_best, validation=validation)


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1, "0.9", True, float("nan")])
def test_a_decay_lies_between_0_and_1(decay: Any) -> None:
    with pytest.raises(ValueError, match=r"ema_decay: got .*, expected a number above 0 and below 1"):
        TrainingOptions(ema_decay=decay)


# -------------------------------------------------------------------------------------------------- the learning rate


class Rates(StandardTrainer):
    """Keeps the learning rate of each step."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.rates: list[float] = []

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.rates.append(self.classifier.optimizer.param_groups[0]["lr"])
        return super().training_loss(x, y)


def test_schedules_are_their_formulas() -> None:
    steps, epochs, rate = 4, 5, 0.05
    total = steps * epochs
    time = np.arange(total)
    shared: dict[str, Any] = {"kind": Rates, "epochs": epochs}

    cosine = trained(**shared, schedule="cosine")
    np.testing.assert_allclose(cosine.rates, rate * (1 + np.cos(np.pi * time / total)) / 2, rtol=1e-12)
    warm = trained(**shared, schedule="cosine", warmup_epochs=1.5)
    rest = (1 + np.cos(np.pi * (time - 6) / (total - 6))) / 2
    np.testing.assert_allclose(warm.rates, rate * np.where(time < 6, (time + 1) / 7, rest), rtol=1e-12)
    stairs = trained(**shared, schedule="piecewise", milestones=[1, 2.5], milestone_decay=0.2)
    np.testing.assert_allclose(stairs.rates, rate * 0.2 ** ((time >= 4).astype(int) + (time >= 10)), rtol=1e-12)

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], rate)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=total)
    expected = []
    for _ in range(total):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    cycle = trained(**shared, schedule="one-cycle")
    np.testing.assert_allclose(cycle.rates, expected, rtol=1e-9)
    assert trained(**shared, schedule="constant").rates == [rate] * total


@pytest.mark.parametrize("total", [1, 2, 3, 4, 10])
def test_short_cycles_stay_between_their_ends(total: int) -> None:
    factors = [one_cycle(total)(step) for step in range(total + 1)]
    assert all(1 / 250_000 <= factor <= 1 for factor in factors)
    assert factors[-2:] == [pytest.approx(1 / 250_000)] * min(2, total + 1)


def test_a_schedule_leaves_the_optimizer_as_it_was_and_begins_anew() -> None:
    model = network()
    estimator = classifier(model)
    trainer = Rates(estimator, options=TrainingOptions(seed=0, schedule="cosine"))
    before = {name: value for name, value in estimator.optimizer.param_groups[0].items() if name != "params"}
    for _ in range(2):
        trainer.rates.clear()
        trainer.fit(X[:64], Y[:64], batch_size=32, nb_epochs=2, verbose=False)
        assert trainer.rates == pytest.approx([0.05 * (1 + np.cos(np.pi * t / 4)) / 2 for t in range(4)])
        after = {name: value for name, value in estimator.optimizer.param_groups[0].items() if name != "params"}
        assert after == before
    with pytest.raises(ValueError, match="scheduler: got ExponentialLR beside schedule 'cosine', expected one"):
        trained(schedule="cosine", scheduler=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5))
    stream = (batch for batch in [])

    class Stream:
        def __iter__(self) -> Any:
            return stream

    with pytest.raises(ValueError, match="schedule: got 'cosine' for a stream without a length, expected 'constant'"):
        trainer.fit_loader(Stream(), verbose=False)


class Stopped(StandardTrainer):
    """Is stopped in its third epoch, once."""

    stop = False

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        if Stopped.stop and len(self.history) == 2:
            raise KeyboardInterrupt
        return super().training_loss(x, y)


def test_a_training_can_be_too_short_for_a_schedule() -> None:
    with pytest.raises(ValueError, match=r"warmup_epochs: got 2 of 2 epochs, expected fewer."):
        trained(schedule="cosine", warmup_epochs=2)
    with pytest.raises(ValueError, match=r"schedule: got 'one-cycle' for 3 steps, expected at least 4."):
        trained(schedule="one-cycle", samples=96, epochs=1)


def test_a_rate_that_is_a_tensor_comes_back() -> None:
    rate = torch.tensor(0.01)
    trainer = trained(optimizer=lambda model: torch.optim.Adam(model.parameters(), rate), schedule="cosine")
    assert trainer.classifier.optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.01


def test_the_history_has_the_rate_of_each_epochs_last_step() -> None:
    trainer = trained(kind=Rates, schedule="cosine", epochs=3)
    assert [record["learning_rate"] for record in trainer.history] == trainer.rates[3::4]


@pytest.mark.parametrize(("length", "sentence"), [(2, "got more batches than the 2"), (9, "got 4 batches in epoch 1")])
def test_a_schedule_needs_the_length_that_a_loader_says(length: int, sentence: str) -> None:
    class Loader:
        def __len__(self) -> int:
            return length

        def __iter__(self) -> Iterator[Any]:
            return iter([(X[:10], Y[:10])] * 4)

    with pytest.raises(ValueError, match=f"loader: {sentence}"):
        StandardTrainer(classifier(), options=TrainingOptions(schedule="cosine")).fit_loader(Loader(), verbose=False)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "piecewise"])
def test_schedules_resume(schedule: str, tmp_path: Path) -> None:
    milestones = (1, 2.25) if schedule == "piecewise" else ()
    shared: dict[str, Any] = {"kind": Stopped, "epochs": 4, "schedule": schedule, "milestones": milestones}
    whole = trained(**shared)
    Stopped.stop = True
    with pytest.raises(KeyboardInterrupt):
        trained(**shared, checkpoint_dir=tmp_path)
    Stopped.stop = False
    resumed = trained(**shared, checkpoint_dir=tmp_path, resume=True)
    assert same(weights(whole), weights(resumed))
    assert [record["learning_rate"] for record in whole.history] == [
        record["learning_rate"] for record in resumed.history
    ]
    longer = {**shared, "epochs": 5, "checkpoint_dir": tmp_path, "resume": True}
    if schedule == "piecewise":
        trained(**longer)
    else:  # the whole curve belongs to the number of epochs
        with pytest.raises(ValueError, match=r"was written with nb_epochs 4, but this run has 5"):
            trained(**longer)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"schedule": "linear"}, "schedule: got 'linear', expected one of 'constant', 'cosine', 'one-cycle', "),
        ({"warmup_epochs": 1}, "warmup_epochs: got 1 with schedule 'constant', expected it with 'cosine'."),
        ({"schedule": "cosine", "warmup_epochs": -1}, "warmup_epochs: got -1, expected a number that is not negative."),
        ({"schedule": "piecewise"}, "milestones: got () with schedule 'piecewise', expected at least one."),
        ({"milestones": [1]}, "milestones: got [1] with schedule 'constant', expected none."),
        (
            {"schedule": "piecewise", "milestones": [2, 1]},
            "milestones: got [2, 1], expected increasing positive numbers of epochs.",
        ),
        (
            {"schedule": "piecewise", "milestones": 3},
            "milestones: got 3, expected increasing positive numbers of epochs.",
        ),
        (
            {"schedule": "piecewise", "milestones": [1], "milestone_decay": 0},
            "milestone_decay: got 0, expected a positive number.",
        ),
    ],
)
def test_schedules_are_checked(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as error:  # noqa: PT011 (the whole sentence is compared)
        TrainingOptions(**options)
    assert str(error.value).startswith(sentence)


# ------------------------------------------------------------------------------------------------ batches cut in parts


@pytest.mark.parametrize("parts", [3, 7])
def test_parts_give_the_gradient_of_the_whole_batch(parts: int) -> None:
    """Batches of 32, which 3 and 7 do not divide, and a last one of 4, which has fewer samples than parts."""
    shared: dict[str, Any] = {**PGD, "epochs": 2}
    shared["method"] = {**PGD["method"], "start": "none", "clean_weight": 0.5}
    whole = trained(without_normalisation(), **shared)
    cut = trained(without_normalisation(), **shared, accumulation_steps=parts)
    assert close(weights(whole), weights(cut), atol=1e-6)
    for one, other in zip(whole.history, cut.history, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-5)


def test_the_optimizer_steps_once_for_all_parts_and_the_method_sees_each() -> None:
    seen: list[int] = []

    class Sizes(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(len(x))
            return super().training_loss(x, y)

    # With norm clipping, two steps on halves would go twice as far as one step on the whole.
    shared: dict[str, Any] = {"kind": Sizes, "samples": 10, "batch_size": 10, "epochs": 1, "max_gradient_norm": 1e-3}
    whole = trained(without_normalisation(), **shared)
    cut = trained(without_normalisation(), **shared, accumulation_steps=4)
    assert seen == [10, 3, 3, 2, 2]
    assert close(weights(whole), weights(cut), atol=1e-8)


def test_a_part_whose_loss_is_not_finite_is_named_by_its_step() -> None:
    class Breaking(StandardTrainer):
        calls = 0

        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            self.calls += 1
            return super().training_loss(x, y) * (torch.nan if self.calls == 6 else 1.0)

    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 1, step 3;"):
        trained(kind=Breaking, accumulation_steps=2)


def test_parts_need_a_loss_that_averages() -> None:
    for loss in (nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(weight=torch.ones(10))):
        estimator = classifier()
        estimator._loss = loss
        trainer = StandardTrainer(estimator, options=TrainingOptions(accumulation_steps=2))
        with pytest.raises(ValueError, match="classifier: accumulation_steps average over samples, expected a loss"):
            trainer.fit(X, Y, verbose=False)
    with pytest.raises(ValueError, match="accumulation_steps: got 2 with compile 'reduce-overhead'"):
        TrainingOptions(accumulation_steps=2, compile="reduce-overhead")
    with pytest.raises(ValueError, match="accumulation_steps: got 0, expected a positive whole number"):
        TrainingOptions(accumulation_steps=0)


# -------------------------------------------------------------------------------------------------------- augmentation


def possible_crops(image: Tensor, padding: int, fill: float) -> list[Tensor]:
    """Each crop of a padded image [C, H, W], as it is and mirrored, cut out by hand."""
    height, width = image.shape[1:]
    padded = torch.full((len(image), height + 2 * padding, width + 2 * padding), fill)
    padded[:, padding : padding + height, padding : padding + width] = image
    places = [(top, left) for top in range(2 * padding + 1) for left in range(2 * padding + 1)]
    crops = [padded[:, top : top + height, left : left + width] for top, left in places]
    return crops + [crop.flip(2) for crop in crops]


@pytest.mark.parametrize("padding", [0, 2])
def test_each_crop_and_flip_of_an_image_is_equally_likely(padding: int) -> None:
    torch.manual_seed(0)
    images, repeats = torch.rand(5, 2, 4, 3), 1000
    found = cropped_and_flipped(images.repeat(repeats, 1, 1, 1), padding, 0.25)
    for index, image in enumerate(images):
        crops = torch.stack(possible_crops(image, padding, 0.25))
        equal = (found[index :: len(images), None] == crops).all(dim=(2, 3, 4))
        assert (equal.sum(dim=1) == 1).all()  # each is one of the possible crops of its own image
        counts = equal.sum(dim=0).double()
        expected = repeats / len(crops)
        assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.999, len(crops) - 1)


def test_neighbours_are_changed_independently() -> None:
    torch.manual_seed(0)
    image = torch.rand(1, 1, 6, 6)
    crops = torch.stack(possible_crops(image[0], 1, 0.0))
    found = cropped_and_flipped(image.repeat(20_000, 1, 1, 1), 1)
    which = (found[:, None] == crops).all(dim=(2, 3, 4)).long().argmax(dim=1)
    pairs = torch.zeros(18, 18).index_put((which[::2], which[1::2]), torch.ones(10_000), accumulate=True)
    expected = 10_000 / 18**2
    assert ((pairs - expected) ** 2 / expected).sum() < chi2.ppf(0.999, 18**2 - 1)


class Seeing(StandardTrainer):
    """Keeps the batches that the method sees, and validates on."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.seen: list[tuple[Tensor, Tensor]] = []
        self.validated: list[Tensor] = []

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.seen.append((x.clone(), y.clone()))
        return super().training_loss(x, y)

    def _validate(self, x: Tensor, y: Tensor, batch_size: int = 500) -> dict[str, float]:
        self.validated.append(x.clone())
        return super()._validate(x, y, batch_size)


@pytest.mark.parametrize("last", [False, True])
def test_the_method_sees_changed_images_with_their_labels_and_validation_the_images_themselves(last: bool) -> None:
    """Values in [-1, 1]: the padding is -1. With the channels first and last."""
    images = torch.from_numpy(2 * X[:40] - 1)
    shape = (8, 8, 1) if last else (1, 8, 8)
    data = images.movedim(1, -1).contiguous() if last else images
    seen = []
    for _ in range(2):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        settings = {"clip_values": (-1, 1), "channels_first": not last, "optimizer": optimizer, "device_type": "cpu"}
        estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), shape, 10, **settings)
        options = TrainingOptions(seed=3, shuffle=False, augmentation="crop-flip", crop_padding=2)
        trainer = Seeing(estimator, options=options)
        validation = (data[:10], Y[:10])
        trainer.fit(data, Y[:40], validation, batch_size=16, nb_epochs=2, verbose=False)
        seen.append(trainer.seen)
    assert torch.equal(trainer.validated[0], data[:10])
    x = torch.cat([batch for batch, _ in seen[0]])
    x = x.movedim(-1, 1) if last else x
    assert torch.equal(torch.cat([labels for _, labels in seen[0]]), torch.from_numpy(Y[:40]).repeat(2))
    for found, image in zip(x, images.repeat(2, 1, 1, 1), strict=True):
        assert any(torch.equal(found, crop) for crop in possible_crops(image, 2, -1.0))
    assert not torch.equal(x[:40], x[40:])  # other ones in the second epoch
    for one, other in zip(*seen, strict=True):
        assert torch.equal(one[0], other[0])  # the seed repeats them


def test_flips_alone_move_nothing() -> None:
    trainer = trained(kind=Seeing, epochs=1, augmentation="flip", shuffle=False)
    x = torch.cat([batch for batch, _ in trainer.seen])
    images = torch.from_numpy(X[:100])
    kept = (x == images).flatten(1).all(dim=1)
    assert (kept | (x == images.flip(3)).flatten(1).all(dim=1)).all()
    assert 30 < int(kept.sum()) < 70


def test_padding_takes_the_lower_clip_value_of_each_pixel() -> None:
    low = np.linspace(-2, -1, 64, dtype=np.float32).reshape(1, 8, 8)
    trainer = trained(
        kind=Seeing, augmentation="crop-flip", crop_padding=7, preparation={"clip_values": (low, np.ones_like(low))}
    )
    x = torch.cat([batch for batch, _ in trainer.seen])
    filled = x < 0  # the digits are not negative
    assert filled.any()
    assert torch.equal(x[filled], torch.from_numpy(low).expand_as(x)[filled])


@pytest.mark.parametrize("side", [8, 3])  # with 3 channels, 3 pixels could be taken for channels
@pytest.mark.parametrize("axes", [(3,), (1, 1, 3), (1, 1, 1, 3)])
def test_padding_takes_the_lower_clip_value_of_each_channel_where_it_is_last(side: int, axes: tuple[int, ...]) -> None:
    seen: list[Tensor] = []

    class Watching(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            seen.append(x)
            return super().training_loss(x, y)

    low = np.array([-2, -1.5, -1], dtype=np.float32)
    model = nn.Sequential(nn.Flatten(), nn.Linear(side * side * 3, 10))
    estimator = PyTorchClassifier(
        model,
        nn.CrossEntropyLoss(),
        (side, side, 3),
        10,
        optimizer=torch.optim.SGD(model.parameters(), 0.1),
        channels_first=False,
        clip_values=(low.reshape(axes), np.ones(axes, dtype=np.float32)),
    )
    options = TrainingOptions(seed=0, augmentation="crop-flip", crop_padding=2)
    Watching(estimator, options=options).fit(
        np.zeros((60, side, side, 3), np.float32), Y[:60], nb_epochs=1, verbose=False
    )
    for channel in range(3):
        values = torch.cat(seen)[..., channel].unique()
        assert values.tolist() == [low[channel], 0]


def test_augmentation_resumes(tmp_path: Path) -> None:
    resumes_exactly(tmp_path, augmentation="crop-flip", crop_padding=1)


def test_what_is_no_image_cannot_be_cropped() -> None:
    model = nn.Linear(64, 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    flat = PyTorchClassifier(model, nn.CrossEntropyLoss(), (64,), 10, optimizer=optimizer)
    with pytest.raises(ValueError, match=r"augmentation: got 'flip' for inputs of shape \(64,\), expected images of"):
        StandardTrainer(flat, options=TrainingOptions(augmentation="flip")).fit(X[:9].reshape(9, 64), Y[:9])
    with pytest.raises(ValueError, match="crop_padding: got 8 for images of 8 x 8 pixels, expected fewer"):
        trained(augmentation="crop-flip", crop_padding=8)
    with pytest.raises(ValueError, match="augmentation: got 'crop', expected one of 'none', 'flip', 'crop-flip'"):
        TrainingOptions(augmentation="crop")
    with pytest.raises(ValueError, match="crop_padding: got 0, expected a positive whole number"):
        TrainingOptions(crop_padding=0)


# ------------------------------------------------------------------------------------------------------ fused optimizer


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
    plain = trained(without_normalisation(), optimizer=OPTIMIZERS[name], epochs=3)
    with Calls() as calls:
        fused = trained(without_normalisation(), optimizer=OPTIMIZERS[name], epochs=3, fused_optimizer=True)
    assert f"_fused_{name}_" in calls.names
    assert close(weights(plain), weights(fused), atol=1e-5)
    one, other = (trainer.classifier.optimizer for trainer in (plain, fused))
    assert {k: v for k, v in one.param_groups[0].items() if k != "params"} == {
        k: v for k, v in other.param_groups[0].items() if k != "params"
    }
    with Calls() as calls:  # afterwards it is the user's own again, and goes on where it was
        for trainer in (plain, fused):
            StandardTrainer(trainer.classifier, options=TrainingOptions(seed=1)).fit(X[:64], Y[:64], verbose=False)
    assert f"_fused_{name}_" not in calls.names
    assert close(weights(plain), weights(fused), atol=1e-4)


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
        results.append(weights(trainer))
    assert close(*results)


def test_other_optimizers_have_no_fused_step() -> None:
    class OwnStep(torch.optim.SGD):
        pass

    for kind in (torch.optim.RMSprop, OwnStep):
        with pytest.raises(ValueError, match=f"got the optimizer {kind.__name__}, expected one of SGD, Adam"):
            trained(optimizer=lambda model, kind=kind: kind(model.parameters(), 0.01), fused_optimizer=True)
    with pytest.raises(ValueError, match="fused_optimizer: got 1, expected True or False"):
        TrainingOptions(fused_optimizer=1)


@cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_fused_adam_on_a_gpu_counts_its_steps_there_and_then_on_the_cpu_again() -> None:
    trainer = trained(network().cuda(), optimizer=OPTIMIZERS["adam"], preparation={"device_type": "gpu"})
    optimizer = trainer.classifier.optimizer
    options = TrainingOptions(seed=0, fused_optimizer=True)
    StandardTrainer(trainer.classifier, options=options).fit(X, Y, batch_size=64, nb_epochs=1, verbose=False)
    steps = [state["step"] for state in optimizer.state.values()]
    assert {step.device.type for step in steps} == {"cpu"}
    assert {step.item() for step in steps} == {2 * 4 + 4}


# ------------------------------------------------------------------------------------------------------- batches ahead


def numbered(count: int, order: list[str]) -> Iterator[tuple[Tensor, Tensor]]:
    for index in range(count):
        order.append(f"read {index}")
        yield torch.full((3, 2), float(index)), torch.full((3,), index)


def test_a_loaders_batches_come_in_order_and_none_is_read_before_its_turn() -> None:
    order: list[str] = []
    for index, (x, y) in enumerate(prefetched(numbered(3, order), torch.device("cpu"))):
        assert torch.equal(x, torch.full((3, 2), float(index)))
        assert torch.equal(y, torch.full((3,), index))
        order.append(f"used {index}")
    assert order == ["read 0", "used 0", "read 1", "used 1", "read 2", "used 2"]
    assert list(prefetched(iter(()), torch.device("cpu"))) == []


@cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu_the_next_batch_is_read_ahead_and_no_value_is_lost() -> None:
    order: list[str] = []
    for index, (x, _) in enumerate(prefetched(numbered(3, order), torch.device("cuda"))):
        assert x.device.type == "cuda"
        assert torch.equal(x.cpu(), torch.full((3, 2), float(index)))
        order.append(f"used {index}")
    assert order == ["read 0", "read 1", "used 0", "read 2", "used 1", "used 2"]
    assert list(prefetched(iter(()), torch.device("cuda"))) == []
    # Large batches, whose copies overlap with the work on the one before.
    generator = torch.Generator().manual_seed(0)
    batches = [(torch.rand(1000, 3000, generator=generator), torch.arange(1000)) for _ in range(20)]
    total = torch.zeros(3000, 3000, device="cuda")
    for (x, y), (expected, _) in zip(prefetched(iter(batches), torch.device("cuda")), batches, strict=True):
        total += x.T @ x
        assert torch.equal(x.cpu(), expected)
        assert torch.equal(y.cpu(), torch.arange(1000))


# ------------------------------------------------------------------------------------------------- waiting for a device


class Reads(TorchDispatchMode):
    """Counts what makes the host wait for a device: values that are read, and indices by truth."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        indices = args[1] if name.startswith("index") and len(args) > 1 and isinstance(args[1], list | tuple) else ()
        by_truth = any(isinstance(index, Tensor) and index.dtype == torch.bool for index in indices)
        self.count += by_truth or name in ("_local_scalar_dense", "nonzero", "masked_select")
        return func(*args, **(kwargs or {}))


EVERY_METHOD: dict[str, Callable[[PyTorchClassifier, TrainingOptions], RobustTrainer]] = {
    "standard": lambda c, o: StandardTrainer(c, options=o),
    "bang": lambda c, o: BANGTrainer(c, ratio=0.5, options=o),
    "layerwise": lambda c, o: LayerwiseAdversarialTrainer(c, options=o),
    "lipschitz-margin": lambda c, o: LipschitzMarginTrainer(c, options=o),
    "local-ball": lambda c, o: LocalBallTrainer(c, threat=ThreatModel("Linf", 0.1), overfitting="ignore", options=o),
    "trades, L2": lambda c, o: TRADESTrainer(c, threat=ThreatModel("L2", 0.5), overfitting="ignore", options=o),
}


@pytest.mark.parametrize("name", EVERY_METHOD)
def test_a_step_reads_nothing_from_the_device(name: str) -> None:
    """The losses are read once in many steps on a GPU, by an operation that is not counted here."""
    counts = []
    for steps in (2, 6):
        low = np.zeros((1, 8, 8), dtype=np.float32)
        low[0, 0, 0] = -0.5  # so that clip_values are tensors
        options = {"augmentation": "crop-flip", "ema_decay": 0.9, "max_gradient_norm": 1.0, "schedule": "cosine"}
        estimator = classifier(two_convolutions(), clip_values=(low, np.ones_like(low)))
        trainer = EVERY_METHOD[name](estimator, TrainingOptions(seed=0, **options))
        with Reads() as reads:
            trainer.fit(X[: 10 * steps], Y[: 10 * steps], batch_size=10, nb_epochs=1, verbose=False)
        counts.append(reads.count)
    assert counts[0] == counts[1]


@cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", EVERY_METHOD)
def test_on_a_gpu_a_step_does_not_wait(name: str) -> None:
    estimator = classifier(two_convolutions().cuda(), device_type="gpu")
    trainer = EVERY_METHOD[name](estimator, TrainingOptions(seed=0, augmentation="crop-flip", ema_decay=0.9))
    inner, calls = trainer.training_loss, 0

    def watched(x: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        torch.cuda.set_sync_debug_mode("error" if 2 < calls < 9 else "default")
        return inner(x, y)

    trainer.training_loss = watched  # type: ignore[method-assign]
    try:
        trainer.fit(X[:100], Y[:100], batch_size=10, nb_epochs=1, verbose=False)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert calls == 10

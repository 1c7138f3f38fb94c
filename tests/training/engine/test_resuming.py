"""A checkpoint is taken up by the run that wrote it alone; a refusal names the difference and changes nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from art_robust_plugins import PGDTrainer, StandardTrainer, ThreatModel, TrainingOptions
from art_robust_plugins.files import load_state, save_state
from art_robust_plugins.locks import FolderInUseError
from art_robust_plugins.training import BANG

from .resumable import X_CHANGED, Y_CHANGED, Run, X, Y, network, sgd

LINF = ThreatModel("Linf", 0.1)


class Plain(nn.Module):
    """A network whose text shows neither its numbers nor its functions."""

    def __init__(self, slope: Any = 0.1, act: Any = torch.relu, times: int = 1) -> None:
        super().__init__()
        self.slope, self.act, self.times = slope, act, times
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = functional.leaky_relu(self.first(x.flatten(1)), self.slope)
        logits: Tensor = self.last(self.act(h) * self.times)
        return logits


class Dropping(Plain):
    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.last(functional.dropout(self.first(x.flatten(1)), 0.2, self.training))
        return logits


DroppingLess = type("Dropping", (Plain,), {})


def _forward(self: Any, x: Tensor) -> Tensor:
    logits: Tensor = self.last(functional.dropout(self.first(x.flatten(1)), 0.1, self.training))
    return logits


DroppingLess.forward = _forward  # type: ignore[attr-defined]


class Times(StandardTrainer):
    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        return super().training_loss(x, y) * 2


def _loss_three_times(self: Any, x: Tensor, y: Tensor) -> Tensor:
    return StandardTrainer.training_loss(self, x, y) * 3


OtherTimes = type("Times", (StandardTrainer,), {"training_loss": _loss_three_times, "__module__": __name__})


class Passing(PGDTrainer):
    """Hands its settings on: they are not among its own constructor's."""

    def __init__(self, classifier: PyTorchClassifier, **settings: Any) -> None:
        super().__init__(classifier, **settings)


def exchange(model: nn.Module) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    parameters[0], parameters[2] = parameters[2], parameters[0]  # of one shape
    return torch.optim.SGD(parameters, 0.1, 0.9)


def groups(*rates: float) -> Callable[[nn.Module], torch.optim.Optimizer]:
    def optimizer(model: nn.Module) -> torch.optim.Optimizer:
        first, *others = model.parameters()
        pairs = zip(([first], others), rates, strict=True)
        return torch.optim.SGD([{"params": params, "lr": rate} for params, rate in pairs], 0.1, 0.9)

    return optimizer


def loader(x: Any, **settings: Any) -> DataLoader[Any]:
    data = TensorDataset(torch.from_numpy(x), torch.from_numpy(Y))
    return DataLoader(data, **{"batch_size": 16, "shuffle": True, **settings})


def half(epoch: int) -> float:
    return 0.5**epoch


OTHERS: list[tuple[str, Run, Run]] = [
    ("x float32 ", Run(), Run(data=(X_CHANGED, Y))),
    ("y int64 ", Run(), Run(data=(X, Y_CHANGED))),
    ("validation_data x float32", Run(), Run(validation=(X_CHANGED, Y))),
    ("validation_data y int64", Run(), Run(validation=(X, Y_CHANGED))),
    ("validation data given", Run(), Run(validation=None)),
    ("ReLU.*Tanh", Run(), Run(model=lambda: network(nn.Tanh))),
    (r"Dropout\(p=0.1.*Dropout\(p=0.3", Run(), Run(model=lambda: network(drop=0.3))),
    ("label_smoothing=0.0.*label_smoothing=0.1", Run(), Run(loss=nn.CrossEntropyLoss(label_smoothing=0.1))),
    ("weight=None.*weight=", Run(), Run(loss=nn.CrossEntropyLoss(torch.tensor([1.0, 2, 3])))),
    ("CrossEntropyLoss.*MultiMarginLoss", Run(), Run(loss=nn.MultiMarginLoss())),
    ("clip_values", Run(), Run(clip_values=(0, 2))),
    (r"mean=\[0.0\].*mean=\[0.5\]", Run(), Run(preprocessing=(0.5, 0.5))),
    ("optimizer group 1 lr 0.01.*0.02", Run(optimizer=groups(0.1, 0.01)), Run(optimizer=groups(0.1, 0.02))),
    ("parameters 1.weight.*has 4.weight", Run(), Run(optimizer=exchange)),
    (
        "gamma 0.5.*0.1",
        Run(scheduler=lambda o: lr_scheduler.StepLR(o, 1, 0.5)),
        Run(scheduler=lambda o: lr_scheduler.StepLR(o, 1, 0.1)),
    ),
    (
        "patience 0.*2",
        Run(scheduler=lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0)),
        Run(scheduler=lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=2)),
    ),
    (
        r"_schedulers\[1\].gamma 0.9.*0.8",
        *(
            Run(
                scheduler=lambda o, gamma=gamma: lr_scheduler.SequentialLR(  # type: ignore[misc]
                    o, [lr_scheduler.ConstantLR(o), lr_scheduler.ExponentialLR(o, gamma)], [1]
                )
            )
            for gamma in (0.9, 0.8)
        ),
    ),
    (
        r"code of the schedule.lr_lambdas\[0\]",
        Run(scheduler=lambda o: lr_scheduler.LambdaLR(o, half)),
        Run(scheduler=lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.9**epoch)),
    ),
    ("network.slope 0.1.*0.3", Run(model=Plain), Run(model=lambda: Plain(0.3))),
    ("relu.*tanh", Run(model=Plain), Run(model=lambda: Plain(act=torch.tanh))),
    ("network.times 1.*2", Run(model=Plain), Run(model=lambda: Plain(times=2))),
    ("code of the network class Dropping: forward", Run(model=Dropping), Run(model=DroppingLess)),
    ("code of the method: training_loss", Run(trainer=Times), Run(trainer=OtherTimes)),
    (
        "eps=0.1.*eps=0.2",
        *(Run(trainer=partial(Passing, threat=ThreatModel("Linf", e), step_size=0.1)) for e in (0.1, 0.2)),
    ),
    ("steps=1.*steps=2", *(Run(trainer=partial(Passing, threat=LINF, steps=k, step_size=0.1)) for k in (1, 2))),
    ("loader.dataset.tensors", Run(data=loader(X)), Run(data=loader(X_CHANGED))),
    ("loader.batch_size 16.*14", Run(data=loader(X)), Run(data=loader(X, batch_size=14))),
    ("RandomSampler.*SequentialSampler", Run(data=loader(X)), Run(data=loader(X, shuffle=False))),
    (r"loader\[0\]\[0\]", Run(data=[(X, Y)]), Run(data=[(X_CHANGED, Y)])),
    ("data from arrays", Run(), Run(data=[(X, Y)])),
]


@pytest.mark.parametrize(("difference", "one", "other"), OTHERS, ids=[difference for difference, _, _ in OTHERS])
def test_another_run_is_refused_and_left_as_it_was(difference: str, one: Run, other: Run, tmp_path: Path) -> None:
    one.train(tmp_path, 1)
    before = (tmp_path / "training.pt").read_bytes()
    made: list[Any] = []
    with pytest.raises(ValueError, match=rf"^resume: .*training\.pt .*{difference}") as refusal:
        other.train(tmp_path, 2, made)
    assert "\n" not in str(refusal.value)
    torch.manual_seed(0)
    fresh = other.model()
    for one_tensor, other_tensor in zip(made[0].state_dict().values(), fresh.state_dict().values(), strict=True):
        assert torch.equal(one_tensor, other_tensor)
    assert not made[1].state
    assert (tmp_path / "training.pt").read_bytes() == before
    one.train(tmp_path, 2)


@pytest.mark.parametrize("instruments", [[], [BANG()]], ids=["alone", "with an instrument"])
def test_the_same_objects_go_on_after_their_rates_have_moved(instruments: list[Any], tmp_path: Path) -> None:
    """One optimizer, one scheduler, one trainer: what has moved in them since the beginning is progress."""
    torch.manual_seed(0)
    model = network()
    optimizer = sgd(model)
    estimator = PyTorchClassifier(model, nn.CrossEntropyLoss(), (1, 4, 4), 3, optimizer=optimizer, clip_values=(0, 1))
    scheduler = lr_scheduler.StepLR(optimizer, 1, 0.5)
    options = TrainingOptions(seed=0, checkpoint_dir=tmp_path, resume=True)
    trainer = StandardTrainer(estimator, options=options, instruments=instruments)
    for epochs in (1, 3):
        trainer.fit(X, Y, None, 16, epochs, scheduler, verbose=False)
    whole = Run(scheduler=lambda o: lr_scheduler.StepLR(o, 1, 0.5), instruments=instruments).train(None, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), whole, strict=True))


@pytest.mark.parametrize(
    ("entry", "change"),
    [
        ("network", lambda state: {**state, "1.weight": torch.zeros(16, 4)}),
        ("network", lambda state: {name: value for name, value in state.items() if name != "4.bias"}),
        ("optimizer", lambda state: {**state, "state": {0: {"momentum_buffer": torch.zeros(3)}}}),
        ("optimizer", lambda state: {**state, "param_groups": []}),
        ("average", lambda state: state[:-1]),
        ("average", lambda state: None),
        ("instruments", lambda state: []),
        ("instruments", lambda state: [{"unknown": torch.zeros(3)}]),
        ("method", lambda state: {"unknown": torch.zeros(3)}),
        ("best", lambda state: {**state, "network": {}}),
        ("history", lambda state: [3]),
        ("scheduler", lambda state: {"last_epoch": []}),
    ],
)
def test_nothing_is_loaded_of_a_checkpoint_that_does_not_fit(
    entry: str, change: Callable[[Any], Any], tmp_path: Path
) -> None:
    run = Run(
        instruments=[BANG()],
        options={"ema_decay": 0.5, "keep_best": True},
        scheduler=lambda o: lr_scheduler.StepLR(o, 1),
    )
    run.train(tmp_path, 1)
    state = load_state(tmp_path / "training.pt")
    save_state(tmp_path / "training.pt", {**state, entry: change(state[entry])})
    made: list[Any] = []
    with pytest.raises(ValueError, match=r"^(resume|checkpoint_dir): .*training.pt "):
        run.train(tmp_path, 2, made)
    torch.manual_seed(0)
    for one, other in zip(made[0].state_dict().values(), network().state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert not made[1].state
    assert made[1].param_groups[0]["lr"] == 0.1


def test_checkpoints_of_before_these_comparisons_resume(tmp_path: Path) -> None:
    Run().train(tmp_path, 1)
    state = load_state(tmp_path / "training.pt")
    older = {name: value for name, value in state.items() if name not in ("identity", "progress", "probe")}
    save_state(tmp_path / "training.pt", older)
    resumed = Run().train(tmp_path, 3)
    assert all(torch.equal(a, b) for a, b in zip(resumed, Run().train(None, 3), strict=True))


# ------------------------------------------------------------------------------------------------- folders and kills


def test_two_trainings_do_not_share_a_folder(tmp_path: Path) -> None:
    found: list[Exception] = []

    class Meanwhile(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            if not found:
                thread = threading.Thread(target=other)
                thread.start()
                thread.join()
            return super().training_loss(x, y)

    def other() -> None:
        try:
            Run().train(tmp_path, 1)
        except FolderInUseError as error:
            found.append(error)

    Run(trainer=Meanwhile).train(tmp_path, 1)
    assert len(found) == 1
    assert str(found[0]).startswith(f"checkpoint_dir: {tmp_path} is in use by process {os.getpid()}")
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]


def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path: Path) -> None:
    class Never(StandardTrainer):
        def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
            raise AssertionError("a step was taken")

    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"^checkpoint_dir: got .*file "):
        Run(trainer=Never).train(tmp_path / "file" / "below", 1)
    (tmp_path / "run" / "training.pt").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"^checkpoint_dir: got .*training\.pt "):
        Run(trainer=Never).train(tmp_path / "run", 1)


KILLED = textwrap.dedent(
    """
    import os, signal, sys
    sys.path.insert(0, sys.argv[1])
    from pathlib import Path
    from training.engine.resumable import Run

    os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # between the write and the move
    Run().train(Path(sys.argv[2]), 1)
    """
)


def test_a_run_killed_as_it_wrote_its_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parents[2]), str(tmp_path)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    left = {path.name for path in tmp_path.iterdir()}
    assert any(name.endswith(".training.pt") for name in left)
    assert "training.pt" not in left
    resumed = Run().train(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]
    assert all(torch.equal(a, b) for a, b in zip(resumed, Run().train(None, 2), strict=True))

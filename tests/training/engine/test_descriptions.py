"""What objects and functions hold is part of a run, but not what moves while it trains."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, Dataset, Subset

from art_robust_plugins.training import BANG

from . import held
from .resumable import X_CHANGED, Run, X, Y, network

IMAGES, CHANGED, LABELS = torch.from_numpy(X), torch.from_numpy(X_CHANGED), torch.from_numpy(Y)


def lambdas(function: Any) -> Any:
    return lambda o: lr_scheduler.LambdaLR(o, function)


def milestones(values: Any) -> Any:
    return lambdas(lambda epoch: 0.1 ** sum(epoch >= each for each in values))


def data(x: Any = IMAGES, *, wrap: Any = None, rows: Any = None, **settings: Any) -> Any:
    whole: Dataset[Any] = held.Data({"x": x, "y": LABELS}, settings.pop("transform", None))
    loader = DataLoader(whole if rows is None else Subset(whole, rows), batch_size=10, **settings)
    return loader if wrap is None else wrap(loader)


def hook(factor: float) -> nn.Module:
    model = network()
    model.register_forward_hook(lambda module, inputs, outputs: outputs * factor if module.training else None)
    return model


DIFFERENT: dict[str, tuple[str, Any, Any]] = {
    "_p 1.*2": ("model", lambda: held.OfNumber(_p=1), lambda: held.OfNumber(_p=2)),
    "_p 1.0.*2.0": (
        "model",
        *(lambda value=value: held.OfNumber(_p=torch.tensor(value)) for value in (1.0, 2.0)),
    ),
    r"cfg \{'p': 0.1": ("model", lambda: held.OfMapping(cfg={"p": 0.1}), lambda: held.OfMapping(cfg={"p": 0.2})),
    "args.p 0.1.*0.2": ("model", *(lambda p=p: held.OfObject(args=SimpleNamespace(p=p)) for p in (0.1, 0.2))),
    r"ps \[0.1": ("model", lambda: held.OfList(ps=[0.1]), lambda: held.OfList(ps=[0.2])),
    "hook 0, variable factor 1.0.*2.0": ("model", lambda: hook(1.0), lambda: hook(2.0)),
    "ce.label_smoothing 0.1.*0.4": ("loss", held.Loss(0.1), held.Loss(0.4)),
    "ls 0.1.*0.4": ("loss", held.Renaming(0.1), held.Renaming(0.4)),
    r"variable values \[0.1\]": ("loss", held.close_over([0.1]), held.close_over([0.4])),
    "milestones.5 none": ("scheduler", *(lambda o, m=m: lr_scheduler.MultiStepLR(o, [m]) for m in (2, 5))),
    r"variable values \[1, 2\]": ("scheduler", milestones([1, 2]), milestones([5, 8])),
    r"variable values \{1: 2\}": ("scheduler", milestones({1: 2}), milestones({5: 2})),
    "self.factor 0.1.*0.5": ("scheduler", lambdas(held.Decay(0.1).at), lambdas(held.Decay(0.5).at)),
    r"keywords \{'factor': 0.1": ("scheduler", *(lambdas(partial(held.decay, factor=f)) for f in (0.1, 0.5))),
    "method.scale 1.0.*2.0": ("trainer", held.make_scaled(1.0), held.make_scaled(2.0)),
    r"instrument 0._held \{'kept': 1.0": ("instruments", [held.Noting(1.0)], [held.Noting(2.0)]),
    r"dataset.held\['x'\]": ("data", data(), data(CHANGED)),
    r"inner.dataset.held\['x'\]": ("data", data(wrap=held.Wrapped), data(CHANGED, wrap=held.Wrapped)),
    r"range\(0, 30\).*range\(10, 40\)": ("data", data(rows=range(30)), data(rows=range(10, 40))),
    "transform, keywords": ("data", data(transform=held.scaling(1.0)), data(transform=held.scaling(0.5))),
    "collate_fn": (
        "data",
        data(),
        data(collate_fn=lambda rows: [torch.stack(each) for each in zip(*rows, strict=True)]),
    ),
}


@pytest.mark.parametrize("difference", DIFFERENT)
def test_what_is_held_must_be_the_same(difference: str, tmp_path: Path) -> None:
    name, one, other = DIFFERENT[difference]
    Run(**{name: one}).train(tmp_path, 1)
    with pytest.raises(ValueError, match=rf"^resume: .*training\.pt .*{difference}"):
        Run(**{name: other}).train(tmp_path, 2)
    Run(**{name: one}).train(tmp_path, 2)


@pytest.mark.parametrize(
    ("name", "value", "loss"),
    [
        ("SMOOTHING", 0.4, held.of_global),
        ("SMOOTHING", 0.4, held.of_function),
        ("WEIGHTS", torch.tensor([1.0, 5, 1]), held.of_tensor),
        ("CHOICES", {"smoothing": 0.4, "epochs": 1}, held.of_mapping),
        ("GIVEN", SimpleNamespace(smoothing=0.4, epochs=1), held.of_namespace),
    ],
)
def test_variables_that_functions_name_must_be_the_same(
    name: str, value: Any, loss: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Run(loss=loss).train(tmp_path, 1)
    monkeypatch.setattr(held, name, value)
    with pytest.raises(ValueError, match=rf"^resume: .*global {name}"):
        Run(loss=loss).train(tmp_path, 2)


def test_variables_that_merely_share_a_name_may_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for loss in (held.of_mapping, held.of_namespace):
        folder = tmp_path / loss.__name__
        Run(loss=loss, trainer=held.Scaled).train(folder, 1)
        monkeypatch.setattr(held, "epochs", 2)
        monkeypatch.setitem(held.CHOICES, "epochs", 2)
        monkeypatch.setattr(held.GIVEN, "epochs", 2)
        Run(loss=loss, trainer=held.Scaled).train(folder, 2)


HONEST: dict[str, Callable[[], dict[str, Any]]] = {
    "counters": lambda: {"model": held.Net, "loss": held.Renaming(0.1), "trainer": held.Scaled},
    "global counter": lambda: {"loss": held.of_global},
    "unseeded objects": lambda: {"model": lambda: held.OfList(ps=[0.1, object()], extra=object())},
    "lists of weights": lambda: {"model": with_lists},
    "instruments": lambda: {"instruments": [held.Noting(1.0), BANG()], "model": lambda: hook(2.0)},
    "loader": lambda: {"data": data(wrap=held.Wrapped, transform=held.scaling(0.5), shuffle=True)},
    "workers": lambda: {"data": data(num_workers=1)},
    "averages": lambda: {"options": {"ema_decay": 0.5, "keep_best": True}},
    "one-cycle": lambda: {
        "scheduler": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=9),
        "options": {"scheduler_interval": "step"},
    },
    "cosine": lambda: {"scheduler": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2)},
    "plateau": lambda: {"scheduler": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0)},
    "milestones": lambda: {"scheduler": lambda o: lr_scheduler.MultiStepLR(o, [1, 2])},
    "lambdas": lambda: {"scheduler": lambdas(held.Decay(0.5).at)},
    "in a row": lambda: {
        "scheduler": lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o), lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch)], [1]
        )
    },
}


def with_lists() -> nn.Module:
    model = held.OfList(ps=[0.1])
    model.ps += [list(model.parameters()), model.last]
    return model


@pytest.mark.parametrize("case", HONEST)
def test_honest_resumes_go_on(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With objects made anew, as by another process, and with the same ones, as in a notebook."""
    same = HONEST[case]()
    for folder, first, then in ((tmp_path / "a", HONEST[case](), HONEST[case]()), (tmp_path / "b", same, same)):
        monkeypatch.setitem(held.COUNTED, "calls", 0)
        Run(**first).train(folder, 1)
        if first is not then:
            monkeypatch.setitem(held.COUNTED, "calls", 0)
        resumed = Run(**then).train(folder, 3)
        monkeypatch.setitem(held.COUNTED, "calls", 0)
        whole = Run(**HONEST[case]()).train(None, 3)
        assert all(torch.equal(a, b) for a, b in zip(resumed, whole, strict=True))

"""Runs that differ in what their objects and functions hold, for `test_descriptions`."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import Dataset

from art_robust_plugins import StandardTrainer
from art_robust_plugins.training import Instrument

SMOOTHING: Any = 0.1
WEIGHTS: Any = torch.ones(3)
CHOICES: Any = {"smoothing": 0.1, "epochs": 1}
GIVEN: Any = SimpleNamespace(smoothing=0.1, epochs=1)
epochs = 1
COUNTED = {"calls": 0}


class Net(nn.Module):
    """A network whose attributes act in training alone."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, 3)
        self.seen, self.recent = 0, None
        for name, value in held.items():
            setattr(self, name, value)

    def share(self) -> Any:
        return 0.1

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x.flatten(1))
        self.seen += 1
        self.recent = h.detach()
        if self.training:
            self.latest = h.detach().mean().item()  # an attribute that comes while it trains
            h = functional.dropout(h, float(self.share()), True)
        logits: Tensor = self.last(h)
        return logits


class OfNumber(Net):
    _p: Any

    def share(self) -> Any:
        return self._p / 10


class OfMapping(Net):
    cfg: Any

    def share(self) -> Any:
        return self.cfg["p"]


class OfObject(Net):
    args: Any

    def share(self) -> Any:
        return self.args.p


class OfList(Net):
    ps: Any

    def share(self) -> Any:
        return self.ps[0]


class Loss(nn.Module):
    def __init__(self, eps: float) -> None:
        super().__init__()
        self.ce = nn.CrossEntropyLoss(label_smoothing=eps)

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = self.ce(outputs, y)
        return loss


class Renaming(nn.Module):
    def __init__(self, smoothing: float) -> None:
        super().__init__()
        self.ls, self.calls = smoothing, 0

    def forward(self, outputs: Tensor, y: Tensor) -> Tensor:
        self.calls += 1
        return functional.cross_entropy(outputs, y, label_smoothing=self.ls)


def close_over(values: Any) -> Any:
    def loss(outputs: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, y, label_smoothing=values[0])

    return loss


def of_global(outputs: Tensor, y: Tensor) -> Tensor:
    COUNTED["calls"] += 1
    return functional.cross_entropy(outputs, y, label_smoothing=SMOOTHING)


def of_tensor(outputs: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, y, weight=WEIGHTS)


def of_mapping(outputs: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, y, label_smoothing=CHOICES["smoothing"])


def of_namespace(outputs: Tensor, y: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, y, label_smoothing=GIVEN.smoothing)


def of_function(outputs: Tensor, y: Tensor) -> Tensor:
    return of_global(outputs, y)


class Decay:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    def at(self, epoch: int) -> float:
        return self.factor**epoch


def decay(epoch: int, factor: float) -> float:
    return factor**epoch


class Scaled(StandardTrainer):
    """With an attribute that has the name of a global variable, and settings that are no arguments."""

    scale: Any = 1.0

    def training_loss(self, x: Tensor, y: Tensor) -> Tensor:
        self.epochs = 3
        self.steps = getattr(self, "steps", 0) + 1
        return super().training_loss(x, y) * self.scale


def make_scaled(scale: float) -> Any:
    def make(*arguments: Any, **settings: Any) -> Scaled:
        trainer = Scaled(*arguments, **settings)
        trainer.scale = scale
        return trainer

    return make


class Noting(Instrument):
    """Notes something through a setting that is no argument of a constructor."""

    def __init__(self, given: float) -> None:
        self._held = {"kept": given}
        self.steps = 0

    def __repr__(self) -> str:
        return "Noting()"

    def attached(self, network: nn.Module) -> Any:
        return nullcontext()

    def begin_step(self, y: Tensor) -> None:
        self.steps += self._held["kept"] > 0
        super().begin_step(y)


class Data(Dataset[Any]):
    def __init__(self, held: dict[str, Tensor], transform: Any = None) -> None:
        self.held, self.transform, self.drawn = held, transform, 0

    def __len__(self) -> int:
        return len(self.held["y"])

    def __getitem__(self, index: int) -> Any:
        self.drawn += 1
        x = self.held["x"][index]
        return (x if self.transform is None else self.transform(x)), self.held["y"][index]


class Wrapped:
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self) -> Any:
        return iter(self.inner)


def scale_by(x: Tensor, factor: float) -> Tensor:
    return x * factor


def scaling(factor: float) -> Any:
    return partial(scale_by, factor=factor)

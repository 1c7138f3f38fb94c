"""docs/bad-inputs.md: the sentences of its tables are those that are printed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from art.estimators.classification import PyTorchClassifier
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from art_robust_plugins import (
    Evaluator,
    LipschitzMarginTrainer,
    PGDTrainer,
    PyTorchLipschitzCertifier,
    StandardTrainer,
    ThreatModel,
    TrainingOptions,
    export_classifier,
    save_classifier,
    weight_maps,
)
from art_robust_plugins.evaluation import compare
from art_robust_plugins.training import BANG

PAGE = Path(__file__).parents[1] / "docs" / "bad-inputs.md"
ROWS = dict(re.findall(r"^\| (.*?) \| (?:UserWarning )?(`.*`) ?(?:\(.*\) )?\|$", PAGE.read_text(), re.MULTILINE))
X = np.random.default_rng(0).random((4, 1, 8, 8), dtype=np.float32)
Y = np.arange(4)
LAYERS = nn.Flatten(), nn.Linear(64, 4)
NORMALISED = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 4))
OTHER = nn.Parameter(torch.ones(1))
PAIRS = TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))


class Forward(nn.Module):
    """A linear network of four classes with a step of its own: images [N, 64] and the layer -> outputs."""

    def __init__(self, forward: Callable[[torch.Tensor, nn.Module], Any], classes: int = 4) -> None:
        super().__init__()
        self.layer, self.step = nn.Linear(64, classes), forward

    def forward(self, x: torch.Tensor) -> Any:
        return self.step(x.flatten(1), self.layer)


def wrap(network: nn.Module | None = None, loss: Any = None, optimizer: Any = None, **settings: Any) -> Any:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)) if network is None else network
    optimizer = torch.optim.SGD(network.parameters(), 0.1) if optimizer is None else optimizer(network)
    settings = {"clip_values": (0, 1), "device_type": "cpu", **settings}
    loss = nn.CrossEntropyLoss() if loss is None else loss
    return PyTorchClassifier(network, loss, (1, 8, 8), 4, optimizer, **settings)


def evaluate(x: Any = X, y: Any = Y, network: nn.Module | None = None, **settings: Any) -> None:
    arguments = {"attacks": "pgd-20", "verbose": False}
    arguments |= {name: settings.pop(name) for name in ("attacks",) if name in settings}
    Evaluator(wrap(network, **settings), ThreatModel("Linf", 0.1), **arguments).evaluate(x, y)


def certify(forward: Callable[[torch.Tensor, nn.Module], Any]) -> None:
    PyTorchLipschitzCertifier.from_classifier(wrap(Forward(forward))).certify(X)


def certify_layers(*layers: nn.Module) -> None:
    PyTorchLipschitzCertifier.from_classifier(wrap(nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, 4)))).certify(X)


def export(forward: Callable[[torch.Tensor, nn.Module], Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        export_classifier(wrap(Forward(forward)), Path(folder) / "n.pt", X, format="torchscript")


def fit(y: Any = Y, batch_size: int = 4, options: dict[str, Any] | None = None, **settings: Any) -> None:
    given = {name: settings.pop(name) for name in ("scheduler",) if name in settings}
    trainer = StandardTrainer(wrap(**settings), options=TrainingOptions(**(options or {})))
    trainer.fit(X, y, batch_size=batch_size, nb_epochs=1, verbose=False, **given)


CASES: dict[str, Callable[[], object]] = {
    "images outside `clip_values`": lambda: evaluate(255 * X),
    "NaN or infinity": lambda: evaluate(X * np.nan),
    "another number of channels": lambda: evaluate(np.repeat(X, 3, axis=1)),
    "labels out of range": lambda: evaluate(y=np.array([0, 1, 2, 4])),
    "fewer labels than images": lambda: evaluate(y=Y[:3]),
    "no images": lambda: evaluate(X[:0], Y[:0]),
    "an array without labels": lambda: evaluate(y=None),
    "an unknown attack": lambda: evaluate(attacks="standart"),
    "a radius in other units": lambda: Evaluator(wrap(), ThreatModel("Linf", 8)),
    "a radius or step in other units": lambda: PGDTrainer(wrap(), threat=ThreatModel("Linf", 0.1), step_size=2),
    "a radius that is no positive number": lambda: ThreatModel("Linf", -1),
    "an unknown norm": lambda: ThreatModel(True, 0.1),  # type: ignore[arg-type]
    "a `DataLoader` that shuffles": lambda: evaluate(DataLoader(PAIRS, 2, shuffle=True), None),
    "a `DataLoader` that drops samples": lambda: evaluate(
        DataLoader(TensorDataset(torch.zeros(20, 1, 8, 8), torch.zeros(20).long()), 6, drop_last=True), None
    ),
    "labels beside a `DataLoader`": lambda: evaluate(DataLoader(PAIRS, 2)),
    "integer, boolean or complex outputs": lambda: evaluate(network=Forward(lambda x, layer: layer(x).long())),
    "`clip_values=None`": lambda: evaluate(clip_values=None),
    "infinite `clip_values`": lambda: evaluate(clip_values=(-np.inf, np.inf)),
    "a lazy layer before its first input": lambda: PyTorchLipschitzCertifier.from_classifier(
        wrap(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), optimizer=lambda network: None)
    ).certify(X),
    "`F.threshold(x, 0.1, 0)`": lambda: certify(lambda x, layer: layer(functional.threshold(x, 0.1, 0))),
    "a product of two activations": lambda: certify(lambda x, layer: layer(x) * layer(x)),
    "`LipschitzMarginTrainer(c=36)`": lambda: LipschitzMarginTrainer(wrap(), c=36).fit(X, Y),
    "a bool for a number": lambda: BANG(beta=True),
    "a number that float32 does not hold": lambda: BANG(epsilon=1e300),
    "`BANG(layers=[])`": lambda: BANG(layers=[]),
    "`instruments` that are none": lambda: StandardTrainer(wrap(), instruments=3),  # type: ignore[arg-type]
    "an optimizer that needs a closure": lambda: fit(optimizer=lambda n: torch.optim.LBFGS(n.parameters())),
    "an optimizer over another network": lambda: fit(
        optimizer=lambda n: torch.optim.SGD([nn.Parameter(torch.ones(1))])
    ),
    '`CrossEntropyLoss(reduction="none")`': lambda: fit(loss=nn.CrossEntropyLoss(reduction="none")),
    "rows of y that are no probabilities": lambda: fit(np.full((4, 4), 0.2)),
    "soft labels with a loss that takes none": lambda: fit(np.full((4, 4), 0.25), loss=nn.MultiMarginLoss()),
    "`freeze_batch_norm` without batch normalisation": lambda: fit(options={"freeze_batch_norm": True}),
    "a scheduler's class": lambda: fit(scheduler=torch.optim.lr_scheduler.StepLR),
    "a function as scheduler": lambda: fit(scheduler=lambda: None),
    "no mapping of reports to compare": lambda: compare([3]),  # type: ignore[arg-type]
    "batches that are dicts": lambda: evaluate(iter([{"image": PAIRS.tensors[0], "label": PAIRS.tensors[1]}]), None),
    "a network that returns a tuple, dict, list or dataclass": lambda: evaluate(
        network=Forward(lambda x, layer: {"logits": layer(x)})
    ),
    "half precision, also under an autocast in forward": lambda: certify(lambda x, layer: layer(x).bfloat16()),
    "float64 weights that take no float32 input": lambda: evaluate(network=Forward(lambda x, layer: layer(x)).double()),
    "`clip_values` with NaN, or low not below high": lambda: evaluate(clip_values=(np.nan, 1)),
    "a normalisation with `eps` 0": lambda: certify_layers(nn.LayerNorm(64, eps=0.0)),
    "`nn.RMSNorm(n)` without `eps`": lambda: certify_layers(nn.RMSNorm(64)),
    "softmax or a norm along the batch": lambda: certify(lambda x, layer: layer(x.softmax(dim=0))),
    "an operation without a rule": lambda: certify(lambda x, layer: layer(x + torch.rand_like(x))),
    "an optimizer over frozen weights": lambda: fit(network=nn.Sequential(*LAYERS).requires_grad_(False)),
    "float64 weights": lambda: fit(network=nn.Sequential(*LAYERS).double()),
    "soft labels with `LipschitzMarginTrainer`": lambda: LipschitzMarginTrainer(wrap(), c=0.5).fit(
        X, np.full((4, 4), 0.25)
    ),
    "`freeze_batch_norm` of an unknown layer": lambda: fit(options={"freeze_batch_norm": ["x"]}, network=NORMALISED),
    "a batch of one sample before batch normalisation": lambda: fit(batch_size=3, network=NORMALISED),
    "a scheduler over another optimizer": lambda: fit(
        scheduler=torch.optim.lr_scheduler.StepLR(torch.optim.SGD([OTHER]), 1)
    ),
    "a standard deviation of 0, saved": lambda: save_classifier(wrap(preprocessing=(0.5, 0.0)), "none"),
    "no module": lambda: weight_maps(3),  # type: ignore[arg-type]
    "a TorchScript export of a network with a branch on its data": lambda: export(
        lambda x, layer: layer(x) if x.mean() < 0 else -layer(x)
    ),
    "`exp`, `pow`, `square`, `var`": lambda: certify(lambda x, layer: layer(x.exp())),
    "`sqrt`, `log`, `reciprocal`": lambda: certify(lambda x, layer: layer(x.sqrt())),
    "`F.hardshrink`, `round`, comparisons, `argmax`": lambda: certify(lambda x, layer: layer(x.round())),
    "`F.rrelu(x, training=True)`": lambda: certify(lambda x, layer: layer(functional.rrelu(x, training=True))),
    "a forward that computes something else while it is traced": lambda: certify(
        lambda x, layer: layer(x) if torch.compiler.is_compiling() else 100 * layer(x)
    ),
    "answers that depend on the other samples of the batch": lambda: certify(lambda x, layer: layer(x - x.mean(dim=0))),
    "an export under another ending": lambda: export_classifier(wrap(), "a.ts", X, format="torchscript"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_sentence_is_the_one_that_is_printed(case: str) -> None:
    (sentence,) = re.findall(r"`(.*)`", ROWS[case])[:1]
    number = r"[-+]?\d[\d.]*(?:e[-+]?\d+)?"
    parts = re.split(rf"(\.\.\.(?=[ ,)]|$)|{number})", sentence)
    pattern = "".join(
        ".*" if part == "..." else number if re.fullmatch(number, part) else re.escape(part) for part in parts
    )
    with pytest.raises((ValueError, TypeError), match=rf"^{pattern}$"):
        CASES[case]()

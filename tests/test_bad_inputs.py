"""docs/bad-inputs.md: the sentences of its tables are those that are printed."""

from __future__ import annotations

import ast
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


class Counting:
    """A step whose outputs grow with its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: torch.Tensor, layer: nn.Module) -> Any:
        self.calls += 1
        return self.calls * layer(x)


class LossOfEach(nn.Module):
    """A loss of one's own, [N]."""

    def forward(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return outputs.square().sum(dim=1)


def wrap(network: nn.Module | None = None, loss: Any = None, optimizer: Any = None, **settings: Any) -> Any:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)) if network is None else network
    optimizer = torch.optim.SGD(network.parameters(), 0.1) if optimizer is None else optimizer(network)
    settings = {"clip_values": (0, 1), "device_type": "cpu", **settings}
    loss = nn.CrossEntropyLoss() if loss is None else loss
    classes = settings.pop("nb_classes", 4)
    return PyTorchClassifier(network, loss, (1, 8, 8), classes, optimizer, **settings)


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


def fit_scheduled(make: Callable[[torch.optim.Optimizer], Any], **options: Any) -> None:
    estimator = wrap()
    trainer = StandardTrainer(estimator, options=TrainingOptions(**options))
    trainer.fit(X, Y, batch_size=1, nb_epochs=1, scheduler=make(estimator.optimizer), verbose=False)


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
    "one output with `CrossEntropyLoss`": lambda: evaluate(
        y=Y % 2, network=Forward(lambda x, layer: layer(x)[:, :1]), nb_classes=2
    ),
    "`clip_values` of another shape": lambda: evaluate(clip_values=(np.zeros(3), np.ones(3))),
    "one output": lambda: PyTorchLipschitzCertifier.from_classifier(
        wrap(Forward(lambda x, layer: layer(x)[:, :1]), nb_classes=2)
    ).certify(X),
    "a network that counts its calls": lambda: certify(Counting()),
    "other outputs in float64 than in float32": lambda: certify(
        lambda x, layer: layer(x) * (2.0 if x.dtype == torch.float64 else 1.0)
    ),
    "a radius beyond every image": lambda: PyTorchLipschitzCertifier.from_classifier(wrap()).certified_accuracy(
        X, Y, 36
    ),
    "writing to single samples of a batch": lambda: certify(
        lambda x, layer: layer(torch.index_put(x, (torch.tensor([0]),), torch.zeros(64, dtype=x.dtype)))
    ),
    "a loss that is no mean over samples, with `accumulation_steps`": lambda: fit(
        loss=nn.CrossEntropyLoss(reduction="sum"), options={"accumulation_steps": 2}
    ),
    "a batch whose labels are all ignored": lambda: fit(y=np.full(4, 3), loss=nn.CrossEntropyLoss(ignore_index=3)),
    "a loss class that gives a number for each sample": lambda: fit(loss=LossOfEach()),
    "`OneCycleLR` with too few steps": lambda: fit_scheduled(
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=2), scheduler_interval="step"
    ),
    '`ReduceLROnPlateau(mode="max")` without validation data': lambda: fit_scheduled(
        lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, "max")
    ),
    "an export under the ending of another format": lambda: export_classifier(
        wrap(), "a.onnx", X, format="torchscript"
    ),
    "an export under another ending": lambda: export_classifier(wrap(), "a.ts", X, format="torchscript"),
}


def compile_sentence(said: str) -> re.Pattern[str]:
    """What a cell of the tables says, for any numbers, and anything in place of three dots."""
    (sentence,) = re.findall(r"`(.*)`", said)[:1]
    number = r"[-+]?\d[\d.]*(?:e[-+]?\d+)?(?:\+c[\w.]+)?"  # with the build of torch, such as +cpu
    parts = re.split(rf"(\.\.\.(?=[ ,;)]|$)|SHA-256 [0-9a-f]+|{number})", sentence)
    kinds = {"...": ".*", "SHA": "SHA-256 [0-9a-f]+"}
    pattern = "".join(
        kinds.get(part[:3], number if re.fullmatch(number, part) else re.escape(part).replace(r"\ ", r"\s+"))
        for part in parts
    )
    return re.compile(rf"^{pattern}$", re.DOTALL)


@pytest.mark.parametrize("case", CASES)
def test_the_sentence_is_the_one_that_is_printed(case: str) -> None:
    with pytest.raises((ValueError, TypeError), match=compile_sentence(ROWS[case])):
        CASES[case]()


HELD_ELSEWHERE = {
    "an estimator whose `predict` computes more than its network": (
        "evaluation/test_same_function.py",
        "test_a_predict_that_does_more_is_refused",
    ),
    "`PyTorchRandomizedSmoothing` and its subclasses": (
        "evaluation/test_no_decision.py",
        "test_smoothed_classifiers_are_refused",
    ),
    "`transfer` from a network without gradients": (
        "evaluation/test_network_state.py",
        "test_a_quantised_network_meets_square_alone",
    ),
    "an estimator with a `predict` of its own": ("test_snapshot.py", "test_a_trainer_says_that_predict_does_more"),
    "labels from 1": ("training/engine/test_chance.py", "test_a_class_without_images_is_told_of_once"),
    "a training of 50 steps or more that ends no better than a constant answer": (
        "training/engine/test_chance.py",
        "test_a_training_that_ends_at_chance_is_told_of",
    ),
}
"""Rows whose sentence is asserted where its subject is tested: the file, and the test in it."""


def test_every_sentence_of_the_page_is_held_by_a_test() -> None:
    own = {name for file in ("test_bad_files.py", "test_natural_mistakes.py") for name in _list_cases(file)}
    assert set(ROWS) == {*CASES, *own, *HELD_ELSEWHERE}
    for row, (file, test) in HELD_ELSEWHERE.items():
        source = (Path(__file__).parent / file).read_text()
        body = source.partition(f"def {test}(")[2].partition("\ndef ")[0]
        (begin,) = re.findall(r"`(training ended at chance|\w+:)", ROWS[row])
        assert begin in body, row


def _list_cases(file: str) -> list[str]:
    """The keys of the table CASES in a test file beside this one."""
    tree = ast.parse((Path(__file__).parent / file).read_text())
    tables = [
        node.value
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "CASES"
    ]
    (table,) = tables
    assert isinstance(table, ast.Dict)
    return [key.value for key in table.keys if isinstance(key, ast.Constant)]

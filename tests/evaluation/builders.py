"""What the tests of the evaluation build: small networks on scikit-learn's digits, and attacks of one's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from art.estimators.classification import PyTorchClassifier
from builders import load_digits, make_classifier
from torch import Tensor, nn
from torch.nn import functional

from art_robust_plugins.bridge import InputRange
from art_robust_plugins.evaluation import Attack, AttackResult, EvaluationReport, Setting
from art_robust_plugins.evaluation.diagnostics import Findings, ShortAttacks
from art_robust_plugins.evaluation.progress import CleanFindings


def train_network(classes: int = 10, steps: int = 150) -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, classes),
    )
    x, y = (torch.from_numpy(values) for values in load_digits(classes))
    optimizer = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(steps):
        batch = torch.randint(0, len(x) // 2, (64,))
        optimizer.zero_grad()
        functional.cross_entropy(network(x[batch]), y[batch]).backward()
        optimizer.step()
    return network


def wrap(network: nn.Module, classes: int = 10, **arguments: object) -> PyTorchClassifier:
    """A classifier without an optimizer: it is only evaluated."""
    return make_classifier(network, nb_classes=classes, **arguments)


class Small(nn.Module):
    """Has memory for five images."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.largest = 0

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > 5:
            raise torch.OutOfMemoryError("too many")
        self.largest = max(self.largest, len(x))
        return self.network(x)


def custom(perturb: Callable[[torch.Tensor, torch.Tensor, Setting], torch.Tensor], **fields: object) -> Attack:
    """An attack of one's own."""
    fields = {"name": "custom", "summary": "a test", **fields}
    return Attack(prepare=lambda setting: (lambda x, y: perturb(x, y, setting), {}), **fields)


def strong(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
    """Steps on logit differences from several starts: stronger than the short attack of the diagnostics."""

    def margin(images: torch.Tensor) -> torch.Tensor:
        logits = setting.model(images)
        others = logits.scatter(1, y[:, None], -torch.inf).amax(dim=1)
        return (others - logits.gather(1, y[:, None])[:, 0]).sum()

    best, threat = x.clone(), setting.threat
    for _ in range(4):
        start = threat.random_start(x, 0.0, 1.0)
        found = threat.ascend(margin, x, start, steps=40, step_size=threat.eps / 8, low=0.0, high=1.0)
        with torch.no_grad():
            wrong = setting.model(found).argmax(dim=1) != y
        best[wrong] = found[wrong]
    return best


def step(x: torch.Tensor, y: torch.Tensor, setting: Setting) -> torch.Tensor:
    """One gradient step, in the ball."""
    inputs = x.clone().requires_grad_()
    functional.cross_entropy(setting.model(inputs), y, reduction="sum").backward()
    return setting.threat.project(x + setting.threat.steepest_ascent(inputs.grad, setting.threat.eps), x, 0.0, 1.0)


def list_flags(report: EvaluationReport) -> list[str]:
    """The names of a report's flags."""
    return [flag.name for flag in report.flags]


def healthy_findings(**changed: object) -> Findings:
    """What an evaluation of ten points knows whose network shows no sign, with some of it ``changed``."""
    clean = CleanFindings(
        clean=torch.zeros(10, dtype=torch.long),
        outputs=torch.randn(10, 10, generator=torch.Generator().manual_seed(0)),
        difference=0.0,
        passes=1,
        seeded_difference=0.0,
        memory=0.0,
        batch_difference=0.0,
        probabilities=False,
        nan=0,
        infinite=0,
        undecided=0,
        tied=0,
        gradients=False,
        moved=[],
    )
    short = ShortAttacks(
        obstacle=None,
        norm="Linf",
        standard=True,
        points=10,
        correct=10,
        zero_gradients=0,
        random_gradients=0,
        left_after_one=0,
        left_after_many=0,
        beaten=0,
        curve=[(0.0, 1.0), (1.0, 0.0)],
        cost={},
    )
    healthy = Findings(
        points=10,
        clean_accuracy=1.0,
        clean=clean,
        progress={},
        results=[AttackResult("healthy", "", 0.5, np.arange(10) < 5, 0.0, 0, 0, True, False, {})],
        short_attacks=short,
        input_range=InputRange(0.0, 1.0),
        straight_through=[],
        loss=nn.CrossEntropyLoss(),
        single_output=False,
        certificate=None,
    )
    return replace(healthy, **changed)

"""Networks with something around them, and their evaluation by one gradient step."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from art.estimators.classification import PyTorchClassifier
from builders import Data
from torch import Tensor, nn

from art_robust_plugins import ThreatModel
from art_robust_plugins.evaluation import EvaluationReport, Evaluator

from .builders import custom, step

Forward = Callable[["Around", Tensor], Tensor]
SETTINGS: dict[str, Any] = {"input_shape": (1, 8, 8), "nb_classes": 10, "clip_values": (0.0, 1.0)}


class Around(nn.Module):
    """A copy of the trained network with something around it."""

    def __init__(self, network: nn.Module, around: Forward) -> None:
        super().__init__()
        self.network, self.around = copy.deepcopy(network), around

    def forward(self, x: Tensor) -> Tensor:
        return self.around(self, x)


def evaluate(classifier: PyTorchClassifier, data: Data, **arguments: Any) -> EvaluationReport:
    arguments = {"attacks": custom(step), "verbose": False, **arguments}
    return Evaluator(classifier, ThreatModel("Linf", 0.1), **arguments).evaluate(*data)


def read_flags(report: EvaluationReport) -> dict[str, str]:
    """The severity of each flag of a report, by its name."""
    return {flag.name: flag.severity for flag in report.flags}


def move_a_bias(self: Around, x: Tensor) -> Tensor:
    with torch.no_grad():
        self.network[0].bias.mul_(0.9).add_(0.01)
    return self.network(x)

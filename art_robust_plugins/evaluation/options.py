"""The inputs of an evaluation: the settings of an `Evaluator`, and the samples. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from ..threat import ThreatModel
from .libraries import Attack, Backend


class Samples(NamedTuple):
    """Samples [N, *input_shape] in the estimator's range, and their labels [N], on the CPU."""

    x: Tensor
    y: Tensor


@dataclass(frozen=True)
class EvaluationOptions:
    """The settings of one evaluation; see `Evaluator`."""

    estimator: PyTorchClassifier
    threat: ThreatModel
    attacks: list[Attack]
    backend: Backend
    batch_size: int
    physical_batch_size: int | None
    seed: int
    state_dir: Path | None
    skip_certified: bool
    verbose: bool

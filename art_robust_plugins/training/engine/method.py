"""The interface that the loop needs of a trainer; `RobustTrainer` implements it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from art.defences.preprocessor.preprocessor import PreprocessorPyTorch
from art.estimators.classification import PyTorchClassifier
from torch import Tensor

from ...bridge import EstimatorModule
from ...threat import Bound, ThreatModel
from ..instruments import Instrument
from ..options import TrainingOptions
from ..processes import Processes, Share
from .samples import Samples


class TrainingMethod(Protocol):
    """A method with its classifier, as the loop drives it; `RobustTrainer` documents the members."""

    classifier: PyTorchClassifier
    threat: ThreatModel | None
    instruments: tuple[Instrument, ...]
    options: TrainingOptions
    history: list[dict[str, float]]
    epochs_done: float
    share: Share | None
    samples: Samples | None
    processes: Processes | None
    input_range: tuple[Bound | None, Bound | None]
    training_defences: list[PreprocessorPyTorch]
    estimator_module: EstimatorModule
    forward_pass: Callable[[Tensor], Tensor]

    @property
    def parameters(self) -> dict[str, Any]: ...
    def training_loss(self, x: Tensor, y: Tensor) -> Tensor: ...
    def check_radii(self, x: Tensor | None = None) -> None: ...
    def begin_run(self, samples: int | None) -> None: ...
    def enter_training_mode(self) -> None: ...
    def end_epoch(self, record: dict[str, float]) -> None: ...
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...

"""Evaluation plans: how a trained network is evaluated, by names, as on the command line or in a recipe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ..choices import BATCH_SIZE, Backend

# The command line reads the settings without importing torch or ART.
if TYPE_CHECKING:
    from ..data import Dataset
    from ..threat import ThreatModel

__all__ = ["BATCH_SIZE", "EvaluationPlan"]


@dataclass(frozen=True)
class EvaluationPlan:
    """A description, by names, of an evaluation of a network: by ``art-robust evaluate`` or the row of a recipe.

    Args:
        threats: several have one norm, and are evaluated as a sweep.
        attacks: names of attacks and suites.
        transfers: folders of other runs, whose networks' gradients are followed as well.
        points: the number of test images, the first ones.
        seed: makes the evaluation repeatable.
        batch_size: points that an attack gets at once; it fixes the randomness.
        physical_batch_size: the most points in a pass; None for what the device takes at once.
        backend: whose AutoAttack runs.
        certify: whether reports hold certified radii; ``"if possible"`` leaves out networks without a bound.

    Raises:
        ValueError: runs of one name among ``transfers``.
    """

    threats: Sequence[ThreatModel]
    attacks: Sequence[str]
    transfers: Sequence[Path] = ()
    points: int = 1000
    seed: int = 0
    batch_size: int = BATCH_SIZE
    physical_batch_size: int | None = None
    backend: Backend = "native"
    certify: Literal["always", "if possible", "never"] = "never"

    def __post_init__(self) -> None:
        if len(self.sources()) < len(self.transfers):
            raise ValueError(f"transfers: got {', '.join(map(str, self.transfers))}, expected runs of different names.")

    def sources(self) -> dict[str, Path]:
        """The runs whose gradients are followed, by their names."""
        return {path.resolve().name: path for path in self.transfers}

    def name_folder(self, data: Dataset, trained_on: str | None) -> str:
        """The folder name of this evaluation; different evaluations of a run have different names.

        Args:
            data: the data set whose test images are attacked.
            trained_on: the data of the training, if known: reports on others say which.
        """
        from ..evaluation.libraries import TRANSFER, resolve_alias

        radii = [threat.radius_text for threat in self.threats[1:]]
        attacks = [*map(resolve_alias, self.attacks), *(f"{TRANSFER}{source}" for source in self.sources())]
        parts = [str(self.threats[0]), *radii, *attacks, str(min(self.points, len(data.x_test)))]
        if trained_on is not None and Path(data.name).name != Path(trained_on).name:
            parts.append(Path(data.name).stem)
        parts += [f"seed{self.seed}"] if self.seed else []
        parts += [f"batch{self.batch_size}"] if self.batch_size != BATCH_SIZE else []
        parts += [self.backend] if self.backend != "native" else []
        return "-".join(parts).replace("/", "_").replace(" ", "-")

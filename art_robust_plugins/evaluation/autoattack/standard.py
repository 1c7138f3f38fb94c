"""AutoAttack's versions (Croce and Hein, ICML 2020, arXiv 2003.01690): which stages, with which parameters.

Each stage acts on the points that the stages before it left, always from the clean image, in logical batches of these
points. With the same seed and the same logical batch size every point's verdict is that of the authors' code.

    standard   apgd-ce, apgd-t, fab-t, square
    plus       apgd-ce, apgd-dlr, fab, square, apgd-t, fab-t, with 5 restarts where there are any
    rand       apgd-ce, apgd-dlr, with 20 gradients averaged in each iteration, for randomised networks
    custom     any stages, with 5 restarts where there are any
    fast       apgd-ce, apgd-t, on a GPU searched in bfloat16: NOT the standard evaluation, and ours

Two differences, both where the reference fails: with fewer than ten classes the targets are the other classes there
are, and a stage whose loss needs more classes (targeted DLR 4, DLR 3) is left out and named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ...bridge import device_of
from ...checks import check_count
from ...choices import BATCH_SIZE
from ...threat import Norm, ThreatModel, check_radius
from .apgd import APGD
from .batches import BatchedPasses, choose_layout, find_fitting_size, find_misclassified
from .fab import FAB
from .square import Square

Stage = Literal["apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square"]
Version = Literal["standard", "plus", "rand", "custom", "fast"]

STAGES: dict[Version, tuple[Stage, ...]] = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
    "custom": (),
    "fast": ("apgd-ce", "apgd-t"),
}
_CLASSES = {"apgd-t": (4, "the targeted DLR loss"), "apgd-dlr": (3, "the DLR loss")}


def find_obstacle(stage: Stage, classes: int) -> str | None:
    """The reason why a stage does not exist for this number of classes, as a clause; None if it exists."""
    needed, what = _CLASSES.get(stage, (2, ""))
    return f"{what} needs {needed} classes, the network has {classes}" if classes < needed else None


def stage_attack(
    stage: Stage,
    version: Version,
    model: nn.Module,
    threat: ThreatModel,
    *,
    classes: int,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
    physical_batch_size: int = BATCH_SIZE,
) -> APGD | FAB | Square:
    """Build a stage of this version of AutoAttack.

    Args:
        stage: its name.
        version: the version whose parameters it has.
        model: images in [0, 1] -> logits [N, classes].
        threat: in units of [0, 1].
        classes: the number of classes.
        seed: of each logical batch.
        batch_size: of a logical batch.
        physical_batch_size: the most images in a pass.
    """
    common: dict[str, Any] = {"seed": seed, "batch_size": batch_size, "physical_batch_size": physical_batch_size}
    if stage == "square":
        return Square(model, threat, **common)
    given = _parameters(stage, version, threat.norm, classes)
    if stage in ("fab", "fab-t"):
        return FAB(model, threat, **given, **common)
    if version == "fast" and device_of(model).type == "cuda":
        given["precision"] = torch.bfloat16
    return APGD(model, threat, **given, **common)


def _parameters(stage: Stage, version: Version, norm: Norm, classes: int) -> dict[str, Any]:
    several = 5 if version in ("plus", "custom") else 1
    if stage == "fab":
        return {"targets": None, "restarts": several}
    if stage == "fab-t":
        return {"targets": min(9, classes - 1)}
    larger = norm == "L1" and version in ("standard", "fast")
    if stage == "apgd-t":
        return {"loss": "dlr-targeted", "targets": min(5 if larger else 9, classes - 1), "larger_radii": larger}
    return {
        "loss": "ce" if stage == "apgd-ce" else "dlr",
        "restarts": 5 if larger else several,
        "larger_radii": larger,
        "samples": 20 if version == "rand" else 1,
    }


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of `AutoAttack`.

    Attributes:
        adversarial: like x: a misclassified image of each point that was broken, else its own image.
        robust: the points that were left, bool [N].
        left: by stage, the points that it and the stages before it left, bool [N].
        not_run: the stages that do not exist for this network, with the reason.
    """

    adversarial: Tensor
    robust: Tensor
    left: dict[str, Tensor]
    not_run: list[str]


class AutoAttack:
    """AutoAttack on a torch module, without ART. The `Evaluator` runs the same stages, but judges candidates itself.

    Args:
        model: images in [0, 1] -> logits, in evaluation mode; it is not changed, and its parameters get no gradients.
        threat: in units of [0, 1].
        version: see above.
        stages: those of the version "custom".
        seed: of each logical batch.
        batch_size: of a logical batch; the verdicts depend on it.
        physical_batch_size: the most images in a pass; None: what a GPU's free memory holds, elsewhere ``batch_size``,
            or fewer of large images.

    Raises:
        ValueError: an unknown version or stage, stages for another version than "custom", a size that is not a positive
            whole number; in `run`, data that do not fit, or a ball that holds every image.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).eval()
        >>> attack = AutoAttack(network, ThreatModel("Linf", 0.1), version="custom", stages=["apgd-t"])
        >>> attack.run(torch.rand(5, 3, 2, 2), torch.zeros(5, dtype=torch.long)).robust.shape
        torch.Size([5])
    """

    def __init__(
        self,
        model: nn.Module,
        threat: ThreatModel,
        *,
        version: Version = "standard",
        stages: Sequence[Stage] = (),
        seed: int = 0,
        batch_size: int = BATCH_SIZE,
        physical_batch_size: int | None = None,
    ) -> None:
        if version not in STAGES:
            raise ValueError(f"version: got {version!r}, expected one of {', '.join(map(repr, STAGES))}.")
        unknown = [stage for stage in stages if stage not in get_args(Stage)]
        if unknown:
            raise ValueError(f"stages: got {unknown[0]!r}, expected some of {', '.join(map(repr, get_args(Stage)))}.")
        if (version == "custom") != bool(stages):
            raise ValueError(f"stages: got {list(stages)} for the version {version!r}, expected them for 'custom'.")
        self.model, self.threat, self.version = model, threat, version
        self.stages: tuple[Stage, ...] = tuple(stages) or STAGES[version]
        self.seed, self.batch_size = seed, check_count("batch_size", batch_size)
        self.physical_batch_size = (
            None if physical_batch_size is None else check_count("physical_batch_size", physical_batch_size)
        )

    def run(self, x: Tensor, y: Tensor) -> Outcome:
        """Attack images x [N, ...], float32 in [0, 1], with labels y [N], whole numbers."""
        _check_data(x, y)
        check_radius(self.threat, 0.0, 1.0, x[0].numel())
        device = device_of(self.model)
        # A caller's autocast would round the verdicts.
        with torch.autocast(device.type, enabled=False):
            return self._run(x, y, device)

    def _run(self, x: Tensor, y: Tensor, device: torch.device) -> Outcome:
        size = self.physical_batch_size or find_fitting_size(self.model, x[:1].to(device), self.batch_size)
        model = choose_layout(self.model, x[:1].to(device))
        passes = BatchedPasses(model, size)
        robust, adversarial = torch.ones(len(x), dtype=torch.bool, device="cpu"), x.detach().clone()
        for points in torch.split(torch.arange(len(x), device="cpu"), size):
            logits = passes.logits(x[points].to(device))
            robust[points] = ~find_misclassified(logits, y[points].to(device)).cpu()
        if not 0 <= int(y.min()) <= int(y.max()) < logits.shape[1]:
            raise ValueError(f"y: got labels from {y.min()} to {y.max()}, expected 0 to {logits.shape[1] - 1}.")
        left: dict[str, Tensor] = {}
        not_run: list[str] = []
        for stage in self.stages:
            reason = find_obstacle(stage, logits.shape[1])
            if reason is not None:
                not_run.append(f"{stage}: {reason}.")
                continue
            attack = stage_attack(
                stage,
                self.version,
                model,
                self.threat,
                classes=logits.shape[1],
                seed=self.seed,
                batch_size=self.batch_size,
                physical_batch_size=size,
            )
            remaining = robust.nonzero().flatten()
            for points in torch.split(remaining, compute_joint_size(self.batch_size, size)) if len(remaining) else ():
                labels = y[points].to(device)
                found = attack(x[points].to(device), labels)
                broken = find_misclassified(passes.logits(found), labels).cpu()
                adversarial[points[broken]] = found.to(x.device)[broken]
                robust[points[broken]] = False
            left[stage] = robust.clone()
        return Outcome(adversarial, robust, left, not_run)


def _check_data(x: Tensor, y: Tensor) -> None:
    if not isinstance(x, Tensor) or x.dtype != torch.float32 or x.dim() < 2 or not len(x):
        got = f"{x.dtype} {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x: got {got}, expected images [N, ...] in float32.")
    if not bool((x >= 0).all() & (x <= 1).all()):
        raise ValueError(f"x: got values in [{x.min():g}, {x.max():g}], expected [0, 1].")
    if not isinstance(y, Tensor) or y.dtype.is_floating_point or y.dtype.is_complex or y.shape != x.shape[:1]:
        got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y: got {got}, expected {len(x)} class indices.")


def compute_joint_size(batch_size: int, physical_batch_size: int) -> int:
    """The number of points that an attack gets at once: whole logical batches that fit into a pass, at least one."""
    return batch_size * max(1, physical_batch_size // batch_size)

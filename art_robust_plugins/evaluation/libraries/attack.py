"""An attack as the evaluation sees it: its name, its constraint, and its preparation for a network.

To add your own, make an `Attack` and pass it to the `Evaluator` among the names. To add a library of them, copy
``noise.py`` and put its suites into ``registry.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...choices import Backend
from ...threat import ThreatModel
from ..results import Constraint

Perturb = Callable[[Tensor, Tensor], Tensor]
"""Images x [N, C, H, W] (or [N, F]) in [0, 1] and labels y [N] int64 -> candidates like x."""

Prepare = Callable[["Setting"], tuple[Perturb, dict[str, Any]]]
"""A setting -> the function that attacks one batch, and the attack's parameters for the report."""

TRANSFER = "transfer-"
"""The prefix of the names of transfer attacks."""


@dataclass(frozen=True)
class Setting:
    """The network, threat and batch sizes for which an attack is prepared.

    Attributes:
        model: images in [0, 1] -> logits; its forward and backward passes are counted.
        threat: the threat model in units of [0, 1].
        input_shape: one image as ``model`` takes it, (C, H, W) or (F,).
        classes: the number of classes.
        seed: the seed of every call of an attack.
        device: where the network is.
        backend: whose AutoAttack runs.
        batch_size: of a logical batch: what an attack's random numbers are drawn for.
        physical_batch_size: the most images in a pass.
        channels_last: AutoAttack's own backend hands ``model`` its images in this layout, for speed.
    """

    model: nn.Module
    threat: ThreatModel
    input_shape: tuple[int, ...]
    classes: int
    seed: int
    device: torch.device
    backend: Backend = "native"
    batch_size: int = 250
    physical_batch_size: int = 250
    channels_last: bool = False


class NotApplicable(Exception):  # noqa: N818 - not an error: the report says what was left out, and why
    """An attack that does not exist for this threat or this network; the text is the reason."""


@dataclass(frozen=True)
class Attack:
    """An attack by name.

    Attributes:
        name: the name in the report.
        summary: what it does, in a few words.
        prepare: gets the `Setting`, returns the function that attacks one batch and the parameters for the report. It
            raises `NotApplicable` with the reason where there is no such attack, and ``ValueError`` for a network that
            it cannot take. The random generators of Python, NumPy and torch are seeded before every batch.
        constraint: what the candidates are bound to, see `Constraint`.
        cumulative: a stage: it acts on the points that the stages before it left, those of its own suite (or, for
            attacks of one's own, of these), always from the clean image. Otherwise the attack acts on all points that
            are classified correctly.
        package: the library that it comes from: "autoattack" (this package's own or the reference, as the backend
            says), "torchattacks", or None.
        gradients: whether it follows the network's gradients: such an attack is left out, and the report says so,
            where no gradient of the logits reaches the input.

    Example:
        >>> def prepare(setting):
        ...     return (lambda x, y: x + setting.threat.eps), {}
        >>> Attack("brighter", "every pixel brighter by eps", prepare).constraint
        'ball'
    """

    name: str
    summary: str
    prepare: Prepare
    constraint: Constraint = "ball"
    cumulative: bool = False
    package: str | None = None
    gradients: bool = True

    @property
    def bounded(self) -> bool:
        """Whether its candidates are constrained to the threat's ball."""
        return self.constraint == "ball"

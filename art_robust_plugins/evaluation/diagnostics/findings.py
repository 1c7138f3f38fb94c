"""The findings of a finished evaluation, from which the tests raise flags. Data only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...bridge import InputRange
from ..flags import Flag
from ..progress import AttackProgress, CleanFindings
from ..results import AttackResult
from .short_attacks import ShortAttacks

# Attacks that are compared may differ by this many points by chance.
CHANCE = 2


@dataclass(frozen=True)
class Findings:
    """The findings of a finished evaluation.

    Attributes:
        points: how many points were evaluated.
        clean_accuracy: the share of them that are classified correctly.
        clean: what the clean passes found.
        progress: what each attack did, by its name.
        results: the attacks' results.
        short_attacks: what the short attacks on the first points found.
        input_range: the range of the estimator's inputs.
        straight_through: the defences whose gradient is an estimate.
        loss: the estimator's loss.
        single_output: whether a binary network has one output, of which ``clean.outputs`` [:, 1] is made.
        certificate: what the certified radii say; None for an estimator without any.
    """

    points: int
    clean_accuracy: float
    clean: CleanFindings
    progress: Mapping[str, AttackProgress]
    results: Sequence[AttackResult]
    short_attacks: ShortAttacks
    input_range: InputRange
    straight_through: Sequence[str]
    loss: object
    single_output: bool
    certificate: Certificate | None


@dataclass(frozen=True)
class Certificate:
    """Certified radii and what attacks found.

    Attributes:
        radii: of the points [N], -1 where the certified class is not the label.
        computed: likewise, with the rounding of the network as it computes.
        exact: the points whose attacked image is misclassified in float64 too, bool [N]; where ``radii`` reach eps.
        attacked: the points that were correct and that an attack broke, bool [N].
        eps: the radius of the ball in which the attacks' images count, with its tolerance.
    """

    radii: NDArray[Any]
    computed: NDArray[Any]
    exact: NDArray[np.bool_]
    attacked: NDArray[np.bool_]
    eps: float

    @property
    def refuted(self) -> NDArray[np.bool_]:
        """The points that were broken within their certified radius, bool [N]."""
        refuted: NDArray[np.bool_] = self.attacked & (self.radii >= self.eps)
        return refuted

    @property
    def rounded(self) -> NDArray[np.bool_]:
        """Those of them that float64 classifies correctly, and whose radius the network's rounding makes smaller."""
        rounded: NDArray[np.bool_] = self.refuted & ~self.exact & (self.computed < self.eps)
        return rounded


FlagTest = Callable[[Findings], Iterable[Flag]]
"""A test of the findings, which yields a flag if they show its sign."""


def exceeds_chance(count: int, points: int, share: float) -> bool:
    """Whether a difference of ``count`` among ``points`` is more than chance, and more than ``share``."""
    return count > CHANCE and count > share * points


def list_some(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, and the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more

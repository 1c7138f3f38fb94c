"""Certified radii in an evaluation, and the points that they spare the attacks."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..lipschitz import PyTorchLipschitzCertifier
from .estimator_passes import EstimatorPasses
from .options import EvaluationOptions, Samples

WITNESSES = 20
"""The largest number of points that are attacked although they could be spared: witnesses of the certificate."""


@dataclass(frozen=True)
class CertifiedRadii:
    """The certificate of an estimator for the points of an evaluation.

    Attributes:
        radii: the proven radius of each point [N], -1 where the certified class is not the label.
        computed: the radius with the rounding of the network as it computes, likewise.
        reach: the radius within which an attack's images count, with their rounding.
        constant: the largest Lipschitz constant of a difference of logits (L2).
        seconds: that the certificate took.
    """

    radii: NDArray[np.float64]
    computed: NDArray[np.float64]
    reach: float
    constant: float
    seconds: float

    def describe(self, spared: Tensor) -> dict[str, Any]:
        """The description for the report, if the attacks left out the points ``spared``, bool [N]."""
        left_out = spared.numpy()
        return {
            "method": "Lipschitz bound, proven",
            "largest constant of a difference of logits (L2)": self.constant,
            "points not attacked": int(left_out.sum()),
            "certified points attacked": int(((self.radii >= self.reach) & ~left_out).sum()),
            "seconds": self.seconds,
        }


def certify_points(
    options: EvaluationOptions, samples: Samples, passes: EstimatorPasses, reach: float
) -> CertifiedRadii | None:
    """Certify the points, if the estimator can."""
    estimator = options.estimator
    if not isinstance(estimator, PyTorchLipschitzCertifier):
        return None
    start = time.perf_counter()
    prediction, *both = passes.batched.run_whole(
        lambda size: estimator.certify_as_computed(samples.x, size, norm=options.threat.norm)
    )
    radii, computed = (np.where(prediction == samples.y.numpy(), radius, -1.0) for radius in both)
    constant = float(estimator.lipschitz_constants().max())
    return CertifiedRadii(radii, computed, reach, constant, time.perf_counter() - start)


def _spares_points(options: EvaluationOptions) -> bool:
    """Whether certified points are spared the attacks.

    Only our own AutoAttack can leave points out; other attacks draw random numbers for a whole batch.
    """
    ours = options.backend == "native" and any(attack.package == "autoattack" for attack in options.attacks)
    return ours and options.skip_certified


def choose_spared(options: EvaluationOptions, certified: CertifiedRadii | None) -> Tensor | None:
    """The points that the attacks leave out, bool [N]; None where they leave out none, whatever is certified.

    A certificate is one of exact arithmetic, a verdict one of the network as it computes: points are spared where the
    radius with that rounding reaches far enough, but for the witnesses.
    """
    if certified is None or not _spares_points(options):
        return None
    return leave_witnesses(torch.from_numpy(certified.computed), certified.reach)


def leave_witnesses(radii: Tensor, reach: float) -> Tensor:
    """The points [N] whose radius [N] is at least ``reach``, without those whose radii are the smallest: the witnesses.

    If a certificate is wrong, they are the first to show it.
    """
    spared = radii >= reach
    points = spared.nonzero().flatten()
    spared[points[radii[points].argsort(stable=True)[:WITNESSES]]] = False
    return spared

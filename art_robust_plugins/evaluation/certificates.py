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
"""The largest number of points that are attacked although they are certified: witnesses of the certificate."""


@dataclass(frozen=True)
class CertifiedRadii:
    """The certificate of an estimator for the points of an evaluation.

    Attributes:
        radii: the proven radius of each point [N], -1 where the certified class is not the label.
        spared: the points that the attacks leave out, bool [N].
        description: for the report.
    """

    radii: NDArray[np.float64]
    spared: Tensor
    description: dict[str, Any]


def certify_points(
    options: EvaluationOptions, samples: Samples, passes: EstimatorPasses, reach: float
) -> CertifiedRadii | None:
    """Certify the points, if the estimator can; those whose radius is at least ``reach`` need no attack."""
    estimator = options.estimator
    if not isinstance(estimator, PyTorchLipschitzCertifier):
        return None
    start = time.perf_counter()
    prediction, radius = passes.batched.run_whole(
        lambda size: estimator.certify(samples.x, size, norm=options.threat.norm)
    )
    radii = np.where(prediction == samples.y.numpy(), radius, -1.0)
    certified = torch.from_numpy(radii >= reach)
    # Only our own AutoAttack can leave points out; other attacks draw random numbers for a whole batch.
    skips = options.skip_certified and options.backend == "native"
    skips = skips and any(attack.package == "autoattack" for attack in options.attacks)
    spared = _leave_witnesses(certified) if skips else torch.zeros_like(certified)
    return CertifiedRadii(
        radii,
        spared,
        {
            "method": "Lipschitz bound, proven",
            "largest constant of a difference of logits (L2)": float(estimator.lipschitz_constants().max()),
            "points not attacked": int(spared.sum()),
            "certified points attacked": int((certified & ~spared).sum()),
            "seconds": time.perf_counter() - start,
        },
    )


def _leave_witnesses(certified: Tensor) -> Tensor:
    """The certified points [N] without witnesses, which are spread evenly over them."""
    points = certified.nonzero().flatten()
    places = torch.linspace(0, max(len(points) - 1, 0), min(WITNESSES, len(points))).round().long()
    spared = certified.clone()
    spared[points[places]] = False
    return spared

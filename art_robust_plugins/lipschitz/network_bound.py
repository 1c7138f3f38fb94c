"""The bound of a whole network: its parts, and Tsuzuku, Sato and Sugiyama's constants of pairs of logits.

Lipschitz-Margin Training (arXiv 1802.04034, NeurIPS 2018). For logits f = W h + b with rows w_j of W, and L_pre a
Lipschitz constant of h,

    K_tj = L_pre ||w_t - w_j||          (`bound_pairs`)

is one of the difference f_t - f_j; without a linear last layer, and L one of all logits together, K = sqrt(2) L.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .norms import UNIT_ROUNDOFF
from .rounding import Rounding


@dataclass(frozen=True)
class OperatorNorm:
    """One linear operator of a network, with its norm in a proven bound.

    Attributes:
        node, module: where it stands in the graph and in the module tree.
        kind: ``"Convolution"`` or ``"Linear"``, with what was merged into it, or ``"Scale"``, a multiplication entry by
            entry that was not merged, as by a weight map.
        input_shape, output_shape: of one sample.
        norm: the proven upper bound of its norm.
        method: of the proof, see `NormBound`.
        share: of the bound L, from -1 to 1. With e_i = d ln L / d ln norm_i (1 in a chain, less in parallel branches)
            it is e_i ln norm_i over the sum of all |e_j ln norm_j|: norms below 1 have negative shares. 0 for all
            where L is 0.
    """

    node: str
    module: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    norm: float
    method: str
    share: float = 0.0


@dataclass(frozen=True)
class NetworkBound:
    """Lipschitz constants (L2) of a network's logits: proven, or an estimate with gradient.

    Attributes:
        lipschitz: of all logits together; scalar.
        pairwise: [C, C], of each difference of two logits, f_t - f_j. From the last layer's rows where that is linear
            (L_pre ||w_t - w_j||, L_pre bounding the network before it), else sqrt(2) times ``lipschitz``.
        before_last: L_pre, or None where the last layer is not linear.
        last_weight: the last layer's weight [C, F] with what was merged into it, or None.
        operators: one entry for each linear operator, of a proven bound only.
        rounding: the largest error of computed logits, of a proven bound only.
    """

    lipschitz: Tensor
    pairwise: Tensor
    before_last: Tensor | None
    last_weight: Tensor | None
    operators: tuple[OperatorNorm, ...] = ()
    rounding: Rounding = field(default_factory=Rounding)

    def __repr__(self) -> str:
        largest = float(self.pairwise.max())
        return f"NetworkBound(all logits: {float(self.lipschitz):.6g}, difference of two: at most {largest:.6g})"


def bound_pairs(before_last: Tensor, weight: Tensor, *, proven: bool) -> Tensor:
    """K_tj = L_pre ||w_t - w_j||: [C, C] for the last layer's weight [C, F]."""
    return before_last * (_prove_distances(weight) if proven else _distances(weight))


def bound_pairs_without_rows(lipschitz: Tensor, classes: int, up: float) -> Tensor:
    """K = sqrt(2) L, times ``up``, for two logits [C, C]: a difference of two entries is at most that of the norm."""
    different = 1 - torch.eye(classes, device=lipschitz.device, dtype=lipschitz.dtype)
    return lipschitz * (math.sqrt(2) * up) * different


def _distances(rows: Tensor) -> Tensor:
    distances: Tensor = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    return distances


def _prove_distances(rows: Tensor) -> Tensor:
    """Upper bounds of the exact distances of the rows."""
    # Squares of small weights would vanish: a power of two first.
    scale = 2.0 ** math.frexp(float(rows.abs().max()))[1]
    # What was merged into the rows is rounded; where two rows are almost equal, that counts.
    lengths = torch.linalg.vector_norm(rows, dim=1)
    rounding = 8 * UNIT_ROUNDOFF * (lengths[:, None] + lengths)
    distances: Tensor = (scale * _distances(rows / scale) + rounding).fill_diagonal_(0)
    return distances


def share_bound(bound: object, norms: Sequence[Tensor]) -> list[float]:
    """Each norm's share of a bound that was computed from them with gradient; see `OperatorNorm`."""
    if not isinstance(bound, Tensor) or not bound.requires_grad:  # no operator counts in it
        return [0.0] * len(norms)
    slopes = torch.autograd.grad(bound, norms, allow_unused=True, materialize_grads=True)
    logs = [  # L e_i ln norm_i, where the norm is not 0
        float(norm * slope) * math.log(float(norm)) if float(norm) > 0 else 0.0
        for norm, slope in zip((norm.detach() for norm in norms), slopes, strict=True)
    ]
    total = sum(abs(log) for log in logs)
    return [log / total if 0 < total < math.inf else 0.0 for log in logs]

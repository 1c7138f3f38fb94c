"""Convolutions with a proven bound: the best of a frequency grid, a box formula and a Cholesky factorisation."""

from __future__ import annotations

import math

import torch

from .bounds import NormBound, round_up, scale_weight
from .box import box_bound
from .cholesky import cholesky_bound
from .geometry import ConvolutionMap
from .grid import grid_bounds


class Convolution(ConvolutionMap):
    """A 1-, 2- or 3-dimensional convolution, plain or transposed, on inputs of a given size. The bias has no part.

    Args:
        weight: as torch's modules keep it: [outputs, inputs / groups, *kernel], transposed [inputs, outputs / groups,
            *kernel].
        input_size: the spatial size of the input, one to three numbers; the kernel has as many dimensions.
        stride, dilation, output_padding: a number, or one for each dimension.
        padding: a number, ``"same"``, ``"valid"``, one number for each dimension, or one pair (before, after) for each.
        groups: number of groups.
        transposed: a transposed convolution.
        padding_mode: ``"zeros"``, ``"circular"``, ``"reflect"`` or ``"replicate"``.
        cholesky_limit: up to which number of inputs or outputs of a group (the smaller of both) the bound is refined
            by a Cholesky factorisation, whatever operations that takes; 0: never. None: as far as `configure_proofs`
            allows.

    Raises:
        ValueError: for arguments that do not fit together, or that torch would not accept either.

    Example:
        >>> operator = Convolution(torch.ones(1, 1, 3, 3), (8, 8), padding=1)
        >>> operator.output_shape, round(operator.upper_bound().value, 6)
        ((1, 8, 8), 8.290859)
    """

    @torch.no_grad()
    def upper_bound(self) -> NormBound:
        """The smaller of the bound on the frequency grid and, within `configure_proofs`, the Cholesky-verified one.

        Groups act on different channels, so the norm is the largest of theirs. Each group is refined only while its
        grid bound exceeds what is already proven for another. A box (all taps of a channel's kernel alike, but for the
        middle one) has a formula, which for zero and circular padding gives the norm itself.

        Raises:
            ValueError: for a weight with NaN or infinity.
        """
        weight, scale = scale_weight(self.without_idle_taps())
        if not bool(weight.any()):
            return NormBound(0.0, "exact")
        parts = weight.view(self.groups, -1, *weight.shape[1:])
        grid = grid_bounds(self, parts)
        best, method, refined = 0.0, "grid", torch.empty(0)
        for index in grid.argsort(descending=True).tolist():
            coarse = float(grid[index])
            if coarse <= best:
                break
            if torch.equal(parts[index], refined):  # groups that are alike are next to each other here
                continue
            refined = parts[index]
            single = self.with_weight(refined, groups=1)
            box, tight = box_bound(single)
            fine = math.inf if tight else cholesky_bound(single, min(coarse, box))
            bound, how = min((box, "exact" if tight else "grid"), (coarse, "grid"), (fine, "cholesky"))
            if bound > best:
                best, method = bound, how
        return NormBound(round_up(best * scale), method)

"""Checks that an analysed graph and its network compute the same, in float64 and in the network's own precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..bridge import device_of
from .tensors import dtype_of, dtypes_of, tensors_of

ALONE = 10
"""The number of compared samples that the network also gets one by one."""

OWN_ROUNDING = 0.03
"""The tolerated difference of logits between float64 and the network's own precision, which may be TF32 or bfloat16,
as a ratio of the largest one."""

_SPACING = {"ieee": 2.0**-23, "tf32": 2.0**-10, "bf16": 2.0**-7}


class DisagreementError(ValueError):
    """A network and its graph, or the network and itself, give different outputs for the same samples."""


@torch.no_grad()
def check_agreement(network: nn.Module, x: Tensor, logits: Tensor, tolerance: float | Tensor) -> None:
    """Compare a network's logits, in batches and for single samples, with its graph's logits of each sample alone.

    Args:
        network: in evaluation mode; it is called several times.
        x: samples [N, ...] as the network takes them.
        logits: of the graph, [N, C].
        tolerance: the largest difference that rounding explains: a number, or one for each sample [N, 1].

    Raises:
        DisagreementError: for outputs that differ from one call to the next, from those of each sample alone, or from
            the graph's. NaN and infinity where the others are finite count as differences.
    """
    # Copies, for a network that changes its input in place.
    together = network(x.clone())
    if _differ(together, network(x.clone()), 2 * tolerance):
        raise DisagreementError(
            "network: its outputs for the same samples differ from one call to the next, expected a deterministic "
            "forward that keeps no state."
        )
    singles = torch.linspace(0, len(x) - 1, min(len(x), ALONE)).long().tolist()
    alone = torch.cat([network(x[place : place + 1].clone()) for place in singles])
    at = tolerance[singles] if isinstance(tolerance, Tensor) else tolerance
    if len(together) != len(x) or _differ(together[singles], alone, 2 * at):
        raise DisagreementError(
            "network: its outputs for several samples together are not those for each alone, expected equal."
        )
    if not _differ(together, logits, tolerance):
        return
    difference = float((together - logits).abs().max()) if together.shape == logits.shape else float("nan")
    raise DisagreementError(
        f"network: its outputs differ by {difference:.3g} from those of its graph by torch.export, expected a forward "
        f"that computes the same whether it is traced or not, for one sample or for several."
    )


def check_graph(network: nn.Module, samples: Tensor, run: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
    """Compare a network with its graph on two samples in [0, 1], on rounded and scaled copies, and on edge cases.

    Args:
        network: in evaluation mode.
        samples: [2, ...].
        run: gives the graph's logits [N, C], and the norms of intermediate values, which bound the rounding errors.

    Raises:
        ValueError: outputs of the samples are NaN or infinite.
        DisagreementError: see `check_agreement`.
    """
    if not bool(network(samples.clone()).isfinite().all()):
        raise ValueError("network: its outputs hold NaN or infinity, expected finite numbers.")
    edges = torch.stack([torch.zeros_like(samples[0]), torch.ones_like(samples[0])])
    both = torch.cat([samples, samples.round(), edges])
    weights = [_largest(tensor) for tensor in tensors_of(network) if tensor.numel()]
    # Samples may be mixed, or outputs differ, in a part of the range only.
    for scale, shift in ((1, 0), (10, 0), (255, 0), (2, -1), (20, -10)):
        x = scale * both + shift
        logits, norms = run(x)
        largest = max([*norms.flatten().tolist(), *weights], default=0.0)
        rounding = 1e3 * largest * torch.finfo(logits.dtype).eps
        check_agreement(network, x, logits, 1e-3 * float(logits.abs().max()) + rounding)


def _largest(tensor: Tensor) -> float:
    return float((tensor if tensor.is_complex() else tensor.double()).abs().max())  # torch has no abs of masks


@torch.no_grad()
def check_own_precision(network: nn.Module, x: Tensor, logits: Tensor, errors: Tensor) -> None:
    """Compare a network's logits in its own precision with those in float64.

    Args:
        network: in evaluation mode.
        x: samples [N, ...] as the network takes them, in float64.
        logits: of the samples in float64, [N, C].
        errors: bounds [N] of the rounding errors in these logits.

    Raises:
        DisagreementError: they differ by more than rounding.
    """
    dtype = dtype_of(network)
    outputs = network(x.to(dtype)).double()
    growth = find_rounding_growth(network)
    tolerance = OWN_ROUNDING * float(logits.abs().max()) + growth * float(errors.max())
    difference = float((outputs - logits).abs().max())
    if difference > tolerance:
        raise DisagreementError(
            f"classifier: the network in {dtype} computes outputs that differ by {difference:.3g} from those in "
            f"float64, expected the same but for rounding."
        )


def find_rounding_growth(network: nn.Module) -> float:
    """How much coarser the rounding of a network's passes is than that of float64, as a ratio.

    Products of float32 count as TF32 or bfloat16 where torch's settings allow these on the network's device.
    """
    dtypes = dtypes_of(network)
    coarsest = max(torch.finfo(dtype).eps for dtype in dtypes)
    if torch.float32 in dtypes:
        coarsest = max(coarsest, find_product_rounding(device_of(network)))
    return coarsest / torch.finfo(torch.float64).eps


def find_product_rounding(device: torch.device) -> float:
    """The relative spacing of the numbers that torch may multiply in place of those of float32."""
    backends: Any = torch.backends
    on_gpu = device.type == "cuda"
    if not hasattr(backends, "fp32_precision"):  # torch before 2.9
        allowed = backends.cudnn.allow_tf32 or backends.cuda.matmul.allow_tf32
        named = {"highest": "ieee", "high": "tf32", "medium": "bf16"}[torch.get_float32_matmul_precision()]
        return _SPACING[("tf32" if allowed else "ieee") if on_gpu else named]
    within: list[tuple[Any, ...]] = [(backends.mkldnn.matmul, backends.mkldnn), (backends.mkldnn.conv, backends.mkldnn)]
    if on_gpu:
        within = [(backends.cuda.matmul,), (backends.cudnn.conv, backends.cudnn), (backends.cudnn.rnn, backends.cudnn)]
    return max(_SPACING.get(_read_precision(*owners, backends), _SPACING["bf16"]) for owners in within)


def _read_precision(*owners: Any) -> str:
    """The setting of the first owner that has one of its own."""
    found = (owner.fp32_precision for owner in owners)
    return next((precision for precision in found if precision != "none"), "ieee")


def _differ(one: Tensor, other: Tensor, tolerance: float | Tensor) -> bool:
    if one.shape != other.shape:
        return True
    same = (one - other).abs() <= tolerance
    return not bool((same | ~(one.isfinite() | other.isfinite())).all())


def make_probes(shape: tuple[int, ...], low: Tensor, high: Tensor) -> Tensor:
    """Samples [N, *shape], the same each time, on which networks are compared: within the range, at its ends, beyond.

    Args:
        shape: of one sample.
        low: the range's lower end, which broadcasts against ``shape``; minus infinity counts as 0.
        high: the upper end; infinity counts as 1.
    """
    low, high = low.nan_to_num(neginf=0.0), high.nan_to_num(posinf=1.0)
    generator = torch.Generator().manual_seed(0)
    within = torch.rand(4, *shape, generator=generator, dtype=torch.float32)
    ends = [torch.zeros_like(within[:1]), torch.ones_like(within[:1])]
    unit = torch.cat([within, within[:2].round(), *ends])
    unit = torch.cat([unit, 0.5 + 1e-2 * (within[:1] - 0.5), 3 * within[2:] - 1])
    return low + (high - low) * unit

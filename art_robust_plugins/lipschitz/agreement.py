"""Whether the graph that a bound analyses computes what the network computes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ALONE = 10
"""How many samples of those that are compared the network gets one by one as well."""


class DisagreementError(ValueError):
    """A network and its graph, or the network and itself, give different outputs for the same samples."""


@torch.no_grad()
def check_agreement(network: nn.Module, x: Tensor, logits: Tensor, tolerance: float | Tensor) -> None:
    """Compare a network, with several samples and with one, with what its graph computed for each sample alone.

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


def _differ(one: Tensor, other: Tensor, tolerance: float | Tensor) -> bool:
    if one.shape != other.shape:
        return True
    same = (one - other).abs() <= tolerance
    return not bool((same | ~(one.isfinite() | other.isfinite())).all())


def probes(shape: tuple[int, ...], low: Tensor, high: Tensor) -> Tensor:
    """Samples [N, *shape], the same each time, on which networks are compared: within the range, at its ends, beyond.

    Args:
        shape: of one sample.
        low: the range's lower end, which broadcasts against ``shape``; minus infinity counts as 0.
        high: the upper end; infinity counts as 1.
    """
    low, high = low.nan_to_num(neginf=0.0), high.nan_to_num(posinf=1.0)
    generator = torch.Generator().manual_seed(0)
    within = torch.rand(4, *shape, generator=generator)
    unit = torch.cat([within, within[:2].round(), torch.zeros(1, *shape), torch.ones(1, *shape)])
    unit = torch.cat([unit, 0.5 + 1e-2 * (within[:1] - 0.5), 3 * within[2:] - 1])
    return low + (high - low) * unit

"""The blocks into which A^T A or A A^T of a convolution is cut, and the cost of a factorisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .lanczos import STEPS
from .reads import AxisPart

SUMS_KEPT = 8
"""Sums of products of taps that a `GramMatrix` holds."""

_OVERHEAD = 2e6  # operations that cost as much as a call of torch
_LINK = 3e4  # operations that cost as much as listing a pair of taps along the slow axis
_LINK_BYTES = 100
_PANEL_CALLS = 12  # of the factorisation, for each of its panels
_DENSE = 2**24  # entries of a matrix that is cheap


@dataclass(frozen=True)
class Layout:
    """The blocks into which G is cut, and the cost of a factorisation.

    Attributes:
        axis: the slow axis.
        folded: its positions are taken from both ends in turns, which bounds the band where they are coupled in a
            circle.
        by_matrix: there is one block, and B is small enough to be made as a matrix.
        rows: positions in a block row.
        bandwidth: block rows that a block row is coupled with, on each side.
        blocks: block rows.
        operations: floating-point operations of a factorisation.
        memory: bytes in use at a time.
        cost: operations, with the time of calls.
    """

    axis: int
    folded: bool
    by_matrix: bool
    rows: int
    bandwidth: int
    blocks: int
    operations: float
    memory: float
    cost: float


def choose_layout(channels: int, outer: int, parts: Sequence[AxisPart], panel: int) -> Layout:
    """The layout of least cost, see `list_layouts`."""
    return min(list_layouts(channels, outer, parts, panel), key=lambda layout: layout.cost)


def list_layouts(channels: int, outer: int, parts: Sequence[AxisPart], panel: int) -> list[Layout]:
    """All layouts, with what they cost.

    Args:
        channels: of positions.
        outer: channels of groups.
        parts: one for each axis.
        panel: columns of a panel of the factorisation.
    """
    size = channels * math.prod(part.count for part in parts)
    entries = size * outer * math.prod(part.table.shape[1] for part in parts)
    links = [part.members.numel() * part.members.shape[1] for part in parts]
    table = math.prod(part.table.numel() for part in parts)
    layouts = []
    for axis, part in enumerate(parts):
        taps = part.table.shape[2]
        others = math.prod(other.table.shape[2] for at, other in enumerate(parts) if at != axis)
        inner_links = math.prod(count for at, count in enumerate(links) if at != axis)
        # Products of taps and what is made from them, the links of axes, and B as a function.
        fixed = 8 * (SUMS_KEPT * (others * channels) ** 2 + taps * others * channels * outer)
        fixed += 8 * 4 * inner_links + _LINK_BYTES * links[axis] + 8 * 3 * table * (channels + 1)
        for folded in (False, True):
            strip = _Strip(axis, folded, part.count, size // part.count, _band(part, folded))
            rows = 1
            while True:
                layouts.append(_lay_out(strip, rows, panel, fixed, links[axis]))
                if rows == part.count:
                    break
                rows = min(2 * rows, part.count)
            if entries <= _DENSE:
                layouts[-1] = replace(_lay_out(strip, rows, panel, 8 * 3 * entries, 0), by_matrix=True)
    return layouts


@dataclass(frozen=True)
class _Strip:
    """The positions of one axis in an order: their number, the unknowns of each, and how far they are coupled."""

    axis: int
    folded: bool
    count: int
    unknowns: int
    band: int


def _lay_out(strip: _Strip, rows: int, panel: int, held: float, links: int) -> Layout:
    """The layout with so many positions in a block row, beside ``held`` bytes and pairs of taps to list."""
    blocks = math.ceil(strip.count / rows)
    bandwidth = min(math.ceil(strip.band / rows), blocks - 1)
    width = strip.unknowns * rows
    below = [
        min(bandwidth, blocks - 1 - index) for index in range(max(blocks - bandwidth - 1, 0), blocks)
    ]  # the last ones
    full = blocks - len(below)
    operations = width**3 * (full * (1 / 3 + bandwidth + bandwidth**2) + sum(1 / 3 + h + h**2 for h in below))
    calls = blocks * (math.ceil(width / panel) * _PANEL_CALLS + (bandwidth + 1) ** 2)
    calls += 8 * strip.count * rows * (bandwidth + 1) if links else 0
    memory = held + 8 * STEPS * strip.count * strip.unknowns
    memory += 8 * width**2 * ((bandwidth + 1) * (bandwidth + 2) / 2 + bandwidth + 4)
    cost = operations + _OVERHEAD * calls + _LINK * links
    return Layout(strip.axis, strip.folded, False, rows, bandwidth, blocks, operations, memory, cost)


def _band(part: AxisPart, folded: bool) -> int:
    """The largest distance of positions that a group couples."""
    places = order_positions(part, folded)
    members = part.members
    numbers = places[members.clamp_min(0)]
    most = torch.where(members >= 0, numbers, -1).amax(dim=1)
    least = torch.where(members >= 0, numbers, part.count).amin(dim=1)
    return max(0, int((most - least).max()))


def order_positions(part: AxisPart, folded: bool) -> Tensor:
    """[positions]: the number of each in the order of block rows."""
    natural = torch.arange(part.count)
    return torch.minimum(2 * natural, 2 * (part.count - 1 - natural) + 1) if folded else natural

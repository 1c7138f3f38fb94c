"""The positions that a convolution reads along each spatial axis, and those that it couples with one another.

A^T A couples two inputs that an output reads; A A^T couples two outputs that read the same input. Either is B^T B, with
B = A or A^T: B takes *positions* (inputs or outputs) to *groups* (what couples them). All of it is a product over axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from .geometry import ConvolutionMap

Side = Literal["inputs", "outputs"]

_MOST_PARTS = 1024  # an axis that falls into more parts is left whole


@dataclass(frozen=True)
class AxisPart:
    """Positions of an axis that are coupled with one another, directly or by others, and with no others.

    Attributes:
        count: the number of positions, which are numbered along the axis.
        table: [layers, groups, taps], the position that B reads for a group by a kernel tap, -1 for none. There are
            several layers where padding repeats inputs, so that a tap reads several positions.
    """

    count: int
    table: Tensor

    @property
    def members(self) -> Tensor:
        """[groups, layers * taps]: the positions of each group, -1 for none."""
        return self.table.transpose(0, 1).flatten(1)

    @property
    def products(self) -> int:
        """The largest number of pairs of entries of B that one entry of B^T B is summed from (per channel)."""
        members = self.members
        groups = torch.arange(len(members))[:, None].expand_as(members)
        keys = (groups * self.count + members)[members >= 0]
        repeats = int(torch.bincount(keys).max())
        return int(torch.bincount(members[members >= 0]).max()) * repeats


def split_axis(operator: ConvolutionMap, axis: int, side: Side) -> list[AxisPart]:
    """The parts of an axis that differ. The norm of the whole is the largest one of any product of parts.

    Examples: with a dilation of 2, even and odd positions never meet; with a stride as long as the kernel, outputs
    share no inputs, so that all are alike. Positions that are not read at all are left out.
    """
    reads = _find_reads(operator, axis)
    inputs, outputs = (sizes[axis] for sizes in operator.plain_sizes())
    table, count = (reads[None], inputs) if side == "inputs" else (_find_readers(reads, inputs), outputs)
    whole = AxisPart(count, table)
    members = whole.members
    labels = _label(members, count)
    used = torch.zeros(count, dtype=torch.bool)
    used[members[members >= 0]] = True
    names = sorted(set(labels[used].tolist()))
    if len(names) > _MOST_PARTS:
        return [whole]
    first = members.amax(dim=1)  # any member of a group tells its part
    group_labels = torch.where(first >= 0, labels[first.clamp_min(0)], -1)
    parts: dict[tuple[int, tuple[int, ...], bytes], AxisPart] = {}
    for name in names:
        chosen = (labels == name) & used
        numbers = torch.full((count + 1,), -1)
        numbers[:count][chosen] = torch.arange(int(chosen.sum()))
        inner = numbers[table[:, group_labels == name]]  # -1 picks the last entry, which is -1
        part = AxisPart(int(chosen.sum()), inner[(inner >= 0).flatten(1).any(dim=1)])
        parts[part.count, tuple(part.table.shape), part.table.numpy().tobytes()] = part
    return list(parts.values())


def rank_equal(keys: Tensor) -> Tensor:
    """[n] -> [n]: how many equal keys stand before each one."""
    order = keys.argsort(stable=True)
    ordered = keys[order]
    places = torch.arange(len(keys))
    starts = torch.ones(len(keys), dtype=torch.bool)
    starts[1:] = ordered[1:] != ordered[:-1]
    ranks = torch.empty_like(places)
    ranks[order] = places - torch.where(starts, places, 0).cummax(0).values
    return ranks


def _find_reads(operator: ConvolutionMap, axis: int) -> Tensor:
    """[outputs, taps] of the plain convolution: the input that is read, -1 for zero padding."""
    length, count = (sizes[axis] for sizes in operator.plain_sizes())
    before, after = operator.padding[axis]
    taps = torch.arange(operator.kernel_size[axis]) * operator.dilation[axis]
    places = torch.arange(count)[:, None] * operator.stride[axis] + taps
    if operator.padding_mode == "zeros":
        places = places - before
        return torch.where((places >= 0) & (places < length), places, -1)
    numbers = torch.arange(length, dtype=torch.float64).view(1, 1, -1)
    padded = functional.pad(numbers, (before, after), mode=operator.padding_mode).flatten().long()
    return padded[places]


def _find_readers(reads: Tensor, inputs: int) -> Tensor:
    """[outputs, taps] -> [layers, inputs, taps]: the outputs that read an input by a tap."""
    outputs, taps = (reads >= 0).nonzero(as_tuple=True)
    count = reads.shape[1]
    keys = reads[outputs, taps] * count + taps
    layers = rank_equal(keys)
    table = torch.full((int(layers.max()) + 1 if len(layers) else 1, inputs * count), -1)
    table[layers, keys] = outputs
    return table.view(len(table), inputs, count)


def _label(members: Tensor, count: int) -> Tensor:
    """A number for each position, the same for those that are coupled: the smallest position that it leads to."""
    labels = torch.arange(count)
    known = members >= 0
    while True:
        smallest = torch.where(known, labels[members.clamp_min(0)], count).amin(dim=1, keepdim=True)
        found = labels.scatter_reduce(0, members[known], smallest.expand_as(members)[known], "amin")
        found = found[found]  # a label's own label is at least as small
        if torch.equal(found, labels):
            return labels
        labels = found

"""G = A^T A or A A^T of a convolution as block rows, made from products of kernel taps: A itself is never formed.

The positions of one spatial axis, the slow one, number the rows of blocks: a row holds all channels at all other
positions. Rows that no group couples have a block of zeros, so that G is banded (see `reads` for groups and positions).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import torch
from torch import Tensor

from .layout import SUMS_KEPT, Layout, order_positions
from .reads import AxisPart, rank_equal


class GramMatrix:
    """B^T B of one part of a convolution, [n, n] in blocks, and B as a function.

    Args:
        weight: of the plain convolution, [groups' channels, positions' channels, *kernel] in float64.
        parts: one for each axis.
        layout: see `choose_layout`.
    """

    def __init__(self, weight: Tensor, parts: Sequence[AxisPart], layout: Layout) -> None:
        self.layout = layout
        self._device = weight.device
        self.channels = weight.shape[1]
        counts = [part.count for part in parts]
        self.size = self.channels * math.prod(counts)
        slow = parts[layout.axis]
        others = [axis for axis in range(len(parts)) if axis != layout.axis]
        self._inner = math.prod(counts[axis] for axis in others)
        self._row = self.channels * self._inner
        self._bounds = [*range(0, slow.count, layout.rows), slow.count]
        self._pairs = {} if layout.by_matrix else _pair_taps(slow, layout.folded)
        # [slow taps, other taps * channels, groups' channels]
        kernel = weight.permute(2 + layout.axis, *(2 + axis for axis in others), 1, 0)
        self._taps = math.prod(kernel.shape[1:-2])
        self._kernel = kernel.reshape(len(kernel), -1, weight.shape[0]).contiguous()
        self._rounds: list[tuple[Tensor, Tensor]] = []
        self._sums: dict[tuple[tuple[int, int], ...], Tensor] = {}
        self._weight, self._parts = weight, parts
        self._table: Tensor | None = None
        self._dense: Tensor | None = None

    @property
    def blocks(self) -> int:
        return len(self._bounds) - 1

    def make_vector(self) -> Tensor:
        """An empty vector [n] of the matrix's type, on its device."""
        return self._kernel.new_empty(self.size)

    def count_unknowns(self) -> list[int]:
        """Unknowns of each block row."""
        return [self._row * (stop - start) for start, stop in zip(self._bounds, self._bounds[1:], strict=False)]

    def make_block(self, row: int, column: int) -> Tensor:
        """The block below or on the diagonal, as a tensor of its own."""
        if self._dense is not None or self.layout.by_matrix:
            return self.make_dense().clone()
        rows, columns = (range(self._bounds[index], self._bounds[index + 1]) for index in (row, column))
        inner = self._row
        if len(rows) == len(columns) == 1:
            return self._row_block(rows[0], columns[0])
        result = torch.zeros(len(rows) * inner, len(columns) * inner, dtype=torch.float64, device=self._device)
        for i, place in enumerate(rows):
            for j, other in enumerate(columns):
                if place < other:  # the upper triangle of a block on the diagonal is not read
                    continue
                if (place, other) in self._pairs:
                    result[i * inner : (i + 1) * inner, j * inner : (j + 1) * inner] = self._row_block(place, other)
        return result

    def make_dense(self) -> Tensor:
        """G as one matrix, for a layout of one block."""
        if self._dense is None:
            if self.layout.by_matrix:
                self._dense = self._by_matrix()
            else:
                lower = self.make_block(0, 0).tril()
                self._dense = lower + lower.tril(-1).t()
        return self._dense

    def multiply(self, vector: Tensor) -> Tensor:
        """G times a vector [n], with positions in their own order and channels last."""
        if self._table is None:
            self._make_table()
        assert self._table is not None
        x = torch.cat([vector.view(-1, self.channels), vector.new_zeros(1, self.channels)])
        groups = self._table.shape[1]
        columns = x[self._table[0].flatten()]
        for layer in self._table[1:]:
            columns = columns + x[layer.flatten()]
        images = columns.view(groups, -1) @ self._matrix
        back = torch.cat([(images @ self._matrix.t()).view(-1, self.channels), x[-1:]])
        return back[self._readers.flatten()].view(len(self._readers), -1, self.channels).sum(dim=1).flatten()

    def _by_matrix(self) -> Tensor:
        """G as the product of B with itself; positions in their own order, channels last."""
        table = _join_tables(self._parts)
        _, groups, taps = table.shape
        kernel = self._weight.flatten(2).permute(2, 0, 1)
        matrix = kernel.new_zeros(
            groups, self.size // self.channels + 1, *kernel.shape[1:]
        )  # the last column takes taps outside of the input
        places = torch.arange(groups)
        for layer in table:
            for tap in range(taps):
                matrix[places, layer[:, tap]] += kernel[tap]
        flat = matrix[:, :-1].permute(0, 2, 1, 3).reshape(groups * kernel.shape[1], self.size)
        return flat.t() @ flat

    def _row_block(self, place: int, other: int) -> Tensor:
        """The block of two positions of the slow axis: a sum over pairs of taps, put where the other axes couple."""
        inner, channels = self._inner, self.channels
        result = torch.zeros(inner * inner, channels, channels, dtype=torch.float64, device=self._device)
        pairs = self._pairs.get((place, other))
        if pairs:
            products = self._sum_products(pairs)
            if not self._rounds:
                self._rounds = _couple(self._others(), self._device)
            for keys, taps in self._rounds:
                result[keys] += products[taps]
        result = result.view(inner, inner, channels, channels).permute(0, 2, 1, 3)
        return result.reshape(inner * channels, inner * channels)

    def _sum_products(self, pairs: tuple[tuple[int, int], ...]) -> Tensor:
        """[taps * taps, channels, channels]: sums over pairs of slow taps of products of taps."""
        if pairs not in self._sums:
            if len(self._sums) == SUMS_KEPT:
                self._sums.clear()
            left, right = (torch.cat([self._kernel[pair[side]] for pair in pairs], dim=1) for side in (0, 1))
            shape = (self._taps, self.channels, self._taps, self.channels)
            product = (left @ right.t()).view(shape).permute(0, 2, 1, 3)
            self._sums[pairs] = product.reshape(-1, self.channels, self.channels)
        return self._sums[pairs]

    def _others(self) -> list[AxisPart]:
        return [part for axis, part in enumerate(self._parts) if axis != self.layout.axis]

    def _make_table(self) -> None:
        """Make the table [layers, groups, taps] of the places that taps read, what reads each place, and B's taps.

        In the table, the index `places` marks a tap outside of the input.
        """
        table = _join_tables(self._parts)
        places = self.size // self.channels
        keys = table.flatten()
        entries = (keys < places).nonzero().flatten()
        per_layer = table.shape[1] * table.shape[2]
        ranks = rank_equal(keys[entries])
        readers = torch.full((places, int(ranks.max()) + 1), per_layer)
        readers[keys[entries], ranks] = entries % per_layer
        self._table, self._readers = table.to(self._device), readers.to(self._device)
        self._matrix = self._weight.flatten(2).permute(2, 1, 0).reshape(-1, self._weight.shape[0]).contiguous()


def _pair_taps(part: AxisPart, folded: bool) -> dict[tuple[int, int], tuple[tuple[int, int], ...]]:
    """For two positions, the first not before the second, the pairs of taps by which groups couple them."""
    places = order_positions(part, folded)
    taps = part.table.shape[2]
    found: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for group in part.members.tolist():
        entries = [(int(places[place]), index % taps) for index, place in enumerate(group) if place >= 0]
        for place, tap in entries:
            for other, other_tap in entries:
                if place >= other:
                    found[place, other].append((tap, other_tap))
    return {key: tuple(sorted(Counter(pairs).elements())) for key, pairs in found.items()}


def _couple(parts: Sequence[AxisPart], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Where products of taps are added: pairs of places and pairs of taps, flat; no pair of places twice in a round."""
    keys, taps, size, kernel = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), 1, 1
    first, second, tap_first, tap_second = keys, keys, taps, taps
    for part in parts:
        members = part.members
        here = torch.arange(members.shape[1]) % part.table.shape[2]
        shape = (*members.shape, members.shape[1])
        pairs = [members[:, :, None].expand(shape), members[:, None, :].expand(shape)]
        known = (pairs[0] >= 0) & (pairs[1] >= 0)
        a, b = (pair[known] for pair in pairs)
        i, j = here[None, :, None].expand(shape)[known], here[None, None, :].expand(shape)[known]
        first, second = ((x[:, None] * part.count + y).flatten() for x, y in ((first, a), (second, b)))
        count = part.table.shape[2]
        tap_first, tap_second = ((x[:, None] * count + y).flatten() for x, y in ((tap_first, i), (tap_second, j)))
        size, kernel = size * part.count, kernel * count
    keys, taps = first * size + second, tap_first * kernel + tap_second
    ranks = rank_equal(keys)
    rounds = int(ranks.max()) + 1 if len(ranks) else 0
    return [(keys[ranks == turn].to(device), taps[ranks == turn].to(device)) for turn in range(rounds)]


def _join_tables(parts: Sequence[AxisPart]) -> Tensor:
    """[layers, groups, taps] of all axes: the place that each tap reads.

    The index `places`, which is their number, marks a tap outside of the input.
    """
    joined = torch.zeros(1, 1, 1, dtype=torch.int64)
    for part in parts:
        ahead, behind = joined[:, None, :, None, :, None], part.table[None, :, None, :, None, :]
        merged = torch.where((ahead >= 0) & (behind >= 0), ahead * part.count + behind, -1)
        joined = merged.flatten(4, 5).flatten(2, 3).flatten(0, 1)
    return torch.where(joined >= 0, joined, math.prod(part.count for part in parts))

"""One oblivious tree on targets R: grown greedily, or improved one level at a time, so that sum |R - T[code]|^2 falls.

Improving is tree alternating optimisation (Carreira-Perpinan and Tavallali, 2018), for trees with one column per level.
A row r that goes right instead of left at its node changes the error by (T0 - T1) . (2 R - T0 - T1), with T0
and T1 the entries of the two leaves, so a prefix sum over a column's intervals gives the error of every threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from basis_search.families.pq.spec import BUCKETS, LEVELS
from basis_search.families.pq.trees import NEVER

try:
    import basis_kernels.pq._cpu as _cpu
except ImportError:
    _cpu = None

COMPILED = _cpu is not None
MOST_INTERVALS = 64
"""Most intervals of a column, between which the trees may split it."""
NO_CUT = 255
"""Cut of a node that sends every row left; other cuts send rows of larger intervals right."""
WIDTH_MULTIPLE = 8
"""Targets are padded with zeros to a multiple of so many columns, as the compiled module needs."""


@dataclass(frozen=True)
class Tree:
    """Split columns [4] int64, cuts [15] uint8 (node i of level t at 2^t - 1 + i) and the codes [n] uint8 they give."""

    columns: Tensor
    cuts: Tensor
    codes: Tensor


@dataclass(frozen=True)
class Intervals:
    """Thresholds to try for each column, at most 63, and the interval of each value.

    Attributes:
        values: [in, most], infinite beyond a column's last threshold.
        edges: [in] int32, number of thresholds of a column.
        bins: [in, n] uint8, interval of each value.
    """

    values: Tensor
    edges: Tensor
    bins: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Intervals:
        """Thresholds midway between distinct values of x [n, in], or between quantiles of them where there are many."""
        edges, bins = [], torch.empty(x.shape[1], len(x), dtype=torch.uint8)
        for j, column in enumerate(x.double().T.contiguous()):
            distinct = torch.unique(column)
            if len(distinct) > MOST_INTERVALS:
                distinct = torch.unique(
                    torch.quantile(distinct, torch.linspace(0, 1, MOST_INTERVALS, dtype=torch.float64))
                )
            edges.append(distinct[:-1] / 2 + distinct[1:] / 2)
            bins[j] = torch.bucketize(column, edges[-1])
        counts = torch.tensor([len(e) for e in edges], dtype=torch.int32)
        values = torch.full((len(edges), max(1, int(counts.max()))), torch.inf, dtype=torch.float64)
        for j, column in enumerate(edges):
            values[j, : len(column)] = column
        return cls(values, counts, bins)

    def tree(self, columns: Tensor, thresholds: Tensor) -> Tree:
        """The tree with the nearest thresholds among those to try."""
        columns = columns.long()
        levels = torch.cat([columns[t : t + 1].expand(2**t) for t in range(LEVELS)])  # [15]: each node's column
        nearest = (self.values[levels] - thresholds.double()[:, None]).abs().argmin(1)
        none = (thresholds.double() >= NEVER) | (self.edges[levels] == 0)
        cuts = torch.where(none, NO_CUT, nearest).to(torch.uint8)
        return Tree(columns, cuts, self.codes(columns, cuts))

    def codes(self, columns: Tensor, cuts: Tensor) -> Tensor:
        """Codes [n] of columns [4] and cuts [15]."""
        return self.below(columns, cuts, 0, torch.zeros(self.bins.shape[1], dtype=torch.int64)).to(torch.uint8)

    def below(self, columns: Tensor, cuts: Tensor, level: int, node: Tensor) -> Tensor:
        """The leaves that rows reach from nodes [n] of that level."""
        for t in range(level, LEVELS):
            node = 2 * node + (self.bins[columns[t]] > cuts[2**t - 1 + node]).long()
        return node

    def thresholds(self, tree: Tree) -> Tensor:
        """The cuts [15] as values of their columns."""
        levels = torch.cat([tree.columns[t : t + 1].expand(2**t) for t in range(LEVELS)])
        cut = tree.cuts.long()
        found = self.values[levels].gather(1, cut.clamp(max=self.values.shape[1] - 1)[:, None])[:, 0]
        return torch.where(cut == NO_CUT, NEVER, found)


def leaf_means(codes: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """Tables [16, q] of one tree, shrunk towards zero."""
    index = codes.long()
    rows = torch.bincount(index, minlength=BUCKETS)[:, None]
    sums = torch.zeros(BUCKETS, residual.shape[1], dtype=torch.float64).index_add_(0, index, residual.double())
    return (sums / (rows + ridge)).to(residual.dtype)


def padded(y: Tensor) -> Tensor:
    """Targets [n, q] in float32, q made a multiple of 8 by columns of zeros."""
    return torch.nn.functional.pad(y.float(), (0, -y.shape[1] % WIDTH_MULTIPLE)).contiguous()


def grow(intervals: Intervals, residual: Tensor, candidates: Tensor, ridge: float) -> Tree:
    """Level by level the column, among candidates [k], and cuts that explain most of residual [n, q] (`padded`)."""
    if _cpu is None:
        return grow_plainly(intervals, residual, candidates, ridge)
    n = len(residual)
    tree = Tree(
        torch.zeros(LEVELS, dtype=torch.int64),
        torch.zeros(BUCKETS - 1, dtype=torch.uint8),
        torch.zeros(n, dtype=torch.uint8),
    )
    _cpu.grow(intervals.bins, intervals.edges, residual, candidates, ridge, tree.columns, tree.cuts, tree.codes)
    return tree


def improve(intervals: Intervals, residual: Tensor, tree: Tree, candidates: Tensor, ridge: float) -> Tree:
    """One pass over a tree's levels, the last first, on residual [n, q] (`padded`); the given tree is not changed."""
    if _cpu is None:
        return improve_plainly(intervals, residual, tree, candidates, ridge)
    better = Tree(tree.columns.clone(), tree.cuts.clone(), tree.codes.clone())
    _cpu.improve(
        intervals.bins, intervals.edges, residual, candidates, ridge, better.columns, better.cuts, better.codes
    )
    return better


def grow_plainly(intervals: Intervals, residual: Tensor, candidates: Tensor, ridge: float) -> Tree:
    """`grow` without the compiled module."""
    counted = torch.cat([residual.double(), torch.ones(len(residual), 1, dtype=torch.float64)], 1)
    columns, cuts = torch.zeros(LEVELS, dtype=torch.int64), torch.full((BUCKETS - 1,), NO_CUT, dtype=torch.uint8)
    node = torch.zeros(len(residual), dtype=torch.int64)
    for t in range(LEVELS):
        best, chosen = torch.inf, torch.full((2**t,), NO_CUT)
        for j in candidates.tolist():
            histogram = torch.zeros(2**t * MOST_INTERVALS, counted.shape[1], dtype=torch.float64)
            histogram.index_add_(0, node * MOST_INTERVALS + intervals.bins[j].long(), counted)
            head = histogram.view(2**t, MOST_INTERVALS, -1).cumsum(1)
            tail = head[:, -1:] - head
            price = -sum(part[..., :-1].square().sum(2) / (part[..., -1] + ridge) for part in (head, tail))
            assert isinstance(price, Tensor)
            price = price[:, : int(intervals.edges[j])].nan_to_num(nan=0.0)
            least, k = price.min(1) if price.shape[1] else (torch.zeros(2**t), torch.full((2**t,), NO_CUT))
            if float(least.clamp(max=0).sum()) < best:
                best, chosen = float(least.clamp(max=0).sum()), torch.where(least < 0, k, NO_CUT)
                columns[t] = j
        cuts[2**t - 1 : 2 ** (t + 1) - 1] = chosen.to(torch.uint8)
        node = 2 * node + (intervals.bins[columns[t]] > chosen[node]).long()
    return Tree(columns, cuts, node.to(torch.uint8))


def improve_plainly(intervals: Intervals, residual: Tensor, tree: Tree, candidates: Tensor, ridge: float) -> Tree:
    """`improve` without the compiled module."""
    columns, cuts, codes = tree.columns.clone(), tree.cuts.clone(), tree.codes.long()
    index = intervals.bins[candidates].long() + MOST_INTERVALS * torch.arange(len(candidates))[:, None]
    for t in reversed(range(LEVELS)):
        table = leaf_means(codes, residual, ridge)
        node = codes >> (LEVELS - t)
        left = table[intervals.below(columns, cuts, t + 1, 2 * node)]
        right = table[intervals.below(columns, cuts, t + 1, 2 * node + 1)]
        change = ((left - right) * (2 * residual - left - right)).sum(1)  # [n]
        sums = torch.zeros(2**t * len(candidates) * MOST_INTERVALS, dtype=change.dtype)
        places = index + len(candidates) * MOST_INTERVALS * node
        sums.index_add_(0, places.flatten(), change.expand(len(candidates), -1).flatten())
        sums = sums.view(2**t, len(candidates), MOST_INTERVALS)
        beyond = sums.sum(2, keepdim=True) - sums.cumsum(2)  # beyond each edge
        beyond[:, torch.arange(MOST_INTERVALS) >= intervals.edges[candidates, None]] = torch.inf
        least, k = beyond.min(2)  # [nodes, candidates]
        price = least.clamp(max=0).sum(0)
        chosen = int(price.argmin())
        now = float(change[(codes >> (LEVELS - 1 - t) & 1) == 1].sum())
        if float(price[chosen]) < now - 1e-6 * abs(now):
            columns[t] = candidates[chosen]
            cuts[2**t - 1 : 2 ** (t + 1) - 1] = torch.where(least[:, chosen] < 0, k[:, chosen], NO_CUT).to(torch.uint8)
            codes = intervals.codes(columns, cuts).long()
    return Tree(columns, cuts, codes.to(torch.uint8))

"""A tree improved level by level: column and thresholds of one level, all else fixed, that leave least |R - T|^2.

Tree alternating optimisation (Carreira-Perpinan and Tavallali, 2018), for trees with one column a level. A row r
that goes right instead of left at its node changes the error by (T0 - T1) . (2 R - T0 - T1), T0 and T1 the entries of
the leaves it then falls into, so that a prefix sum over a column's intervals prices each threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from basis_search.families.pq.spec import BUCKETS, LEVELS
from basis_search.families.pq.trees import NEVER


@dataclass(frozen=True)
class Intervals:
    """Thresholds to try for each column, and the interval each value lies in.

    Attributes:
        x: rows [n, in], float64.
        edges: [in, most], infinite beyond a column's last.
        bins: [in, n] numbers of intervals, raised by column times (most + 1).
    """

    x: Tensor
    edges: Tensor
    bins: Tensor

    @classmethod
    def of(cls, x: Tensor, edges: list[Tensor], bins: Tensor) -> Intervals:
        """From each column's thresholds and each value's interval."""
        most = max(1, *(len(e) for e in edges))
        padded = torch.full((len(edges), most), torch.inf, dtype=torch.float64)
        for j, column in enumerate(edges):
            padded[j, : len(column)] = column
        return cls(x, padded, bins + (most + 1) * torch.arange(len(edges))[:, None])


def codes_of(x: Tensor, columns: Tensor, thresholds: Tensor) -> Tensor:
    """Codes [n] of one tree: columns [4], thresholds [15]."""
    return _below(x, columns, thresholds, 0, torch.zeros(len(x), dtype=torch.int64))


def leaf_means(codes: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """Tables [16, q] of one tree, shrunk towards zero."""
    rows = torch.bincount(codes, minlength=BUCKETS)[:, None]
    sums = torch.zeros(BUCKETS, residual.shape[1], dtype=residual.dtype).index_add_(0, codes, residual)
    return sums / (rows + ridge)


def improve(
    intervals: Intervals, residual: Tensor, columns: Tensor, thresholds: Tensor, codes: Tensor, ridge: float
) -> tuple[Tensor, Tensor, Tensor]:
    """One pass over a tree's levels, the last first, on what the other trees leave: residual [n, q].

    Returns columns [4], thresholds [15] and codes [n]; those given stay as they are.
    """
    columns, thresholds = columns.clone(), thresholds.clone()
    for t in reversed(range(LEVELS)):
        table = leaf_means(codes, residual, ridge)
        node = codes >> (LEVELS - t)
        left = table[_below(intervals.x, columns, thresholds, t + 1, 2 * node)]
        right = table[_below(intervals.x, columns, thresholds, t + 1, 2 * node + 1)]
        change = ((left - right) * (2 * residual - left - right)).sum(1)  # [n]
        gain, threshold = _best(intervals, change, node, 2**t)
        j = int(gain.argmin())
        now = float(change[(codes >> (LEVELS - 1 - t) & 1) == 1].sum())
        if float(gain[j]) < now - 1e-9 * abs(now):
            columns[t] = j
            thresholds[2**t - 1 : 2 ** (t + 1) - 1] = threshold[:, j]
            codes = codes_of(intervals.x, columns, thresholds)
    return columns, thresholds, codes


def _below(x: Tensor, columns: Tensor, thresholds: Tensor, level: int, node: Tensor) -> Tensor:
    for t in range(level, LEVELS):
        node = 2 * node + (x[:, columns[t]] > thresholds[2**t - 1 + node]).long()
    return node


def _best(intervals: Intervals, change: Tensor, node: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Least change of the error if a level split on each column [in], and the thresholds that do it [nodes, in]."""
    width, most = intervals.edges.shape
    places = width * (most + 1)
    sums = torch.zeros(nodes * places, dtype=change.dtype)
    sums.index_add_(0, (intervals.bins + places * node).flatten(), change.expand(width, -1).flatten())
    sums = sums.view(nodes, width, most + 1)
    right = sums.sum(2, keepdim=True) - sums.cumsum(2)[:, :, :-1]  # beyond each edge
    right = torch.where(intervals.edges.isfinite(), right, torch.inf)
    least, k = right.min(2)  # [nodes, in]
    threshold = intervals.edges.gather(1, k.T).T
    return least.clamp(max=0).sum(0), torch.where(least < 0, threshold, NEVER)

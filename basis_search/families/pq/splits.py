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
MOST_VALUES = 1 << 25
"""Most values of an intermediate tensor of `grow_plainly`, 256 MB."""
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
        values: [in, 63], infinite beyond a column's last threshold.
        edges: [in] int32, number of thresholds of a column.
        bins: [in, n] uint8, interval of each value.
    """

    values: Tensor
    edges: Tensor
    bins: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Intervals:
        """Thresholds midway between distinct values of x [n, in], or between quantiles of them where there are many."""
        ranked = x.double().T.sort(dim=1).values  # [in, n]
        places = torch.cat([ranked.new_zeros(len(ranked), 1, dtype=torch.bool), ranked.diff(dim=1) > 0], 1).cumsum(1)
        most = MOST_INTERVALS
        size = max(most, ranked.shape[1])
        # The distinct values of each column in order, and infinities after them.
        distinct = ranked.new_full((len(ranked), size), torch.inf).scatter_(1, places, ranked)
        last = places[:, -1:]
        at = torch.linspace(0, 1, most, dtype=torch.float64).to(x.device) * last
        below = at.long()
        weights, above = at - below, at.ceil().long()
        quantiles = torch.lerp(distinct.gather(1, below), distinct.gather(1, above), weights)
        levels = torch.where(last < most, distinct[:, :most], quantiles)
        middles = levels[:, :-1] / 2 + levels[:, 1:] / 2
        fresh = levels[:, :-1] < levels[:, 1:]
        values = torch.where(fresh & torch.isfinite(middles), middles, torch.inf).sort(dim=1).values
        counts = torch.isfinite(values).sum(1).int()
        bins = torch.searchsorted(values, x.double().T.contiguous()).to(torch.uint8)
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
        return self.below(columns, cuts, 0, torch.zeros_like(self.bins[0], dtype=torch.int64)).to(torch.uint8)

    def below(self, columns: Tensor, cuts: Tensor, level: int, node: Tensor) -> Tensor:
        """The leaves that rows reach from nodes [n] of that level."""
        for t in range(level, LEVELS):
            column = self.bins.index_select(0, columns[t : t + 1])[0]
            node = 2 * node + (column > cuts[2**t - 1 + node]).long()
        return node

    def thresholds(self, tree: Tree) -> Tensor:
        """The cuts [15] as values of their columns."""
        levels = torch.cat([tree.columns[t : t + 1].expand(2**t) for t in range(LEVELS)])
        cut = tree.cuts.long()
        found = self.values[levels].gather(1, cut.clamp(max=self.values.shape[1] - 1)[:, None])[:, 0]
        return torch.where(cut == NO_CUT, NEVER, found)


def leaf_means(codes: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """Tables [16, q] of one tree, shrunk towards zero."""
    inside = (codes == torch.arange(BUCKETS, device=codes.device)[:, None]).double()  # [16, n]
    return (inside @ residual.double() / (inside.sum(1, keepdim=True) + ridge)).to(residual.dtype)


def padded(y: Tensor) -> Tensor:
    """Targets [n, q] in float32, q made a multiple of 8 by columns of zeros."""
    return torch.nn.functional.pad(y.float(), (0, -y.shape[1] % WIDTH_MULTIPLE)).contiguous()


def grow(intervals: Intervals, residual: Tensor, candidates: Tensor, ridge: float) -> Tree:
    """Level by level the column, among candidates [k], and cuts that explain most of residual [n, q] (`padded`)."""
    if _cpu is None or residual.device.type != "cpu":
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
    if _cpu is None or residual.device.type != "cpu":
        return improve_plainly(intervals, residual, tree, candidates, ridge)
    better = Tree(tree.columns.clone(), tree.cuts.clone(), tree.codes.clone())
    _cpu.improve(
        intervals.bins, intervals.edges, residual, candidates, ridge, better.columns, better.cuts, better.codes
    )
    return better


def grow_plainly(intervals: Intervals, residual: Tensor, candidates: Tensor, ridge: float) -> Tree:
    """`grow` without the compiled module, for any device; no value is read.

    Both take the first of candidates and cuts that explain most. They add in another order and width, so candidates
    whose errors differ by less than rounding are ties that they may resolve differently.
    """
    n, device = len(residual), residual.device
    counted = torch.cat([residual.double(), residual.new_ones(n, 1, dtype=torch.float64)], 1)
    columns, cuts, node = [], [], torch.zeros(n, dtype=torch.int64, device=device)
    step = max(1, MOST_VALUES // counted.numel())
    for t in range(LEVELS):
        found = [_cuts(intervals, counted, tried, node, 2**t, ridge) for tried in torch.split(candidates, step)]
        least, k = torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])  # [candidates, nodes]
        pick = least.clamp(max=0).sum(1).argmin().view(1)
        column = candidates.index_select(0, pick)
        chosen = torch.where(least < 0, k, NO_CUT).index_select(0, pick)[0]
        columns.append(column)
        cuts.append(chosen)
        node = 2 * node + (intervals.bins.index_select(0, column)[0] > chosen[node]).long()
    return Tree(torch.cat(columns), torch.cat(cuts).to(torch.uint8), node.to(torch.uint8))


def _cuts(
    intervals: Intervals, counted: Tensor, tried: Tensor, node: Tensor, nodes: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """For columns `tried` [k]: the least price of a cut and the cut, [k, nodes]; counted [n, q + 1] ends with ones.

    Rows sorted by node and interval are added up by one prefix sum, always in the same order.
    """
    count, places = len(tried), nodes * MOST_INTERVALS
    key = node * MOST_INTERVALS + intervals.bins.index_select(0, tried).long()  # [k, n]
    ranked, order = key.sort(dim=1, stable=True)
    prefix = counted[order].cumsum(1)  # [k, n, q + 1]
    prefix = torch.cat([prefix.new_zeros(count, 1, prefix.shape[2]), prefix], 1)
    wanted = torch.arange(places, device=key.device).expand(count, places).contiguous()
    ends = torch.searchsorted(ranked, wanted, right=True)
    upto = prefix.gather(1, ends[:, :, None].expand(-1, -1, prefix.shape[2])).view(count, nodes, MOST_INTERVALS, -1)
    first = torch.searchsorted(ranked, wanted[:, ::MOST_INTERVALS].contiguous())  # [k, nodes]
    before = prefix.gather(1, first[:, :, None].expand(-1, -1, prefix.shape[2]))[:, :, None]
    head = upto - before
    tail = head[:, :, -1:] - head
    price = -sum(part[..., :-1].square().sum(3) / (part[..., -1] + ridge) for part in (head, tail))
    assert isinstance(price, Tensor)
    allowed = torch.arange(MOST_INTERVALS, device=key.device) < intervals.edges.index_select(0, tried)[:, None, None]
    price = price.nan_to_num(nan=0.0).masked_fill(~allowed, torch.inf)
    least, k = price.min(2)
    return least, k


def improve_plainly(intervals: Intervals, residual: Tensor, tree: Tree, candidates: Tensor, ridge: float) -> Tree:
    """`improve` without the compiled module, for any device; no value is read. Ties as in `grow_plainly`."""
    columns, cuts, codes = tree.columns.clone(), tree.cuts.clone(), tree.codes.long()
    bins = intervals.bins.index_select(0, candidates).long()  # [k, n]
    edges = intervals.edges.index_select(0, candidates)[:, None]
    allowed = torch.arange(MOST_INTERVALS, device=bins.device) < edges
    for t in reversed(range(LEVELS)):
        table = leaf_means(codes, residual, ridge)
        node = codes >> (LEVELS - t)
        left = table[intervals.below(columns, cuts, t + 1, 2 * node)]
        right = table[intervals.below(columns, cuts, t + 1, 2 * node + 1)]
        change = ((left - right) * (2 * residual - left - right)).sum(1)  # [n]
        ranked, order = (node * MOST_INTERVALS + bins).sort(dim=1, stable=True)
        prefix = torch.nn.functional.pad(change.double()[order].cumsum(1), (1, 0))  # [k, n + 1]
        wanted = torch.arange(2**t * MOST_INTERVALS, device=bins.device).expand(len(bins), -1).contiguous()
        upto = prefix.gather(1, torch.searchsorted(ranked, wanted, right=True)).view(len(bins), 2**t, MOST_INTERVALS)
        beyond = (upto[:, :, -1:] - upto).masked_fill(~allowed[:, None], torch.inf)  # beyond each edge
        least, k = beyond.min(2)  # [candidates, nodes]
        price = least.clamp(max=0).sum(1)
        chosen = price.argmin().view(1)
        now = torch.where((codes >> (LEVELS - 1 - t) & 1) == 1, change.double(), 0).sum()
        better = price.index_select(0, chosen)[0] < now - 1e-6 * now.abs()
        nodes = slice(2**t - 1, 2 ** (t + 1) - 1)
        new = torch.where(least < 0, k, NO_CUT).index_select(0, chosen)[0].to(torch.uint8)
        columns[t] = torch.where(better, candidates.index_select(0, chosen)[0], columns[t])
        cuts[nodes] = torch.where(better, new, cuts[nodes])
        codes = intervals.codes(columns, cuts).long()
    return Tree(columns, cuts, codes.to(torch.uint8))

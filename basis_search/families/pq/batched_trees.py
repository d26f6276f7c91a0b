"""The hash trees of all codebooks learnt together, as `trees.py` learns one on the CPU; the host reads no decision."""

from __future__ import annotations

import torch
from torch import Tensor

from basis_search.families.pq.spec import LEVELS, bounds
from basis_search.families.pq.trees import CANDIDATE_COLUMNS, NEVER
from basis_search.families.protocol import batched_eigh

MOST_VALUES = 1 << 25
"""Values of the largest intermediate tensor, 256 MB, of which six are in memory at a time."""


def learn_trees(
    x: Tensor,
    codebooks: int,
    *,
    candidates: int = CANDIDATE_COLUMNS,
    levels_of_8_bits: bool = True,
    roots: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The trees of all codebooks on x [n, in], float64; roots [C, d, d] of the groups' metrics, or None.

    Returns split columns [C, 4] int64, thresholds [C, 15] float64 (node i of level t at 2^t - 1 + i) and the codes
    [n, C] int64 they give. With `levels_of_8_bits` the thresholds of a level lie on a grid of 255 steps over the
    column's range, so that integer inputs of 8 bits can be compared as they are.

    Of columns or thresholds that leave the same error, the first is taken; sums are rounded in another order on every
    device, so errors that differ by less than that are ties which devices may resolve differently.
    """
    starts = torch.tensor(bounds(x.shape[1], codebooks), device=x.device)
    parts, widths = grouped(x, codebooks), starts.diff()
    each = min(candidates, parts.shape[1]) * parts[0].numel()
    step = max(1, MOST_VALUES // each)
    found = [
        _learn(
            parts[c : c + step],
            widths[c : c + step],
            candidates,
            levels_of_8_bits,
            None if roots is None else roots[c : c + step],
        )
        for c in range(0, codebooks, step)
    ]
    columns, thresholds, codes = (torch.cat(of_all) for of_all in zip(*found, strict=True))
    return columns + starts[:-1, None], thresholds, codes.T


def grouped(x: Tensor, codebooks: int) -> Tensor:
    """x [n, in] as the columns of each codebook's group, [C, width, n]; narrower groups get a column of zeros."""
    starts = bounds(x.shape[1], codebooks)
    width = starts[1]
    wide = starts[-1] - codebooks * (width - 1)  # codebooks of full width, which come first
    columns = x.T
    full = columns[: wide * width].reshape(wide, width, len(x))
    if wide == codebooks:
        return full.contiguous()
    rest = columns[wide * width :].reshape(codebooks - wide, width - 1, len(x))
    return torch.cat([full, torch.nn.functional.pad(rest, (0, 0, 0, 1))])


def group_roots(felt: Tensor, codebooks: int) -> Tensor:
    """Roots [C, d, d] of the groups' metrics: R R^T = F_c^T F_c, F_c the columns of felt weights F [out, in]."""
    parts = grouped(felt, codebooks)
    values, axes = batched_eigh(parts @ parts.mT)
    return axes * values.clamp_min(0).sqrt()[:, None]


def _learn(
    parts: Tensor, widths: Tensor, candidates: int, grid: bool, roots: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Columns [c, 4] within the groups, thresholds [c, 15] and codes [c, n] for parts [c, d, n] of those widths [c]."""
    count, d, n = parts.shape
    each = torch.arange(count, device=parts.device)
    padding = torch.arange(d, device=parts.device) >= widths[:, None]  # [c, d]
    felt = parts if roots is None else roots.mT @ parts
    weights = torch.ones_like(parts[:, :, 0]) if roots is None else roots.square().sum(2)
    squares = parts.square().sum(2)
    node = torch.zeros(count, n, dtype=torch.int64, device=parts.device)
    columns, thresholds = [], []
    for t in range(LEVELS):
        inside = (node[:, None] == torch.arange(2**t, device=parts.device)[:, None]).double()  # [c, nodes, n]
        counts, sums = inside.sum(2), inside @ parts.mT
        loss = squares - (sums.square() / counts.clamp_min(1)[:, :, None]).sum(1)  # [c, d]: over all nodes
        loss = (weights * loss).masked_fill(padding, -torch.inf)
        tried = loss.sort(dim=1, descending=True, stable=True).indices[:, :candidates]
        gains, values = _best_thresholds(parts, felt, tried, node, counts.long())
        gains = gains.masked_fill(padding.gather(1, tried), -torch.inf)
        pick, best = torch.zeros_like(each), gains[:, 0]
        for k in range(1, tried.shape[1]):
            better = gains[:, k] > best * (1 + 1e-12)
            pick, best = torch.where(better, k, pick), torch.where(better, gains[:, k], best)
        column, value = tried[each, pick], values[each, pick]
        along = parts[each, column]  # [c, n]
        if grid:
            value = _on_grid(value, along)
        columns.append(column)
        thresholds.append(value)
        node = 2 * node + (along > value.gather(1, node)).long()
    return torch.stack(columns, 1), torch.cat(thresholds, 1), node


def _best_thresholds(parts: Tensor, felt: Tensor, tried: Tensor, node: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """For splits of parts [c, d, n] on columns `tried` [c, m]: the reduction of squared error of `felt` [c, m], and the
    threshold of each node [c, m, nodes].

    With h rows and column sums S in the head, the error falls by |S|^2/h + |S'|^2/(n-h) - |S+S'|^2/n; the sum of
    squares never changes, so prefix sums of x alone decide.
    """
    (count, d, n), m, nodes = parts.shape, tried.shape[1], counts.shape[1]
    keys = parts.gather(1, tried[:, :, None].expand(-1, -1, n))
    order = keys.sort(dim=2, stable=True).indices
    ranks = node[:, None].expand(-1, m, -1).gather(2, order)
    by_node = ranks.to(torch.uint8).sort(dim=2, stable=True).indices
    order = order.gather(2, by_node)  # by node, then by value
    keys, where = keys.gather(2, order), ranks.gather(2, by_node)
    ranked = felt[:, None].expand(-1, m, -1, -1).gather(3, order[:, :, None].expand(-1, -1, d, -1))  # [c, m, d, n]
    prefix = torch.nn.functional.pad(ranked.cumsum(3), (1, 0))
    ends = counts.cumsum(1)
    starts = ends - counts
    wide = (count, m, d, nodes)
    before = prefix.gather(3, starts[:, None, None].expand(wide))
    total = prefix.gather(3, ends[:, None, None].expand(wide)) - before
    place = where[:, :, None].expand(-1, -1, d, -1)
    head = prefix[..., 1:] - before.gather(3, place)
    tail = total.gather(3, place) - head
    above = torch.arange(1, n + 1, device=parts.device) - starts.gather(1, where.flatten(1)).view(where.shape)
    below = counts.gather(1, where.flatten(1)).view(where.shape) - above
    gain = head.square().sum(2) / above + tail.square().sum(2) / below.clamp_min(1)
    splits = below > 0
    splits[..., :-1] &= keys[..., :-1] < keys[..., 1:]  # equal values cannot be separated
    gain = gain.masked_fill(~splits, -torch.inf)
    best = gain.new_full((count, m, nodes), -torch.inf).scatter_reduce(2, where, gain, "amax")
    first = torch.where(splits & (gain == best.gather(2, where)), torch.arange(n, device=parts.device), n)
    k = first.new_full((count, m, nodes), n).scatter_reduce(2, where, first, "amin")
    found = k < n
    k = k.clamp_max(max(0, n - 2))
    values = torch.where(found, keys.gather(2, k) / 2 + keys.gather(2, (k + 1).clamp_max(n - 1)) / 2, NEVER)
    fallen = best - total.square().sum(2) / counts[:, None].clamp_min(1)
    return torch.where(found, fallen, 0).sum(2), values


def _on_grid(thresholds: Tensor, values: Tensor) -> Tensor:
    """Thresholds [c, nodes] on the grid of 255 steps over the range of values [c, n]."""
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    step = (high - low) / 255
    nearest = low + ((thresholds - low) / step).round().clamp(0, 254) * step
    return torch.where((thresholds == NEVER) | (high <= low), thresholds, nearest)

"""Hash trees of depth 4, one split column per level, one threshold per node: i <- 2i + (x[j_t] > v[t, i]).

Learnt level by level as in MADDNESS (arXiv 2106.10860, Algorithm 2): among the columns of largest within-bucket squared
error, the one whose best thresholds leave the least, counted over all columns of the codebook's group.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from basis_search.families.pq.spec import BUCKETS, LEVELS

CANDIDATE_COLUMNS = 4
"""Columns tried at each level: those of largest variance within the buckets."""
NEVER = float(np.finfo(np.float32).max)
"""Threshold of a node with nothing to split: no finite value is larger."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def learn_tree(
    x: Floats,
    columns: Ints,
    *,
    candidates: int = CANDIDATE_COLUMNS,
    levels_of_8_bits: bool = True,
    root: Floats | None = None,
) -> tuple[Ints, Floats, Ints]:
    """One tree on x [n, d], whose columns are numbered `columns` in the layer; root [d, d] of its metric, or None.

    Returns split columns [4], thresholds [15] (node i of level t at 2^t - 1 + i) and the codes [n] they give.
    With `levels_of_8_bits` the thresholds of a level lie on a grid of 255 steps over the column's range, so that
    integer inputs of 8 bits can be compared as they are.
    """
    n, d = x.shape
    felt = x if root is None else np.ascontiguousarray(x @ root)
    gains = np.ones(d) if root is None else (root * root).sum(1)
    order_of: dict[int, Ints] = {}
    bucket = np.zeros(n, np.int16)
    splits, thresholds = np.empty(LEVELS, np.int64), np.full(BUCKETS - 1, NEVER)
    for t in range(LEVELS):
        counts, sums = _bucket_sums(x, bucket, 2**t)
        loss = (x * x).sum(0) - (sums**2 / np.maximum(counts, 1)[:, None]).sum(0)  # [d]: SSE summed over buckets
        loss *= gains
        best: tuple[float, int, Floats] | None = None
        for j in np.argsort(-loss, kind="stable")[: min(candidates, d)].tolist():
            if j not in order_of:
                order_of[j] = np.argsort(x[:, j], kind="stable")
            gain, values = _best_thresholds(felt, x[:, j], order_of[j], bucket, counts)
            if best is None or gain > best[0] * (1 + 1e-12):
                best = gain, j, values
        assert best is not None
        _, j, values = best
        if levels_of_8_bits:
            values = _on_grid(values, x[:, j])
        splits[t] = columns[j]
        thresholds[2**t - 1 : 2 ** (t + 1) - 1] = values
        bucket = (2 * bucket + (x[:, j] > values[bucket])).astype(np.int16)
    return splits, thresholds, bucket.astype(np.int64)


def _bucket_sums(x: Floats, bucket: NDArray[np.int16], buckets: int) -> tuple[Ints, Floats]:
    """Rows and column sums of each bucket: [buckets], [buckets, d]."""
    one_hot = (bucket[None, :] == np.arange(buckets)[:, None]).astype(np.float64)
    return one_hot.sum(1).astype(np.int64), one_hot @ x


def _best_thresholds(
    x: Floats, along: Floats, order: Ints, bucket: NDArray[np.int16], counts: Ints
) -> tuple[float, Floats]:
    """For a split on a column `along` [n]: the reduction of squared error of x, and the threshold of each bucket.

    With h rows and column sums S in the head, the error falls by |S|^2/h + |S'|^2/(n-h) - |S+S'|^2/n; the sum of
    squares never changes, so prefix sums of x alone decide.
    """
    order = order[np.argsort(bucket[order], kind="stable")]  # by bucket, then by value
    ranked = x[order]
    prefix = np.cumsum(ranked, axis=0)
    key = along[order]
    thresholds = np.full(len(counts), NEVER)
    gain_total = 0.0
    end = 0
    for b, count in enumerate(counts.tolist()):
        start, end = end, end + count
        if count < 2:
            continue
        before = prefix[start - 1] if start else np.zeros(x.shape[1])
        head = prefix[start : end - 1] - before  # [count - 1, d]
        total = prefix[end - 1] - before
        h = np.arange(1, count)
        gain = np.einsum("nd,nd->n", head, head) / h
        tail = total - head
        gain += np.einsum("nd,nd->n", tail, tail) / (count - h)
        gain[key[start : end - 1] >= key[start + 1 : end]] = -np.inf  # equal values cannot be separated
        k = int(gain.argmax())
        if not np.isfinite(gain[k]):
            continue
        gain_total += float(gain[k] - total @ total / count)
        thresholds[b] = key[start + k] / 2 + key[start + k + 1] / 2
    return gain_total, thresholds


def _on_grid(thresholds: Floats, values: Floats) -> Floats:
    low, high = float(values.min()), float(values.max())
    if not high > low:
        return thresholds
    step = (high - low) / 255
    nearest = low + np.clip(np.round((thresholds - low) / step), 0, 254) * step
    return np.where(thresholds == NEVER, NEVER, nearest)

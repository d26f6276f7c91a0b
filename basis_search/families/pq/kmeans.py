"""16 centroids per codebook, minimising sum |x_c - p[code]|^2: greedy k-means++, then Lloyd's iteration.

Arthur and Vassilvitskii, k-means++: the advantages of careful seeding, 2007.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from basis_search.families.pq.spec import BUCKETS, bounds

RESTARTS = 2
"""Runs from different starts, of which the best is returned."""
MOST_ROWS = 8192
"""Most rows used, taken at a stride: more of them move 16 centroids by less than a restart does."""
SEED_DRAWS = 4
"""Candidates drawn for each starting centroid, of which the best is taken (greedy k-means++)."""


def learn_centroids(
    x: Tensor,
    codebooks: int,
    *,
    k: int = BUCKETS,
    iterations: int = 25,
    seed: int = 0,
    roots: Tensor | None = None,
) -> Tensor:
    """x [n, in] -> centroids [k, in], those of codebook c in its columns. Deterministic for a seed.

    A call assigns rows by plain distances. With `roots` R [C, width, width] of the groups' metrics, each codebook takes
    the means of plain clusters or of clusters in its metric: those whose cells leave the least |R^T (x - mean)|^2.
    """
    x = x[:: -(-len(x) // MOST_ROWS)]
    starts = bounds(x.shape[1], codebooks)
    width = starts[1] - starts[0]  # of the widest group; narrower ones get a column of zeros, which changes no distance
    parts = x.new_zeros(codebooks, len(x), width)
    for c, (begin, end) in enumerate(itertools.pairwise(starts)):
        parts[c, :, : end - begin] = x[:, begin:end]
    generator = torch.Generator().manual_seed(seed)
    best, best_loss = None, None
    drawn = [_draws(codebooks, len(x), k, x.dtype, generator) for _ in range(RESTARTS)]  # on the CPU: one copy each
    for first, shares in [(first.to(x.device), shares.to(x.device)) for first, shares in drawn]:
        centroids, loss = _lloyd(parts, _plus_plus(parts, first, shares), iterations)
        if best is None or best_loss is None:
            best, best_loss = centroids, loss
        else:
            better = loss < best_loss
            best = torch.where(better[:, None, None], centroids, best)
            best_loss = torch.where(better, loss, best_loss)
    assert best is not None
    if roots is not None:
        felt = parts @ roots.to(parts)
        first, shares = (part.to(x.device) for part in drawn[0])
        clusters, _ = _lloyd(felt, _plus_plus(felt, first, shares), iterations)
        other = _means(parts, _distances(felt, clusters).argmin(2), best)
        better = _felt_loss(parts, felt, other) < _felt_loss(parts, felt, best)
        best = torch.where(better[:, None, None], other, best)
    return torch.cat([best[c, :, : end - begin] for c, (begin, end) in enumerate(itertools.pairwise(starts))], 1)


def _distances(parts: Tensor, centroids: Tensor) -> Tensor:
    """|x - p|^2 - |x|^2 for each codebook: [C, n, k]."""
    return torch.baddbmm(centroids.square().sum(2)[:, None, :], parts, centroids.mT, alpha=-2)


def _draws(codebooks: int, n: int, k: int, dtype: torch.dtype, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random numbers of a start, the same on every device: rows [C], and shares in 0 .. 1 [k - 1, C, SEED_DRAWS]."""
    first = torch.randint(n, (codebooks,), generator=generator)
    shares = [torch.rand(codebooks, SEED_DRAWS, generator=generator, dtype=dtype) for _ in range(1, k)]
    return first, torch.stack(shares)


def _plus_plus(parts: Tensor, first: Tensor, shares: Tensor) -> Tensor:
    """Each next centre is the best of a few rows drawn in proportion to their squared distance."""
    codebooks, n, _ = parts.shape
    squares = parts.square().sum(2)  # [C, n]
    rows = torch.arange(codebooks, device=parts.device)
    centres = [parts[rows, first]]
    nearest = (squares + _distances(parts, centres[0][:, None])[:, :, 0]).clamp_(min=0)
    for share in shares:
        weights = nearest.cumsum(1)  # [C, n]
        picks = torch.searchsorted(weights, share * weights[:, -1:]).clamp_(max=n - 1)  # [C, SEED_DRAWS]
        candidates = parts[rows[:, None], picks]  # [C, SEED_DRAWS, width]
        distance = torch.minimum(
            (squares[:, :, None] + _distances(parts, candidates)).clamp_(min=0), nearest[:, :, None]
        )
        choice = distance.sum(1).argmin(1)
        centres.append(candidates[rows, choice])
        nearest = distance[rows, :, choice]
    return torch.stack(centres, 1)


def _means(parts: Tensor, codes: Tensor, empty: Tensor) -> Tensor:
    """The means [C, k, width] of the rows of each code, and where there are none those of `empty`."""
    one_hot = parts.new_zeros(*codes.shape, empty.shape[1]).scatter_(2, codes[:, :, None], 1.0)
    counts = one_hot.sum(1)[:, :, None]
    return torch.where(counts == 0, empty, one_hot.mT @ parts / counts.clamp(min=1))


def _felt_loss(parts: Tensor, felt: Tensor, centroids: Tensor) -> Tensor:
    """[C]: squared distances of `felt` to their means in the cells of centroids of `parts`, less a constant."""
    codes = _distances(parts, centroids).argmin(2)
    one_hot = parts.new_zeros(*codes.shape, centroids.shape[1]).scatter_(2, codes[:, :, None], 1.0)
    return -((one_hot.mT @ felt).square().sum(2) / one_hot.sum(1).clamp(min=1)).sum(1)


def _lloyd(parts: Tensor, centroids: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Centroids [C, k, width] and the squared error [C] before their last move; one value is read per iteration."""
    codebooks, n, _ = parts.shape
    k = centroids.shape[1]
    loss = parts.new_full((codebooks,), torch.inf)
    for _ in range(iterations):
        nearest, codes = _distances(parts, centroids).min(2)  # [C, n]
        new_loss = nearest.sum(1)
        one_hot = parts.new_zeros(codebooks, n, k).scatter_(2, codes[:, :, None], 1.0)
        counts = one_hot.sum(1)[:, :, None]  # a sum by products: added by index on a GPU, its rounding would vary
        moved = one_hot.mT @ parts / counts.clamp(min=1)
        centroids = torch.where(counts == 0, centroids, moved)
        if bool((loss - new_loss <= 1e-7 * new_loss.abs()).all()):
            break
        loss = new_loss
    nearest, _ = _distances(parts, centroids).min(2)
    return centroids, nearest.sum(1)

"""Trees regrown on the output's residual, one after another: code_c minimises |Y - sum_{c' != c} T_c' - T_c|^2.

MADDNESS fits each tree to its own group of input columns. Here each tree may split on any column, sees what the other
codebooks have left of the outputs, and all tables are refitted together (backfitting of an additive model, Hastie and
Tibshirani 1990). The outputs of any input are known exactly, so rows are added between neighbouring ones against
over-fitting, and tables are shrunk towards those of the shallower tree (hierarchical shrinkage, arXiv 2202.00858).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.pq.descent import Intervals, codes_of, improve, leaf_means
from basis_search.families.pq.fit import learn_encoder, store_table
from basis_search.families.pq.reference import encode
from basis_search.families.pq.spec import BUCKETS, LEVELS, Spec, check
from basis_search.families.pq.trees import NEVER
from basis_search.family import Params
from basis_search.layer import Layer

PASSES = 2
RESTARTS = 2
BINS = 64
NEIGHBOURS = 8
SPREAD = (0.5, 0.7)
COPIES = 8
MOST_ROWS = 16384
TARGETS = 32
CANDIDATES = 12
DESCENT_ROWS = 5120
KICKS = 240
"""Trees regrown in search of better ones, over the number of codebooks."""
MOST_WORK = 1 << 26
"""Rows x columns x codebooks beyond which trees are not improved further."""


def fit_refined(spec: Spec, layer: Layer, *, seed: int = 0) -> Params:
    """As `fit`, with refined trees and tables; deterministic. k-means codes keep their centroids.

    Greedy trees differ from one set of added rows to the next; of two, the one that serves the given rows best stays.

    Raises:
        BadInput: as `fit`.
    """
    check(spec, layer.in_features, len(layer.inputs))
    given = layer.inputs.to(layer.dtype)
    wanted = given.double() @ layer.weight.double().T
    best, least = None, float("inf")
    for restart in range(RESTARTS if spec.encoder == "tree" else 1):
        encoder, table = _fit_once(spec, layer, seed + restart)
        codes = encode(spec, encoder, given)
        error = float((sum(table[c][codes[:, c]] for c in range(spec.codebooks)) - wanted).square().sum())
        if best is None or error < least:
            best, least = (encoder, table), error
    assert best is not None
    params = best[0] | store_table(best[1], spec.table)
    if layer.bias is not None:
        params["bias"] = layer.bias.to(layer.dtype)
    return params


def _fit_once(spec: Spec, layer: Layer, seed: int) -> tuple[Params, Tensor]:
    """The encoder, and tables [C, 16, out] in float64."""
    x = between_neighbours(layer.inputs.double(), seed).to(layer.dtype)
    weight = layer.weight.double()
    params = learn_encoder(spec, x)
    mean = x.double().mean(0)
    ridge = len(x) / len(layer.inputs)
    if spec.encoder == "tree":
        y = _principal((x.double() - mean) @ weight.T)
        params = _regrow(spec, params, x, y, ridge)
        if x.numel() * spec.codebooks <= MOST_WORK:
            given = len(layer.inputs)  # the rows themselves, and as many of the added ones as are taken here
            some = torch.arange(len(x)) < max(given, min(DESCENT_ROWS, len(x)))
            params = _descend(params, x[some], y[some], float(some.sum()) / given, seed)
    codes = encode(spec, params, x)
    table = nested_ridge(codes, x.double() - mean, ridge, trees=spec.encoder == "tree") @ weight.T  # [16 C, out]
    return params, (table + (weight @ mean) / spec.codebooks).view(spec.codebooks, BUCKETS, -1)


def between_neighbours(x: Tensor, seed: int) -> Tensor:
    """x [n, in] and up to 8 further rows for each: moved by part of the difference of two of its nearest neighbours."""
    n = len(x)
    copies = min(COPIES, MOST_ROWS // n - 1)
    neighbours = min(NEIGHBOURS, n - 1)
    if copies < 1 or neighbours < 2:
        return x
    nearest = torch.cdist(x, x).topk(neighbours + 1, largest=False).indices[:, 1:]  # [n, neighbours]
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(n)
    result = [x]
    for _ in range(copies):
        one, other = (nearest[rows, torch.randint(neighbours, (n,), generator=generator)] for _ in range(2))
        low, high = SPREAD
        share = low + (high - low) * torch.rand(n, 1, generator=generator, dtype=x.dtype)
        result.append(x + share * (x[one] - x[other]))
    return torch.cat(result)


def nested_ridge(codes: Tensor, target: Tensor, ridge: float, *, trees: bool) -> Tensor:
    """Tables [16 C, columns] as sums over the nodes on each leaf's path, every node's share penalised alike.

    A leaf with few rows so falls back on its parent rather than on zero. Without trees the leaves stand alone.
    """
    size = BUCKETS * codes.shape[1]
    levels = range(1, LEVELS + 1) if trees else [LEVELS]
    paths = [F.one_hot(torch.arange(BUCKETS) >> (LEVELS - s), 2**s).double() for s in levels]
    path = torch.kron(torch.eye(codes.shape[1], dtype=torch.float64), torch.cat(paths, 1))  # [16 C, nodes]
    index = codes + BUCKETS * torch.arange(codes.shape[1])
    one_hot = torch.zeros(len(codes), size).scatter_(1, index, 1.0)
    gram = path.T @ (one_hot.T @ one_hot).double() @ path
    gram.diagonal().add_(ridge)
    moment = path.T @ (one_hot.double().T @ target)
    result: Tensor = path @ torch.cholesky_solve(moment, torch.linalg.cholesky(gram))
    return result


def _principal(y: Tensor) -> Tensor:
    """The centred outputs in at most 32 principal directions, which hold nearly all of their energy."""
    if y.shape[1] <= TARGETS:
        return y
    directions: Tensor = torch.linalg.eigh(y.T @ y)[1]
    return y @ directions[:, -TARGETS:]


def _regrow(spec: Spec, params: Params, x: Tensor, y: Tensor, ridge: float) -> Params:
    """Backfitting: each tree in turn is grown anew on what the others leave of y [n, q]."""
    values = x.double()
    edges, bins = _bins(values)
    split, thresholds = params["split_columns"].clone(), params["thresholds"].clone()
    codes = encode(spec, params, x)
    for _ in range(PASSES):
        table = nested_ridge(codes, y, ridge, trees=True).view(spec.codebooks, BUCKETS, -1)
        rest = y - sum(table[c][codes[:, c]] for c in range(spec.codebooks))
        for c in range(spec.codebooks):
            residual = rest + table[c][codes[:, c]]
            columns, nodes = _grow(values, residual, edges, bins)
            split[c], thresholds[c] = columns.int(), nodes.clamp(max=torch.finfo(x.dtype).max).to(x.dtype)
            tree = {"split_columns": split[c : c + 1], "thresholds": thresholds[c : c + 1]}
            codes[:, c] = encode(Spec(1), tree, x)[:, 0]
            rows = torch.bincount(codes[:, c], minlength=BUCKETS)[:, None]
            table[c] = torch.zeros_like(table[c]).index_add_(0, codes[:, c], residual) / (rows + ridge)
            rest = residual - table[c][codes[:, c]]
    return {"split_columns": split, "thresholds": thresholds}


def _descend(params: Params, x: Tensor, y: Tensor, ridge: float, seed: int) -> Params:
    """Trees improved in turn; then, again and again, one regrown from half of the columns and kept if better."""
    values = x.double()
    edges, bins = _bins(values)
    intervals = Intervals.of(values, edges, bins)
    state = params["split_columns"].long(), params["thresholds"].double()
    codes = torch.stack([codes_of(values, *tree) for tree in zip(*state, strict=True)], 1)
    generator = torch.Generator().manual_seed(seed)
    columns, thresholds, codes, least = _sweep(intervals, y, *state, codes, ridge)
    for _ in range(KICKS // len(columns)):
        c = int(torch.randint(len(columns), (1,), generator=generator))
        table = nested_ridge(codes, y, ridge, trees=True).view(len(columns), BUCKETS, -1)
        residual = y - _summed(table, codes) + table[c][codes[:, c]]
        half = torch.randperm(values.shape[1], generator=generator)[: max(LEVELS, values.shape[1] // 2)]
        within, nodes = _grow(values[:, half], residual, [edges[j] for j in half.tolist()], bins[half])
        tried = columns.clone(), thresholds.clone(), codes.clone()
        tried[0][c], tried[1][c] = half[within], nodes
        tried[2][:, c] = codes_of(values, half[within], nodes)
        found = _sweep(intervals, y, *tried, ridge)
        if found[3] < least:
            columns, thresholds, codes, least = found
    limit = torch.finfo(x.dtype).max
    return {"split_columns": columns.int(), "thresholds": thresholds.clamp(max=limit).to(x.dtype)}


def _sweep(
    intervals: Intervals, y: Tensor, columns: Tensor, thresholds: Tensor, codes: Tensor, ridge: float
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Every tree improved once, and the error that then is left."""
    columns, thresholds, codes = columns.clone(), thresholds.clone(), codes.clone()
    table = nested_ridge(codes, y, ridge, trees=True).view(len(columns), BUCKETS, -1)
    rest = y - _summed(table, codes)
    for c in range(len(columns)):
        residual = rest + table[c][codes[:, c]]
        columns[c], thresholds[c], codes[:, c] = improve(
            intervals, residual, columns[c], thresholds[c], codes[:, c], ridge
        )
        rest = residual - leaf_means(codes[:, c], residual, ridge)[codes[:, c]]
    table = nested_ridge(codes, y, ridge, trees=True).view(len(columns), BUCKETS, -1)
    return columns, thresholds, codes, float((y - _summed(table, codes)).square().sum())


def _summed(table: Tensor, codes: Tensor) -> Tensor:
    total = table[0][codes[:, 0]]
    for c in range(1, len(table)):
        total = total + table[c][codes[:, c]]
    return total


def _bins(x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Thresholds to try for each column, at most 63, and the interval each value falls into: [in, n]."""
    edges, bins = [], []
    for column in x.T.contiguous():
        distinct = torch.unique(column)
        if len(distinct) > BINS:
            distinct = torch.quantile(distinct, torch.linspace(0, 1, BINS, dtype=x.dtype))
            distinct = torch.unique(distinct)
        middles = distinct[:-1] / 2 + distinct[1:] / 2
        edges.append(middles)
        bins.append(torch.bucketize(column, middles))
    return edges, torch.stack(bins)


def _grow(x: Tensor, y: Tensor, edges: list[Tensor], bins: Tensor) -> tuple[Tensor, Tensor]:
    """One oblivious tree on targets y [n, q]: split columns [4] and thresholds [15]."""
    bucket = torch.zeros(len(x), dtype=torch.int64)
    columns = torch.zeros(LEVELS, dtype=torch.int64)
    thresholds = torch.full((BUCKETS - 1,), NEVER, dtype=torch.float64)
    counted = torch.cat([y, torch.ones(len(y), 1, dtype=y.dtype)], 1)
    for t in range(LEVELS):
        best: tuple[float, int, Tensor] | None = None
        for j in _promising(x, y, bucket, 2**t):
            if len(edges[j]) == 0:
                continue
            gain, k = _gain(counted, bucket, bins[j], 2**t, len(edges[j]) + 1)
            if best is None or gain > best[0]:
                best = gain, j, k
        if best is None:
            break
        _, j, k = best
        columns[t] = j
        thresholds[2**t - 1 : 2 ** (t + 1) - 1] = edges[j][k]
        bucket = 2 * bucket + (x[:, j] > edges[j][k][bucket]).long()
    return columns, thresholds


def _promising(x: Tensor, y: Tensor, bucket: Tensor, buckets: int) -> list[int]:
    """The columns that explain most of y linearly within the buckets: sum of |cov(x_j, y)|^2 / var(x_j)."""
    if x.shape[1] <= CANDIDATES:
        return list(range(x.shape[1]))
    score = torch.zeros(x.shape[1], dtype=x.dtype)
    for b in range(buckets):
        rows = bucket == b
        if int(rows.sum()) < 2:
            continue
        part, target = x[rows], y[rows]
        part = part - part.mean(0)
        variance = part.square().sum(0)
        explained = (part.T @ target).square().sum(1) / variance.clamp(min=1e-300)
        score += torch.where(variance > 0, explained, 0.0)
    found: list[int] = score.topk(CANDIDATES).indices.tolist()
    return found


def _gain(counted: Tensor, bucket: Tensor, bins: Tensor, buckets: int, intervals: int) -> tuple[float, Tensor]:
    """What the best thresholds on one column explain, up to a constant; the last interval of each head: [buckets]."""
    histogram = torch.zeros(buckets * intervals, counted.shape[1], dtype=counted.dtype)
    histogram.index_add_(0, bucket * intervals + bins, counted)
    prefix = histogram.view(buckets, intervals, -1).cumsum(1)
    head = prefix[:, :-1]
    tail = prefix[:, -1:] - head
    explained = sum(part[..., :-1].square().sum(2) / part[..., -1].clamp(min=1) for part in (head, tail))
    assert isinstance(explained, Tensor)
    gain, k = explained.max(1)
    return float(gain.sum()), k

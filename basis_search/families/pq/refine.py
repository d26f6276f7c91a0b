"""Trees regrown on the output's residual, one after another: code_c minimises |Y - sum_{c' != c} T_c' - T_c|^2.

MADDNESS fits each tree to its own group of input columns. Here each tree may split on any column and is fitted to the
residual of the other codebooks, and all tables are refitted together (backfitting of an additive model, Hastie and
Tibshirani 1990). The output of any input can be computed, so rows interpolated between neighbours are added against
over-fitting, and tables are shrunk towards those of the shallower tree (hierarchical shrinkage, arXiv 2202.00858).
"""

from __future__ import annotations

import torch
from torch import Tensor

from basis_search.families.pq.fit import layer_roots, learn_encoder, store_table
from basis_search.families.pq.nested_tables import nested_ridge
from basis_search.families.pq.reference import encode
from basis_search.families.pq.spec import BUCKETS, Spec, check
from basis_search.families.pq.splits import COMPILED, Intervals, padded
from basis_search.families.pq.tree_annealing import descend, regrow, state_of
from basis_search.families.protocol import Params
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import weight_in_metric
from basis_search.layers.ridge import fitting_metric

NEIGHBOURS = 16
"""Nearest rows from which the two that shift a copy are drawn."""
SHIFT_SHARES = (0.3, 0.5)
"""Least and largest share of the difference of two neighbours that is added to a copy."""
TREE_COPIES, TABLE_COPIES = 6, 32
"""Shifted copies of each row that trees and tables are fitted to, as far as the next limits allow."""
MOST_TREE_ROWS, MOST_TABLE_ROWS = 8800, 40000
"""Most rows that trees and tables are fitted to; the given rows are always among them."""
PRINCIPAL_OUTPUTS = 32
"""Principal directions of the outputs to which trees are fitted."""
MOST_REGROWN, MOST_IMPROVED = 400, 6400
"""Most trees regrown and most trees improved during annealing; on a CPU without the compiled module an eighth."""
MOST_ANNEALING_WORK = 1 << 26
"""Rows x columns x codebooks beyond which trees are regrown once and not improved further."""


def fit_refined(spec: Spec, layer: Layer, *, seed: int = 0) -> Params:
    """As `fit`, with refined trees and tables; deterministic. Centroids of k-means are not refined.

    Raises:
        BadInput: as `fit`.
    """
    layer = layer.on_device()
    check(spec, layer.in_features, len(layer.inputs))
    rows, weight = layer.inputs.double(), layer.weight.double()
    params = learn_encoder(spec, layer.inputs.to(layer.dtype), roots=layer_roots(layer, spec.codebooks))
    if spec.encoder == "tree":
        felt = weight if fitting_metric(layer) is None else weight_in_metric(layer)
        params = _refine(spec, params, between_neighbours(rows, seed), felt, len(rows), seed)
    more = between_neighbours(rows, seed + 1, TABLE_COPIES, MOST_TABLE_ROWS)
    mean = more.mean(0)
    codes = encode(spec, params, more.to(layer.dtype))
    table = nested_ridge(codes, more - mean, len(more) / len(rows), trees=spec.encoder == "tree") @ weight.T
    table = (table + (weight @ mean) / spec.codebooks).view(spec.codebooks, BUCKETS, -1)
    params |= store_table(table, spec.table)
    if layer.bias is not None:
        params["bias"] = layer.bias.to(layer.dtype)
    return params


def _refine(spec: Spec, params: Params, x: Tensor, weight: Tensor, given: int, seed: int) -> Params:
    """Trees [C] fitted to x weight^T for rows x [n, in], the first `given` of which are the layer's own."""
    y = padded(_principal((x - x.mean(0)) @ weight.T))
    ridge, intervals = len(x) / given, Intervals.of(x)
    started = zip(params["split_columns"], params["thresholds"], strict=True)
    state = state_of([intervals.tree(*tree) for tree in started], y, ridge)
    state = regrow(intervals, x.float(), y, state, ridge)
    if x.numel() * spec.codebooks <= MOST_ANNEALING_WORK:
        kicks = min(MOST_REGROWN, MOST_IMPROVED // spec.codebooks) // (1 if COMPILED or x.device.type != "cpu" else 8)
        state = descend(intervals, y, state, ridge, kicks, seed)
    thresholds = torch.stack([intervals.thresholds(tree) for tree in state.trees])
    limit = torch.finfo(params["thresholds"].dtype).max
    return {
        "split_columns": torch.stack([tree.columns for tree in state.trees]).int(),
        "thresholds": thresholds.clamp(max=limit).to(params["thresholds"].dtype),
    }


def between_neighbours(x: Tensor, seed: int, copies: int = TREE_COPIES, most: int = MOST_TREE_ROWS) -> Tensor:
    """x [n, in], followed by copies of each row, shifted by part of the difference of two of its nearest neighbours."""
    n = len(x)
    copies = min(copies, most // n - 1)
    neighbours = min(NEIGHBOURS, n - 1)
    if copies < 1 or neighbours < 2:
        return x
    nearest = torch.cdist(x, x).topk(neighbours + 1, largest=False).indices[:, 1:]  # [n, neighbours]
    generator, drawn, shares = torch.Generator().manual_seed(seed), [], []  # on the CPU: the same on every device
    low, high = SHIFT_SHARES
    for _ in range(copies):
        drawn.append(torch.stack([torch.randint(neighbours, (n,), generator=generator) for _ in range(2)]))
        shares.append(low + (high - low) * torch.rand(n, 1, generator=generator, dtype=x.dtype))
    pairs, rows = torch.stack(drawn).to(x.device), torch.arange(n, device=x.device)
    result = [x]
    for (one, other), share in zip(pairs, torch.stack(shares).to(x.device), strict=True):
        result.append(x + share * (x[nearest[rows, one]] - x[nearest[rows, other]]))
    return torch.cat(result)


def _principal(y: Tensor) -> Tensor:
    """The centred outputs in at most 32 principal directions, which hold nearly all of their energy."""
    if y.shape[1] <= PRINCIPAL_OUTPUTS:
        return y
    directions: Tensor = torch.linalg.eigh(y.T @ y)[1]
    return y @ directions[:, -PRINCIPAL_OUTPUTS:]

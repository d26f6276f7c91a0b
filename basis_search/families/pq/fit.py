"""Tables by ridge regression on the codes of the layer's rows: T = (G^T G + lambda I)^-1 G^T Y, G the one-hot codes.

G^T Y = (G^T X) W^T, so this is the same as prototypes P = (G^T G + lambda I)^-1 G^T X with T = P W^T
(MADDNESS, arXiv 2106.10860, section 4.3). Least squares of several outputs are those of each output, so tables do not
depend on a metric G of the outputs; trees and centroids, which all outputs share, measure inputs by W^T G W.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.pq.batched_trees import group_roots, learn_trees
from basis_search.families.pq.kmeans import learn_centroids
from basis_search.families.pq.reference import encode
from basis_search.families.pq.spec import BUCKETS, LEVELS, Spec, bounds, check
from basis_search.families.pq.trees import learn_tree
from basis_search.families.protocol import Params
from basis_search.layers.layer import Layer
from basis_search.layers.output_spectrum import weight_in_metric
from basis_search.layers.ridge import fitting_metric

RIDGE = 1.0
"""Weight of the penalty on squared prototypes, relative to that of one row."""
BLOCK_ROWS = 4096
"""Rows whose one-hot codes are in memory at a time."""


def fit(spec: Spec, layer: Layer) -> Params:
    """Parameters in the canonical layout, on the layer's device; deterministic.

    "split_columns" [C, 4] int32 and "thresholds" [C, 15] in the layer's dtype, or "centroids" [16, in] in the layer's
    dtype; "table" [C, 16, out] of uint8 with "scale" [out] and "offset" [out] in float32, or of float32; "bias" [out].

    Memory for n rows: about 8 (4 n in + 3 (16 C)^2 + in out + 48 C out) bytes, and on a GPU six values of 8 bytes for
    each of `batched_trees.MOST_VALUES`: 4 GB for 4096 -> 11008 with 4096 rows and C = 256. The host reads two values
    from a GPU, and with centroids one for each of Lloyd's iterations.

    Raises:
        BadInput: more codebooks than columns, or fewer rows than buckets.
    """
    layer = layer.on_device()
    x = layer.inputs.to(layer.dtype)
    check(spec, layer.in_features, len(x))
    roots = layer_roots(layer, spec.codebooks)
    params = learn_encoder(spec, x, roots=roots)
    codes = encode(spec, params, x)
    inputs = prototypes(codes, x.double(), RIDGE)  # [16 C, in]
    if roots is not None and spec.encoder == "tree":
        params, inputs = _better(spec, layer, x, (params, codes, inputs))
    table = inputs @ layer.weight.double().T  # [16 C, out]
    params |= store_table(table.view(spec.codebooks, BUCKETS, -1), spec.table)
    if layer.bias is not None:
        params["bias"] = layer.bias.to(layer.dtype)
    return params


def _better(spec: Spec, layer: Layer, x: Tensor, found: tuple[Params, Tensor, Tensor]) -> tuple[Params, Tensor]:
    """Of trees `found` in the metric and of those without it, the ones with the lower weighted error on rows x.

    The metric of a group does not know what other groups make up for. Both have equally many parameters.

    Args:
        found: encoder, codes [n, C] and prototypes [16 C, in].
    """
    felt = weight_in_metric(layer)
    plain = learn_encoder(spec, x)
    codes = encode(spec, plain, x)
    other = plain, codes, prototypes(codes, x.double(), RIDGE)
    errors = []
    for _, codes, inputs in (found, other):
        error = felt.new_zeros(())
        for begin in range(0, len(x), BLOCK_ROWS):
            rows = slice(begin, begin + BLOCK_ROWS)
            lost = one_hot(codes[rows], torch.float64) @ inputs - x[rows].double()
            error = error + (lost @ felt.T).square().sum()
        errors.append(error)
    keep = errors[0] <= errors[1]
    encoder = {name: torch.where(keep, tensor, plain[name]) for name, tensor in found[0].items()}
    return encoder, torch.where(keep, found[2], other[2])


def layer_roots(layer: Layer, codebooks: int) -> Tensor | None:
    """Roots [C, d, d] of the blocks of W^T G W of each codebook's columns; None for a layer without a metric."""
    return None if fitting_metric(layer) is None else group_roots(weight_in_metric(layer), codebooks)


def learn_encoder(spec: Spec, x: Tensor, *, grid: bool = True, roots: Tensor | None = None) -> Params:
    """The encoder's parameters from rows x [n, in] in the dtype of the layer's inputs; roots of `layer_roots`."""
    if spec.encoder == "kmeans":
        precise = x.double() if x.dtype == torch.float64 else x.float()
        return {"centroids": learn_centroids(precise, spec.codebooks, roots=roots).to(x.dtype)}
    learn = _trees_on_the_cpu if x.device.type == "cpu" else _trees
    columns, thresholds = learn(x.double(), spec.codebooks, grid, roots)
    limit = torch.finfo(x.dtype).max
    return {"split_columns": columns.int(), "thresholds": thresholds.clamp(-limit, limit).to(x.dtype)}


def _trees(x: Tensor, codebooks: int, grid: bool, roots: Tensor | None) -> tuple[Tensor, Tensor]:
    columns, thresholds, _ = learn_trees(x, codebooks, levels_of_8_bits=grid, roots=roots)
    return columns, thresholds


def _trees_on_the_cpu(x: Tensor, codebooks: int, grid: bool, roots: Tensor | None) -> tuple[Tensor, Tensor]:
    """One tree after another, in caches: two to three times as fast there as all at once."""
    data, starts = x.numpy(), bounds(x.shape[1], codebooks)
    splits = np.empty((codebooks, LEVELS), np.int64)
    thresholds = np.empty((codebooks, BUCKETS - 1))

    def learn(c: int) -> None:
        begin, end = starts[c], starts[c + 1]
        part = np.ascontiguousarray(data[:, begin:end])
        root = None if roots is None else roots[c, : end - begin].numpy()
        splits[c], thresholds[c], _ = learn_tree(part, np.arange(begin, end), levels_of_8_bits=grid, root=root)

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # numpy sorts and sums without the interpreter's lock
        list(pool.map(learn, range(codebooks)))
    return torch.from_numpy(splits), torch.from_numpy(thresholds)


def one_hot(codes: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes [n, C] -> G [n, 16 C]."""
    index = codes + BUCKETS * torch.arange(codes.shape[1], device=codes.device)
    return index.new_zeros(len(codes), BUCKETS * codes.shape[1], dtype=dtype).scatter_(1, index, 1.0)


def prototypes(codes: Tensor, target: Tensor, ridge: float) -> Tensor:
    """(G^T G + ridge I)^-1 G^T target: [16 C, columns], float64. Empty buckets get their codebook's mean."""
    n, codebooks = codes.shape
    size = BUCKETS * codebooks
    if n < size:  # the same solution, G^T (G G^T + ridge I)^-1 target, by the smaller system
        g = one_hot(codes, torch.float64)
        counts = g.sum(0)
        solution = g.T @ _solve(g @ g.T, ridge, target)
    else:
        gram, moment = target.new_zeros(size, size, dtype=torch.float32), target.new_zeros(size, target.shape[1])
        for begin in range(0, n, BLOCK_ROWS):
            g = one_hot(codes[begin : begin + BLOCK_ROWS], torch.float32)
            gram += g.T @ g  # counts: exact in float32 up to 2^24 rows
            moment += g.T.double() @ target[begin : begin + BLOCK_ROWS]
        counts = gram.diagonal().double()
        solution = _solve(gram.double(), ridge, moment)
    solution = solution.view(codebooks, BUCKETS, -1)
    weights = counts.view(codebooks, BUCKETS, 1)
    mean = (solution * weights).sum(1, keepdim=True) / n
    return torch.where(weights > 0, solution, mean).view(size, -1)


def _solve(gram: Tensor, ridge: float, target: Tensor) -> Tensor:
    gram.diagonal().add_(ridge)
    return torch.cholesky_solve(target, torch.linalg.cholesky(gram))


def store_table(table: Tensor, kind: str) -> Params:
    """The stored form of table [C, 16, out] float64.

    uint8: each output has one scale, by which its widest codebook spans 255 steps. Each codebook's least entry for an
    output is subtracted, and their sum is the output's offset: all 255 steps are used whatever the signs.

    Raises:
        BadInput: entries, or their sum for an output, exceed float32.
    """
    largest, limit = float(table.abs().amax(1).sum(0).max()), torch.finfo(torch.float32).max
    if not largest <= limit:
        raise BadInput(
            f"tables whose entries add up to {largest:.1e} overflow float32, which ends at {limit:.1e}; scale "
            "the weights or the inputs down"
        )
    if kind == "float32":
        return {"table": table.float().contiguous()}
    low = table.amin(1, keepdim=True)  # [C, 1, out]
    span = (table - low).amax((0, 1))  # [out]
    scale = (torch.where(span > 0, span, 1.0) / 255).float().clamp(min=torch.finfo(torch.float32).tiny)
    steps = ((table - low) / scale.double()).round().clamp_(0, 255)
    return {
        "table": steps.to(torch.uint8).contiguous(),
        "scale": scale,
        "offset": low.sum((0, 1)).float(),
    }


def dequantise(spec: Spec, params: Params) -> Tensor:
    """Tables [C, 16, out] in float64, the offset divided evenly among the codebooks."""
    table = params["table"].detach().double()
    if spec.table == "float32":
        return table
    return table * params["scale"].detach().double() + params["offset"].detach().double() / spec.codebooks

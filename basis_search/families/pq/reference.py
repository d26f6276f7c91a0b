"""y[m] = scale[m] . sum_c T[c, code_c(x), m] + offset[m] + bias[m], sums of uint8 entries exact; float64.

Averaged sums: U times the mean of each group of U tables, pairs of bytes rounded up, less C log2(U) / 4, the mean
rounding error (MADDNESS, arXiv 2106.10860, section 4.4).

code_c is 2i + (x[j] > v) down a tree of four levels, or the nearest of 16 centroids.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from basis_search.families.pq.spec import LEVELS, Spec, bounds
from basis_search.families.protocol import Params


def encode(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """Codes of x [..., in]: [..., C], int64 in 0 .. 15.

    Comparisons are exact: both sides are converted to float64, which rounds neither. A NaN is not larger than any
    threshold, so it goes left. Of equally near centroids the first is taken, also where x is not finite.
    """
    if spec.encoder == "tree":
        return _tree_codes(params["split_columns"], params["thresholds"], x)
    return _nearest_codes(params["centroids"], x, spec.codebooks)


def _tree_codes(split_columns: Tensor, thresholds: Tensor, x: Tensor) -> Tensor:
    values = x[..., split_columns.long()].double()  # [..., C, 4]
    v = thresholds.detach().double()  # [C, 15]: node i of level t at 2^t - 1 + i
    codebook = torch.arange(len(v), device=x.device)
    i = torch.zeros(values.shape[:-1], dtype=torch.int64, device=x.device)
    for t in range(LEVELS):
        i = 2 * i + (values[..., t] > v[codebook, 2**t - 1 + i]).long()
    return i


def _nearest_codes(centroids: Tensor, x: Tensor, codebooks: int) -> Tensor:
    x, p = x.detach().double(), centroids.detach().double()  # p [16, in]
    starts = bounds(p.shape[1], codebooks)
    codes = []
    for begin, end in itertools.pairwise(starts):
        part = p[:, begin:end]
        distance = part.square().sum(1) / 2 - x[..., begin:end] @ part.T  # [..., 16]: half of |x - p|^2 - |x|^2
        codes.append(distance.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).argmin(-1))
    return torch.stack(codes, -1)


def reference(spec: Spec, params: Params, x: Tensor) -> Tensor:
    """x [..., in] -> y [..., out], float64."""
    codes = encode(spec, params, x)
    table = params["table"]  # [C, 16, out]
    total = torch.zeros((*x.shape[:-1], table.shape[2]), dtype=torch.float64, device=x.device)
    for begin in range(0, spec.codebooks, spec.group):
        means = [table[c].double()[codes[..., c]] for c in range(begin, begin + spec.group)]
        while len(means) > 1:
            means = [((a + b + 1) / 2).floor() for a, b in zip(means[::2], means[1::2], strict=True)]
        total = total + spec.group * means[0]
    total = total - spec.codebooks * math.log2(spec.group) / 4
    if spec.table == "uint8":
        total = total * params["scale"].double() + params["offset"].double()
    return total + params["bias"].double() if "bias" in params else total

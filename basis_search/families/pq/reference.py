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
    wide = sum(1 for begin, end in itertools.pairwise(starts) if end - begin == starts[1])  # these groups come first
    codes = []
    for begin, end, count in ((0, starts[wide], wide), (starts[wide], starts[-1], codebooks - wide)):
        if count:
            group = p[:, begin:end].reshape(len(p), count, -1).permute(1, 2, 0)  # [count, width, 16]
            part = x[..., begin:end].reshape(-1, count, group.shape[1]).transpose(0, 1)
            distance = group.square().sum(1, keepdim=True) / 2 - part @ group  # half of |x - p|^2 - |x|^2
            distance = distance.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=-torch.inf)
            codes.append(distance.argmin(-1).T)  # [rows, count]
    return torch.cat(codes, 1).view(*x.shape[:-1], codebooks)


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

"""Tables T = P u as sums over the nodes on each leaf's path, equally penalised: min |Y - G P u|^2 + r |u|^2.

Hierarchical shrinkage (arXiv 2202.00858): a leaf with few rows is shrunk towards its parent rather than towards zero.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.pq.spec import BUCKETS, LEVELS

BLOCK_ROWS = 8192
"""Rows whose one-hot codes are in memory at a time."""


def nested_ridge(codes: Tensor, target: Tensor, ridge: float, *, trees: bool) -> Tensor:
    """Tables [16 C, columns] in float64 for codes [n, C] and target [n, columns].

    With `trees` false each leaf is penalised on its own.
    """
    codebooks = codes.shape[1]
    size = BUCKETS * codebooks
    penalty = torch.eye(BUCKETS, dtype=torch.float64)
    if trees:  # min |u|^2 over u with P u = T is T . (P P^T)^-1 T: the nodes need not be solved for
        levels = [F.one_hot(torch.arange(BUCKETS) >> (LEVELS - s), 2**s).double() for s in range(1, LEVELS + 1)]
        penalty = torch.stack([one @ one.T for one in levels]).sum(0).inverse().contiguous()
    index = codes.long() + BUCKETS * torch.arange(codebooks, device=codes.device)
    target = target.double()
    counts, moment = target.new_zeros(size, size, dtype=torch.float32), target.new_zeros(size, target.shape[1])
    for begin in range(0, len(codes), BLOCK_ROWS):
        part = index[begin : begin + BLOCK_ROWS]
        one_hot = counts.new_zeros(len(part), size).scatter_(1, part, 1.0)
        counts += one_hot.T @ one_hot  # exact in float32 up to 2^24 rows
        moment += one_hot.T.double() @ target[begin : begin + BLOCK_ROWS]
    gram = counts.double()
    blocks = gram.view(codebooks, BUCKETS, codebooks, BUCKETS).diagonal(dim1=0, dim2=2)  # [16, 16, C]
    blocks += (ridge * penalty).to(gram.device)[:, :, None]
    result: Tensor = torch.cholesky_solve(moment, torch.linalg.cholesky(gram))
    return result


def summed(table: Tensor, codes: Tensor) -> Tensor:
    """Table [C, 16, q] at codes [n, C], added up: [n, q]."""
    index = codes.long() + BUCKETS * torch.arange(codes.shape[1], device=codes.device)
    return F.embedding_bag(index, table.flatten(0, 1), mode="sum")

"""The blocks of an output metric that a pattern preserves, and inverse roots of blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from basis_search.families.kronecker import blocks
from basis_search.families.kronecker.patterns import KroneckerPattern
from basis_search.layers.output_metric import OutputMetric

RIDGE = 1e-11
"""Relative ridge of the preconditioner: lets Cholesky factorise rank-deficient blocks, and does not bias the result."""


def row_blocks(metric: OutputMetric, pattern: KroneckerPattern) -> Tensor:
    """The blocks of G on the rows of each block of a pattern, [a, d, b, b]."""
    whole = metric.dense()
    return blocks.gather(whole, KroneckerPattern(pattern.a, pattern.b, pattern.b, pattern.d)).permute(0, 3, 1, 2)


def whiten(target: Tensor, pattern: KroneckerPattern, metric: OutputMetric) -> tuple[Tensor, Tensor]:
    """(R^T A, V) for A [M, N]: R R^T the blocks of G that a leftmost factor of that pattern preserves, V = R^-T.

    V is stored as a factor [a, b, b, d]; the factor R^T K times V is K again.
    """
    gram = row_blocks(metric, pattern)
    inverse = inverse_root(gram)  # R^-1
    rows = (inverse @ gram).permute(0, 2, 3, 1)  # R^T
    return blocks.apply_last(rows, target), inverse.mT.permute(0, 2, 3, 1)


def inverse_root(gram: Tensor) -> Tensor:
    """R [.., n, n] with R^H R = G^-1 for Hermitian Gram blocks G, each with a relative ridge.

    Products with R take the place of triangular solutions, which CUDA computes block by block.
    """
    scale = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1, keepdim=True)
    floor = scale.mean().clamp_min(torch.finfo(scale.dtype).tiny)
    lifted = gram.clone(memory_format=torch.contiguous_format)
    lifted.diagonal(dim1=-2, dim2=-1).add_(RIDGE * (scale + floor))
    diagonal = lifted.diagonal(dim1=-2, dim2=-1).real.clamp_min(RIDGE * floor).sqrt()
    if gram.shape[-1] == 1:
        return (1 / diagonal)[..., None].to(gram.dtype)
    root, info = torch.linalg.cholesky_ex(lifted)
    # Numerically indefinite blocks are preconditioned by their diagonal.
    root = torch.where((info > 0)[..., None, None], torch.diag_embed(diagonal.to(gram.dtype)), root)
    unit = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    inverse: Tensor = torch.linalg.solve_triangular(root, unit, upper=False)
    return inverse

"""Block operations on stored factors w [a, b, c, d]: multiply, transpose, fuse two factors, truncated block SVD.

For chainable patterns with h = d_1/d_2, g = a_2/a_1 and rank r, the product's storage is T[i, (j,h), (g,k), l]. Each of
its blocks T[i, :, h, g, :, l], [b_1, c_2], has rank r: sum_r w_1[i, j, (g,r), (h,l)] w_2[(i,g), (r,h), k, l].
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from basis_search.families.kronecker.patterns import KroneckerPattern
from basis_search.families.protocol import batched_eigh


def pattern_of(w: Tensor) -> KroneckerPattern:
    """The pattern of a stored factor [a, b, c, d]."""
    return KroneckerPattern(*w.shape)


def apply(w: Tensor, x: Tensor) -> Tensor:
    """x K^T [..., abd] for x [..., acd], as a batched GEMM over the ad blocks."""
    a, b, c, d = w.shape
    lead = x.shape[:-1]
    blocks = x.reshape(-1, a, c, d).permute(1, 3, 0, 2).reshape(a * d, -1, c)  # [ad, batch, c]
    y = blocks @ w.permute(0, 3, 2, 1).reshape(a * d, c, b)  # [ad, batch, b]
    return y.reshape(a, d, -1, b).permute(2, 0, 3, 1).reshape(*lead, a * b * d)


def apply_last(w: Tensor, x: Tensor) -> Tensor:
    """K x for x [acd, n] -> [abd, n], as a batched GEMM over the ad blocks, without copying x."""
    a, b, c, d = w.shape
    blocks = x.reshape(a, c, d, -1).transpose(1, 2)  # [a, d, c, n]
    return (w.permute(0, 3, 1, 2).contiguous() @ blocks).transpose(1, 2).reshape(a * b * d, -1)


def adjoint(w: Tensor) -> Tensor:
    """The stored values of K^H: [a, c, b, d]."""
    return w.transpose(1, 2).conj()


def dense(w: Tensor) -> Tensor:
    """A factor as a dense matrix, [abd, acd]."""
    a, b, c, d = w.shape
    full = w.new_zeros(a * b * d, a * c * d)
    _support(full, a, b, c, d).copy_(w)
    return full


def gather(matrix: Tensor, pattern: KroneckerPattern) -> Tensor:
    """The values of a matrix [abd, acd] on a pattern's support, [a, b, c, d]; a copy."""
    return _support(matrix, *pattern.storage).clone(memory_format=torch.contiguous_format)


def _support(matrix: Tensor, a: int, b: int, c: int, d: int) -> Tensor:
    """A view of a matrix [abd, acd]: its values on the support of a pattern, [a, b, c, d]."""
    return matrix.view(a, b, d, a, c, d).diagonal(dim1=0, dim2=3).diagonal(dim1=1, dim2=3).permute(2, 0, 1, 3)


def _split_axes(left: KroneckerPattern, right: KroneckerPattern) -> tuple[int, int, int]:
    """(h, g, r) of a chainable pair."""
    return left.d // right.d, right.a // left.a, left.rank_with(right)


def as_blocks(target: Tensor, left: KroneckerPattern, right: KroneckerPattern) -> Tensor:
    """A stored product as its low-rank blocks, [a_1, h, g, d_2, b_1, c_2]."""
    h, g, _ = _split_axes(left, right)
    return target.reshape(left.a, left.b, h, g, right.c, right.d).permute(0, 2, 3, 5, 1, 4)


def left_blocks(w: Tensor, right: KroneckerPattern) -> Tensor:
    """A left factor as the bases of its blocks, [a_1, h, g, d_2, b_1, r]."""
    left = pattern_of(w)
    h, g, r = _split_axes(left, right)
    return w.reshape(left.a, left.b, g, r, h, right.d).permute(0, 4, 2, 5, 1, 3)


def right_blocks(left: KroneckerPattern, w: Tensor) -> Tensor:
    """A right factor as the coefficients of its blocks, [a_1, h, g, d_2, r, c_2]."""
    right = pattern_of(w)
    h, g, r = _split_axes(left, right)
    return w.reshape(left.a, g, r, h, right.c, right.d).permute(0, 3, 1, 5, 2, 4)


def from_blocks(u: Tensor, v: Tensor, left: KroneckerPattern, right: KroneckerPattern) -> tuple[Tensor, Tensor]:
    """The two stored factors of block bases u [a_1, h, g, d_2, b_1, r] and coefficients v [.., r, c_2]."""
    return (
        u.permute(0, 4, 2, 5, 1, 3).reshape(left.storage).contiguous(),
        v.permute(0, 2, 4, 1, 5, 3).reshape(right.storage).contiguous(),
    )


def fuse(first: Tensor, second: Tensor) -> Tensor:
    """The stored product K_1 K_2 of a chainable pair."""
    left, right = pattern_of(first), pattern_of(second)
    blocks = left_blocks(first, right) @ right_blocks(left, second)  # [a_1, h, g, d_2, b_1, c_2]
    return blocks.permute(0, 4, 1, 2, 5, 3).reshape(left.product(right).storage)


def fuse_all(factors: Sequence[Tensor]) -> Tensor:
    """The stored product of a chainable chain."""
    result = factors[0]
    for factor in factors[1:]:
        result = fuse(result, factor)
    return result


def truncated_svd(blocks: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """(U [.., m, r], s [.., r], V^H [.., r, n]) of a batch of matrices [.., m, n]; zero-padded where r > min(m, n).

    U holds eigenvectors of the smaller Gram matrix, several times faster than an SVD. The products U U^H A are accurate
    to eps; only singular values below sqrt(eps) of the largest lose digits.
    """
    m, n = blocks.shape[-2:]
    keep = min(rank, m, n)
    if m > n:
        v, s, uh = truncated_svd(blocks.mH, rank)
        return uh.mH, s, v.mH
    if keep == m:  # nothing is truncated: any orthonormal basis will do
        u = torch.eye(m, dtype=blocks.dtype, device=blocks.device).expand(*blocks.shape[:-2], m, m)
        s = torch.ones(*blocks.shape[:-2], m, dtype=blocks.real.dtype, device=blocks.device)
        vh = blocks
    else:
        _, vectors = batched_eigh(blocks @ blocks.mH)
        u = vectors[..., -keep:].flip(-1)
        coefficients = u.mH @ blocks
        s = torch.linalg.vector_norm(coefficients, dim=-1)
        vh = coefficients / s.clamp_min(torch.finfo(s.dtype).tiny)[..., None]
    if keep < rank:
        pad = rank - keep
        u = torch.nn.functional.pad(u, (0, pad))
        s = torch.nn.functional.pad(s, (0, pad))
        vh = torch.nn.functional.pad(vh, (0, 0, 0, pad))
    return u, s, vh

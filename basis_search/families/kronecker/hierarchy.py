"""Hierarchical factorisation: split a matrix at the boundaries of a chain, each time by an exact two-factor block SVD.

Two factors: the blocks of the product's storage are disjoint, so one truncated SVD of rank r per block is the optimum
and error^2 = sum of the tails sigma^2. Chains: arXiv 2110.01230; orthonormalised neighbours: arXiv 2411.04506.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.kronecker import blocks
from basis_search.families.kronecker.patterns import KroneckerChain, KroneckerPattern


def two_factors(
    target: Tensor, left: KroneckerPattern, right: KroneckerPattern, balance: float = 0.0
) -> tuple[Tensor, Tensor]:
    """The best K_1 K_2 for a target stored in the pattern of their product: (w_1, w_2).

    `balance` is the fraction of log sigma in K_1: 0 makes the left blocks orthonormal, 0.5 splits evenly.
    """
    u, v = _bases(blocks.as_blocks(target, left, right), left.rank_with(right), balance)
    return blocks.from_blocks(u, v, left, right)


def tail(target: Tensor, left: KroneckerPattern, right: KroneckerPattern) -> Tensor:
    """The squared error of `two_factors`, a tensor without dimensions."""
    parts = blocks.as_blocks(target, left, right)
    u, v = _bases(parts, left.rank_with(right), 0.0)
    error: Tensor = torch.linalg.vector_norm(parts - u @ v).square()
    return error


def _bases(parts: Tensor, rank: int, balance: float) -> tuple[Tensor, Tensor]:
    """The best U [.., b_1, r] and V [.., r, c_2] for blocks [a_1, h, g, d_2, b_1, c_2]."""
    u, s, vh = blocks.truncated_svd(parts, rank)
    v = s[..., None] ** (1 - balance) * vh
    return (u * s[..., None, :] ** balance if balance else u), v


def opening_order(order: str | Sequence[int], length: int) -> list[int]:
    """The boundaries 1..length-1 in the order of splitting.

    Raises:
        BadInput: an unknown name, or not a permutation of the boundaries.
    """
    boundaries = list(range(1, length))
    if order == "left":
        return boundaries
    if order == "right":
        return boundaries[::-1]
    if order == "balanced":
        return _balanced(0, length)
    if not isinstance(order, str) and sorted(order) == boundaries:
        return list(order)
    raise BadInput(
        f"order is {order!r}, but 'left', 'right', 'balanced' or a permutation of the boundaries {boundaries} is needed"
    )


def _balanced(low: int, high: int) -> list[int]:
    if high - low < 2:
        return []
    middle = (low + high) // 2
    return [middle, *_balanced(low, middle), *_balanced(middle, high)]


def _orthonormal(u: Tensor) -> tuple[Tensor, Tensor]:
    """QR of a batch [.., m, r], with zero columns where r > m."""
    rank = u.shape[-1]
    if rank == 1:  # QR of a column is its norm, without a LAPACK call per block
        norm = torch.linalg.vector_norm(u, dim=-2, keepdim=True)
        return u / norm.clamp_min(torch.finfo(norm.dtype).tiny), norm.to(u.dtype)
    if u.device.type == "cuda":
        return _gram_schmidt(u)
    q, triangle = torch.linalg.qr(u)
    missing = rank - q.shape[-1]
    if missing > 0:
        triangle = torch.nn.functional.pad(triangle, (0, 0, 0, missing))
        q = torch.nn.functional.pad(q, (0, missing))
    return q, triangle


def _gram_schmidt(u: Tensor) -> tuple[Tensor, Tensor]:
    """`_orthonormal` by Gram-Schmidt, twice per column: torch's QR on CUDA forms the Q of a batch one block at a time.

    Columns that depend on earlier ones give zero columns and rows.
    """
    rank = u.shape[-1]
    q, triangle = torch.zeros_like(u), u.new_zeros(*u.shape[:-2], rank, rank)
    least = 16 * torch.finfo(u.dtype).eps
    for k in range(rank):
        column = u[..., k : k + 1]
        whole = torch.linalg.vector_norm(column, dim=-2, keepdim=True)
        for _ in range(2 if k else 0):
            along = q[..., :k].mH @ column
            column = column - q[..., :k] @ along
            triangle[..., :k, k : k + 1] += along
        norm = torch.linalg.vector_norm(column, dim=-2, keepdim=True)
        kept = norm > least * whole
        q[..., k : k + 1] = torch.where(kept, column / torch.where(kept, norm, 1), 0)
        triangle[..., k : k + 1, k : k + 1] = torch.where(kept, norm, 0)
    return q, triangle


def _shift_right(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with orthonormal left blocks."""
    left, right = blocks.pattern_of(first), blocks.pattern_of(second)
    q, triangle = _orthonormal(blocks.left_blocks(first, right))
    return blocks.from_blocks(q, triangle @ blocks.right_blocks(left, second), left, right)


def _shift_left(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The same product with orthonormal right blocks."""
    left, right = blocks.pattern_of(first), blocks.pattern_of(second)
    q, triangle = _orthonormal(blocks.right_blocks(left, second).mH)
    return blocks.from_blocks(blocks.left_blocks(first, right) @ triangle.mH, q.mH, left, right)


def hierarchical(
    target: Tensor, chain: KroneckerChain, order: str | Sequence[int] = "left", orthonormalize: bool = True
) -> list[Tensor]:
    """Factors [a, b, c, d], leftmost first, of a target stored in the pattern `chain.product`."""
    pieces = [target]
    spans = [(0, len(chain))]
    left_done, right_done = [False], [False]
    for boundary in opening_order(order, len(chain)):
        index = next(i for i, (low, high) in enumerate(spans) if low < boundary < high)
        low, high = spans[index]
        if orthonormalize:
            for i in range(index):
                if not left_done[i]:
                    pieces[i], pieces[i + 1] = _shift_right(pieces[i], pieces[i + 1])
                    left_done[i], left_done[i + 1], right_done[i], right_done[i + 1] = True, False, False, False
            for i in range(len(pieces) - 1, index, -1):
                if not right_done[i]:
                    pieces[i - 1], pieces[i] = _shift_left(pieces[i - 1], pieces[i])
                    right_done[i], right_done[i - 1], left_done[i], left_done[i - 1] = True, False, False, False
        left, right = chain[low:boundary].product, chain[boundary:high].product
        first, second = two_factors(pieces[index], left, right, balance=0.0 if orthonormalize else 0.5)
        pieces[index : index + 1] = [first, second]
        spans[index : index + 1] = [(low, boundary), (boundary, high)]
        left_done[index : index + 1], right_done[index : index + 1] = [orthonormalize, False], [False, False]
    return pieces


def lift(factors: Sequence[Tensor], chain: KroneckerChain, groups: Sequence[int]) -> list[Tensor]:
    """Factors of `chain` from those of `chain.fuse(groups)`; exact where the merged pairs were redundant."""
    starts = itertools.accumulate(groups, initial=0)
    lifted: list[Tensor] = []
    for factor, start, size in zip(factors, starts, groups, strict=False):
        lifted += hierarchical(factor, chain[start : start + size])
    return lifted

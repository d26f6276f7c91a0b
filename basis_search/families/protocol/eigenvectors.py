"""Eigenvectors of many small symmetric matrices at once.

torch.linalg.eigh on CUDA solves a batch one matrix at a time in several releases, at about a millisecond each, whatever
the size (pytorch issues 174674 and 183806). There the cyclic Jacobi method rotates n/2 disjoint pairs of all matrices
in one batched product (Brent and Luk, 1985; Golub and Van Loan, Matrix Computations, 8.5).
"""

from __future__ import annotations

import torch
from torch import Tensor

FEWEST_MATRICES = 64
"""Batches below this are left to torch: so many solutions one after another take less than Jacobi's launches."""
WIDEST_MATRIX = 192
"""Wider matrices are left to torch: a sweep of rotations takes 6 n^4 operations, and there are fewer such matrices."""
MOST_SWEEPS = 15
"""Sweeps after which the rotation ends in any case; matrices of 64 columns take 7 to 9."""


def batched_eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Ascending eigenvalues [.., n] and eigenvectors [.., n, n] in columns, of symmetric or Hermitian [.., n, n].

    On CUDA one value a sweep is read by the host; memory is five times that of the matrices.
    """
    n = matrices.shape[-1]
    many = matrices.shape[:-2].numel() >= FEWEST_MATRICES and n <= WIDEST_MATRIX
    if matrices.device.type != "cuda" or matrices.is_complex() or not many:
        values, vectors = torch.linalg.eigh(matrices)
        return values, vectors
    values, vectors = jacobi(matrices.reshape(-1, n, n))
    return values.reshape(*matrices.shape[:-1]), vectors.reshape(matrices.shape)


def batched_eigvalsh(matrices: Tensor) -> Tensor:
    """The eigenvalues alone; on the CPU much faster than with the vectors."""
    if matrices.device.type != "cuda":
        values: Tensor = torch.linalg.eigvalsh(matrices)
        return values
    return batched_eigh(matrices)[0]


def jacobi(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """`batched_eigh` of real [B, n, n] by cyclic rotations, without LAPACK."""
    count, n, _ = matrices.shape
    side = n + n % 2  # an odd side gets a row and a column of zeros, which no rotation touches
    a = torch.nn.functional.pad(matrices, (0, side - n, 0, side - n))
    rows = torch.eye(side, dtype=a.dtype, device=a.device).expand(count, side, side)  # eigenvectors, transposed
    half = side // 2
    places = _places(half, a.device)
    turn = a.new_zeros(count, side * side)
    scale = a.square().sum((1, 2)).clamp_min(torch.finfo(a.dtype).tiny)
    enough = (side * torch.finfo(a.dtype).eps) ** 2
    for _ in range(MOST_SWEEPS):
        for _ in range(max(1, side - 1)):
            diagonal = a.diagonal(dim1=1, dim2=2)
            first, second = diagonal[:, :half], diagonal[:, half:]  # pairs (k, k + n/2)
            between = a[:, :half, half:].diagonal(dim1=1, dim2=2)
            cosine, sine = _rotation(first, second, between)
            turn.index_copy_(1, places, torch.cat([cosine, -sine, sine, cosine], 1))
            j = turn.view(count, side, side)
            a = j @ a @ j.mT
            rows = j @ rows
        a = (a + a.mT) / 2
        off = (a - torch.diag_embed(a.diagonal(dim1=1, dim2=2))).square().sum((1, 2))
        if bool((off <= enough * scale).all()):
            break
    values, order = a.diagonal(dim1=1, dim2=2)[:, :n].sort(1)  # whole sweeps restore the order: padding is last
    return values, rows[:, :n, :n].gather(1, order[:, :, None].expand(-1, -1, n)).mT


def _rotation(first: Tensor, second: Tensor, between: Tensor) -> tuple[Tensor, Tensor]:
    """(cos, sin) that make the entries `between` of [[first, between], [between, second]] zero; the smaller angle."""
    zero = between == 0
    slope = (second - first) / (2 * torch.where(zero, 1, between))
    tangent = torch.where(slope >= 0, 1, -1) / (slope.abs() + torch.sqrt(slope.square() + 1))
    tangent = torch.where(zero, 0, tangent)
    cosine = torch.rsqrt(tangent.square() + 1)
    return cosine, tangent * cosine


def _places(half: int, device: torch.device) -> Tensor:
    """Where the cosines, -sines, sines and cosines of a round lie in a flat [2 half, 2 half] rotation.

    The rotation also moves the rows as in a round-robin tournament, so that the next round meets other pairs.
    """
    side = 2 * half
    if half == 1:
        order = [0, 1]
    else:
        top = [0, half, *range(1, half - 1)]
        order = [*top, *range(half + 1, side), half - 1]
    row_of = {old: new for new, old in enumerate(order)}
    pairs = [(k, k) for k in range(half)], [(k, k + half) for k in range(half)]
    cells = [*pairs[0], *pairs[1], *((k + half, k) for k in range(half)), *((k + half, k + half) for k in range(half))]
    return torch.tensor([row_of[old] * side + column for old, column in cells], device=device)

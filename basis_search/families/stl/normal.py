"""Encoded weights by least squares: min over w of E || Y_IJ - D sum_K (E vec X_IK) * w_KJ ||^2, bases fixed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.errors import BadInput

FLOAT64_SIDE = 3072
"""Largest normal matrix that is factorised in float64; beyond it float32 halves memory and time."""
LARGEST_SIDE = 24_576
"""Largest normal matrix at all: 2.4 GB in float32."""


def pad(matrix: Tensor, tile: int) -> Tensor:
    """Zeros at the right and the bottom up to whole tiles."""
    return F.pad(matrix, (0, -matrix.shape[1] % tile, 0, -matrix.shape[0] % tile))


@dataclass(frozen=True, eq=False)
class Problem:
    """A layer y = W x and the first two moments of its inputs, padded to whole tiles; float64.

    The t rows of a tile are independent draws with those moments, which is the expectation over all ways to group the
    samples into tiles.

    Attributes:
        tile: t.
        weight: [out, in] padded. mean: [in] padded. covariance: [in, in] padded.
        free_bias: a bias absorbs what all rows of a tile share of the mean error.
    """

    tile: int
    weight: Tensor
    mean: Tensor
    covariance: Tensor
    free_bias: bool

    @classmethod
    def of(cls, tile: int, weight: Tensor, mean: Tensor, covariance: Tensor, free_bias: bool) -> Problem:
        """From a layer of any shape."""
        return cls(tile, pad(weight, tile), F.pad(mean, (0, -len(mean) % tile)), pad(covariance, tile), free_bias)

    @cached_property
    def cross(self) -> Tensor:
        """Covariance of input and output by tiles, [K, p, J, q]."""
        t = self.tile
        return (self.covariance @ self.weight.T).view(len(self.mean) // t, t, len(self.weight) // t, t)

    @cached_property
    def mean_out(self) -> Tensor:
        """W mean, [out]."""
        return self.weight @ self.mean

    @cached_property
    def tiles(self) -> Tensor:
        """The covariance by pairs of tiles, [K K', p q]."""
        K, t = len(self.mean) // self.tile, self.tile
        return self.covariance.view(K, t, K, t).permute(0, 2, 1, 3).reshape(K * K, t * t)

    @cached_property
    def scale(self) -> float:
        """E ||Y||^2 of one tile row, less what a free bias absorbs."""
        loss = float((self.weight @ self.covariance * self.weight).sum())
        if not self.free_bias:
            loss += float(self.mean_out.square().sum())
        return self.tile * loss

    def solve(self, E: Tensor, D: Tensor) -> tuple[Tensor, float]:
        """Encoded weights [r, K, J] and the error they leave, E ||Y - Y'||^2 over `scale`.

        With P[l, l'] = sum_i E[l, i, :] E[l', i, :]^T over the tile's rows i and the encoded mean z, the normal matrix
        over (l, K) is (D^T D) * (P : covariance) + (D^T D) * (z z^T); with a free bias D is centred over the rows in
        the last term.

        Raises:
            BadInput: the normal matrix would be larger than LARGEST_SIDE.
        """
        r, t = len(E), self.tile
        K, J = len(self.mean) // t, len(self.weight) // t
        if r * K > LARGEST_SIDE:
            raise BadInput(
                f"stl: rank {r} on {K * t} inputs needs a normal matrix of side {r * K}, but {LARGEST_SIDE} is the "
                f"limit; use rank {LARGEST_SIDE // K} or less, or an exact scheme, which needs no fit"
            )
        rows = E.view(r, t, t)  # [l, i, p]
        columns = D.view(t, t, r)  # [i, q, l]
        P = torch.einsum("lip,kiq->lkpq", rows, rows)
        z = torch.einsum("lip,Kp->lK", rows, self.mean.view(K, t))
        shared = columns - columns.mean(dim=0) if self.free_bias else columns

        right = self._right(E, D)
        work = torch.float64 if r * K <= FLOAT64_SIDE else torch.float32
        tiles = self.tiles.to(work)
        gram, gram_shared = D.T @ D, torch.einsum("iql,iqk->lk", shared, shared)
        normal = torch.empty(r, K, r, K, dtype=work, device=E.device)
        for row in range(r):
            blocks = tiles @ (P[row].reshape(r, t * t) * gram[row][:, None]).to(work).T  # [K K', l']
            normal[row] = blocks.view(K, K, r).permute(0, 2, 1)
            normal[row] += (z[row][:, None, None] * (gram_shared[row][:, None] * z)[None]).to(work)
        flat = right.reshape(r * K, J)
        encoded = _solve_symmetric(normal.view(r * K, r * K), flat.to(work)).double()
        left = 1 - float((flat * encoded).sum()) / self.scale if self.scale > 0 else 0.0
        return encoded.view(r, K, J), left

    def left(self, E: Tensor, D: Tensor, encoded: Tensor) -> float:
        """E ||Y - Y'||^2 of one tile row that `solve`'s encoded weights leave."""
        return self.scale - float((self._right(E, D) * encoded).sum())

    def _right(self, E: Tensor, D: Tensor) -> Tensor:
        """Right-hand sides of the normal equations over (l, K), one for each J: [r, K, J]."""
        r, t = len(E), self.tile
        rows, columns = E.view(r, t, t), D.view(t, t, r)
        right = torch.einsum("lpq,KpJq->lKJ", torch.einsum("iql,lip->lpq", columns, rows), self.cross)
        if not self.free_bias:
            z = torch.einsum("lip,Kp->lK", rows, self.mean.view(-1, t))
            mean_out = torch.einsum("iql,Jq->lJ", columns, self.mean_out.view(-1, t))
            right = right + z[:, :, None] * mean_out[:, None, :]
        return right

    def shift(self, E: Tensor, D: Tensor, encoded: Tensor) -> Tensor:
        """The change of the bias [out, padded] that makes the mean over a tile's rows right."""
        r, t = len(E), self.tile
        z = torch.einsum("lip,Kp->lK", E.view(r, t, t), self.mean.view(-1, t))
        got = torch.einsum("iql,lK,lKJ->iJq", D.view(t, t, r), z, encoded).flatten(1)
        return self.mean_out - got.mean(dim=0)


def _solve_symmetric(A: Tensor, B: Tensor) -> Tensor:
    """A^-1 B for a positive semidefinite A, which is overwritten: Cholesky with the least ridge that lets it pass."""
    diagonal = A.diagonal()
    scale = float(diagonal.mean())
    if scale <= 0:
        return torch.zeros_like(B)
    ridge = torch.finfo(A.dtype).eps * 16
    original = diagonal.clone()
    while True:
        diagonal.copy_(original + ridge * scale)
        factor, failed = torch.linalg.cholesky_ex(A)
        if not bool(failed):
            return torch.cholesky_solve(B, factor)
        ridge *= 10

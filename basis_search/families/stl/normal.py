"""Encoded weights by least squares: min over w of E || Y_IJ - D sum_K (E vec X_IK) * w_KJ ||^2, bases fixed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.stl.sides import Sides, sides

FLOAT64_SIDE = 3072
"""Largest normal matrix that is factorised in float64; beyond it float32 halves memory and time."""
LARGEST_SIDE = 24_576
"""Largest normal matrix that is formed whole, 2.4 GB in float32; larger ones are solved block by block."""
BLOCK_SIDE = 3072
"""Side of those blocks: one is factorised in a second, and its rows of the normal matrix fit in memory."""
SWEEPS, LEAST_GAIN = 12, 1e-3
"""Most passes over the blocks, and the relative fall of the error at which they end."""


def pad(matrix: Tensor, height: int, width: int) -> Tensor:
    """Zeros at the right and the bottom up to whole tiles."""
    return F.pad(matrix, (0, -matrix.shape[1] % width, 0, -matrix.shape[0] % height))


@dataclass(frozen=True, eq=False)
class Problem:
    """A layer y = W x and the first two moments of its inputs, padded to whole tiles; float64.

    The rows of a tile are independent draws with those moments, which is the expectation over all ways to group the
    samples into tiles.

    Attributes:
        tile: side t, or (rows, inputs, outputs) n x k x m.
        weight: [out, in] padded. mean: [in] padded. covariance: [in, in] padded.
        free_bias: a bias absorbs what all rows of a tile share of the mean error.
    """

    tile: int | Sides
    weight: Tensor
    mean: Tensor
    covariance: Tensor
    free_bias: bool

    @classmethod
    def of(cls, tile: int | Sides, weight: Tensor, mean: Tensor, covariance: Tensor, free_bias: bool) -> Problem:
        """From a layer of any shape."""
        _, k, m = sides(tile)
        return cls(tile, pad(weight, m, k), F.pad(mean, (0, -len(mean) % k)), pad(covariance, k, k), free_bias)

    @property
    def sides(self) -> Sides:
        """Rows n, inputs k and outputs m of a tile."""
        return sides(self.tile)

    @cached_property
    def cross(self) -> Tensor:
        """Covariance of input and output by tiles, [K, p, J, q]."""
        _, k, m = self.sides
        return (self.covariance @ self.weight.T).view(len(self.mean) // k, k, len(self.weight) // m, m)

    @cached_property
    def mean_out(self) -> Tensor:
        """W mean, [out]."""
        return self.weight @ self.mean

    @cached_property
    def tiles(self) -> Tensor:
        """The covariance by pairs of tiles, [K K', p q]."""
        k = self.sides[1]
        K = len(self.mean) // k
        return self.covariance.view(K, k, K, k).permute(0, 2, 1, 3).reshape(K * K, k * k)

    @cached_property
    def scale(self) -> float:
        """E ||Y||^2 of one tile row, less what a free bias absorbs."""
        loss = float((self.weight @ self.covariance * self.weight).sum())
        if not self.free_bias:
            loss += float(self.mean_out.square().sum())
        return self.sides[0] * loss

    def solve(self, E: Tensor, D: Tensor) -> tuple[Tensor, float]:
        """Encoded weights [r, K, J] and the error they leave, E ||Y - Y'||^2 over `scale`.

        With P[l, l'] = sum_i E[l, i, :] E[l', i, :]^T over the tile's rows i and the encoded mean z, the normal matrix
        over (l, K) is (D^T D) * (P : covariance) + (D^T D) * (z z^T); with a free bias D is centred over the rows in
        the last term.
        """
        _, k, m = self.sides
        r, K, J = len(E), len(self.mean) // k, len(self.weight) // m
        if r * K > LARGEST_SIDE:
            return self._solve_blocks(E, D)
        work = torch.float64 if r * K <= FLOAT64_SIDE else torch.float32
        flat = self._right(E, D).reshape(r * K, J)
        normal = self._normal(E, D, slice(0, K), work).view(r * K, r * K)
        encoded = _solve_symmetric(normal, flat.to(work)).double()
        left = 1 - float((flat * encoded).sum()) / self.scale if self.scale > 0 else 0.0
        return encoded.view(r, K, J), left

    def _normal(self, E: Tensor, D: Tensor, some: slice, work: torch.dtype) -> Tensor:
        """Rows of the normal matrix that belong to some tiles of the inputs, [r, some K, r, K]."""
        r, (n, k, m) = len(E), self.sides
        K = len(self.mean) // k
        rows, columns = E.view(r, n, k), D.view(n, m, r)  # [l, i, p], [i, q, l]
        P = torch.einsum("lip,kiq->lkpq", rows, rows)
        z = torch.einsum("lip,Kp->lK", rows, self.mean.view(K, k))
        shared = columns - columns.mean(dim=0) if self.free_bias else columns
        gram, gram_shared = D.T @ D, torch.einsum("iql,iqk->lk", shared, shared)
        tiles = self.tiles.view(K, K, k * k)[some].reshape(-1, k * k).to(work)
        count = len(tiles) // K
        normal = torch.empty(r, count, r, K, dtype=work, device=E.device)
        for row in range(r):
            blocks = tiles @ (P[row].reshape(r, k * k) * gram[row][:, None]).to(work).T  # [some K K', l']
            normal[row] = blocks.view(count, K, r).permute(0, 2, 1)
            normal[row] += (z[row, some][:, None, None] * (gram_shared[row][:, None] * z)[None]).to(work)
        return normal

    def _solve_blocks(self, E: Tensor, D: Tensor) -> tuple[Tensor, float]:
        """As `solve`, by block Gauss-Seidel over groups of input tiles: the normal matrix is never whole.

        A step s towards the answer a on a block N lowers the error by 2 s a - s N s, whatever ridge its solution had.
        """
        _, k, m = self.sides
        r, K, J = len(E), len(self.mean) // k, len(self.weight) // m
        right, size = self._right(E, D).float(), max(1, BLOCK_SIDE // r)
        encoded = torch.zeros_like(right)
        left = self.scale
        for _ in range(SWEEPS):
            before = left
            for first in range(0, K, size):
                some = slice(first, min(K, first + size))
                rows = self._normal(E, D, some, torch.float32)  # [r, some K, r, K]
                side = r * rows.shape[1]
                answer = right[:, some].reshape(side, J) - rows.view(side, r * K) @ encoded.view(r * K, J)
                own = rows[:, :, :, some].reshape(side, side)
                step = _solve_symmetric(own.clone(), answer)
                encoded[:, some] += step.view(r, -1, J)
                left -= float((step * (2 * answer - own @ step)).sum(dtype=torch.float64))
            if before - left <= LEAST_GAIN * left:
                break
        return encoded.double(), left / self.scale if self.scale > 0 else 0.0

    def left(self, E: Tensor, D: Tensor, encoded: Tensor) -> float:
        """E ||Y - Y'||^2 of one tile row that `solve`'s encoded weights leave."""
        return self.scale - float((self._right(E, D) * encoded).sum())

    def _right(self, E: Tensor, D: Tensor) -> Tensor:
        """Right-hand sides of the normal equations over (l, K), one for each J: [r, K, J]."""
        r, (n, k, m) = len(E), self.sides
        rows, columns = E.view(r, n, k), D.view(n, m, r)
        right = torch.einsum("lpq,KpJq->lKJ", torch.einsum("iql,lip->lpq", columns, rows), self.cross)
        if not self.free_bias:
            z = torch.einsum("lip,Kp->lK", rows, self.mean.view(-1, k))
            mean_out = torch.einsum("iql,Jq->lJ", columns, self.mean_out.view(-1, m))
            right = right + z[:, :, None] * mean_out[:, None, :]
        return right

    def shift(self, E: Tensor, D: Tensor, encoded: Tensor) -> Tensor:
        """The change of the bias [out, padded] that makes the mean over a tile's rows right."""
        r, (n, k, m) = len(E), self.sides
        z = torch.einsum("lip,Kp->lK", E.view(r, n, k), self.mean.view(-1, k))
        got = torch.einsum("iql,lK,lKJ->iJq", D.view(n, m, r), z, encoded).flatten(1)
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

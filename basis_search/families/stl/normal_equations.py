"""Encoded weights by least squares for given bases: min over w of E || Y_IJ - D sum_K (E vec X_IK) * w_KJ ||^2."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from basis_search.families.stl.linear_solvers import (
    conjugate_gradients,
    ridge_cholesky,
    solve_cholesky,
    without_tf32,
)
from basis_search.families.stl.metric_equations import MOST_STEPS as MOST_METRIC_STEPS
from basis_search.families.stl.metric_equations import MetricEquations, improve
from basis_search.families.stl.tile_shape import Sides, sides
from basis_search.layers.output_metric import OutputMetric

FLOAT64_SIDE = 3072
"""Largest normal matrix factorised in float64; beyond it float32 halves memory and time."""
LARGEST_SIDE = 24_576
"""Largest normal matrix that is formed, 2.4 GB in float32; larger ones are used unformed by conjugate gradients."""
BLOCK_SIDE = 6144
"""Side of the diagonal blocks of their preconditioner: larger blocks save steps but make each step slower."""
MOST_STEPS, LEAST_GAIN = 24, 4e-3
"""Limit on conjugate-gradient steps, and the relative decrease of the error per step below which they end."""


def pad(matrix: Tensor, height: int, width: int) -> Tensor:
    """Pad with zeros at the right and the bottom to whole tiles."""
    return F.pad(matrix, (0, -matrix.shape[1] % width, 0, -matrix.shape[0] % height))


@dataclass(frozen=True, eq=False)
class TileProblem:
    """A layer y = W x and the first two moments of its inputs, padded to whole tiles; float64.

    The rows of a tile are independent with those moments, which gives the expectation over all groupings of samples
    into tiles.

    Attributes:
        tile: side t, or (rows, inputs, outputs) n x k x m.
        weight: [out, in] padded. mean: [in] padded. covariance: [in, in] padded.
        free_bias: a bias absorbs the part of the mean error that is common to all rows of a tile.
        metric: in which errors are measured, padded; None for the plain sum of squares.
    """

    tile: int | Sides
    weight: Tensor
    mean: Tensor
    covariance: Tensor
    free_bias: bool
    metric: OutputMetric | None = None

    @classmethod
    def of(
        cls,
        tile: int | Sides,
        weight: Tensor,
        mean: Tensor,
        covariance: Tensor,
        free_bias: bool,
        metric: OutputMetric | None = None,
    ) -> TileProblem:
        """The problem of a layer of any shape, padded; the metric is padded by `in_tiles`."""
        _, k, m = sides(tile)
        padded = pad(weight, m, k), F.pad(mean, (0, -len(mean) % k)), pad(covariance, k, k)
        return cls(tile, *padded, free_bias, metric)

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
        """The covariance by pairs of tiles, [K, p q, K']."""
        k = self.sides[1]
        K = len(self.mean) // k
        return self.covariance.view(K, k, K, k).permute(0, 1, 3, 2).reshape(K, k * k, K)

    @cached_property
    def targets(self) -> tuple[Tensor, Tensor]:
        """`cross` [K, p, J, q] and `mean_out` [out], times the metric where there is one."""
        if self.metric is None:
            return self.cross, self.mean_out
        flat = self.cross.reshape(self.weight.T.shape)
        return self.metric.times(flat.T).T.reshape(self.cross.shape), self.metric.times(self.mean_out)

    @cached_property
    def scale(self) -> float:
        """E ||Y||^2 of one tile row, minus the part that a free bias absorbs; in the metric where there is one."""
        cross, mean_out = self.targets
        loss = (cross.reshape(self.weight.T.shape) * self.weight.T).sum()
        if not self.free_bias:
            loss = loss + (mean_out * self.mean_out).sum()
        return self.sides[0] * float(loss)

    @cached_property
    def plain(self) -> TileProblem:
        """The same without its metric."""
        return self if self.metric is None else replace(self, metric=None)

    @without_tf32()
    def solve(self, E: Tensor, D: Tensor, steps: int = MOST_METRIC_STEPS) -> tuple[Tensor, float]:
        """Encoded weights [r, K, J] and their error, E ||Y - Y'||^2 / `scale`.

        With P[l, l'] = sum_i E[l, i, :] E[l', i, :]^T over the tile's rows i and the encoded mean z, the normal matrix
        over (l, K) is (D^T D) * (P : covariance) + (D^T D) * (z z^T); with a free bias D is centred over the rows in
        the last term. In a metric this solution is the start of at most `steps` conjugate-gradient steps.
        """
        encoded, left, unweighted = self.plain._solve(E, D)
        if self.metric is None:
            return encoded, left
        return improve(self, (E, D), encoded, unweighted, steps)

    def _solve(self, E: Tensor, D: Tensor) -> tuple[Tensor, float, Callable[[Tensor], Tensor]]:
        """The unweighted solution, its error, and R [r K, J] -> N^-1 R, nearly."""
        _, k, m = self.sides
        r, K, J = len(E), len(self.mean) // k, len(self.weight) // m
        if r * K > LARGEST_SIDE:
            return self._solve_by_steps(E, D)
        work = torch.float64 if r * K <= FLOAT64_SIDE else torch.float32
        flat = self.right(E, D).reshape(r * K, J)
        factor = ridge_cholesky(partial(self._normal, E, D, slice(0, K), work))

        def solve(right: Tensor) -> Tensor:
            return solve_cholesky(factor, right.to(work))

        encoded = solve(flat).double()
        left = 1 - float((flat * encoded).sum()) / self.scale if self.scale > 0 else 0.0
        return encoded.view(r, K, J), left, solve

    def _normal(self, E: Tensor, D: Tensor, some: slice, work: torch.dtype) -> Tensor:
        """The normal matrix over (l, K) for a range of input tiles K."""
        r, k = len(E), self.sides[1]
        K = len(self.mean) // k
        products, z, gram_shared = self._terms(E, D)
        tiles, count = self.tiles[some, :, some].to(work), len(range(K)[some])  # [some K, p q, some K']
        mixing, z, gram_shared = products.reshape(r, r, k * k).to(work), z[:, some].to(work), gram_shared.to(work)
        normal = torch.empty(r, count, r, count, dtype=work, device=E.device)
        for row, blocks in enumerate(normal):  # [some K, l', some K']
            torch.bmm(mixing[row].expand(count, r, k * k), tiles, out=blocks)
            blocks.view(count, r * count).addr_(z[row], (gram_shared[row][:, None] * z).flatten())
        return normal.view(r * count, r * count)

    def _terms(self, E: Tensor, D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """P[l, l', p, p'] times D^T D, the encoded mean z [l, K], and the D^T D [l, l'] of the mean."""
        r, (n, k, m) = len(E), self.sides
        rows, columns = E.view(r, n, k), D.view(n, m, r)  # [l, i, p], [i, q, l]
        products = torch.einsum("lip,kiq->lkpq", rows, rows) * (D.T @ D)[:, :, None, None]
        z = torch.einsum("lip,Kp->lK", rows, self.mean.view(-1, k))
        shared = columns - columns.mean(dim=0) if self.free_bias else columns
        return products, z, torch.einsum("iql,iqk->lk", shared, shared)

    def _solve_by_steps(self, E: Tensor, D: Tensor) -> tuple[Tensor, float, Callable[[Tensor], Tensor]]:
        """`_solve` in float32 by conjugate gradients, without forming the normal matrix.

        Its product with w is sum over l', p, p' of (D^T D * P)[l, l', p, p'] (covariance[Kp, K'p'] w_l'K'J): r k^2
        products of K x K matrices instead of r^2.
        """
        _, k, m = self.sides
        r, K, J = len(E), len(self.mean) // k, len(self.weight) // m
        work = torch.float32
        products, z, gram_shared = (part.to(work) for part in self._terms(E, D))
        pairs = self.covariance.view(K, k, K, k).permute(1, 3, 0, 2).to(work).reshape(k * k * K, K)  # [p p' K, K']
        mixing = products.permute(1, 0, 2, 3).reshape(r, r, k * k).contiguous()  # [l', l, p p']
        diagonal = torch.einsum("lpq,pqK->lK", products.diagonal().permute(2, 0, 1), _diagonals(pairs, k))
        diagonal += gram_shared.diagonal()[:, None] * z.square()
        ridge = torch.finfo(work).eps * 16 * float(diagonal.mean())

        def multiply(flat: Tensor) -> Tensor:
            w = flat.view(r, K, J)
            out = ridge * w.flatten(1)
            for mix, part in zip(mixing, w, strict=True):
                out.addmm_(mix, (pairs @ part).view(k * k, K * J))
            means = gram_shared @ torch.einsum("lK,lKJ->lJ", z, w)
            return out.view(r, K, J).addcmul_(z[:, :, None], means[:, None, :]).view(r * K, J)

        size = max(1, BLOCK_SIDE // r)
        groups = [slice(first, min(K, first + size)) for first in range(0, K, size)]
        factors = [ridge_cholesky(partial(self._normal, E, D, some, work)) for some in groups]

        def precondition(flat: Tensor) -> Tensor:
            w, out = flat.to(work).view(r, K, J), torch.empty(r, K, J, dtype=work, device=flat.device)
            for some, part in zip(groups, factors, strict=True):
                out[:, some] = solve_cholesky(part, w[:, some].reshape(-1, J)).view(r, -1, J)
            return out.view(r * K, J)

        right = self.right(E, D).to(work).view(r * K, J)
        flat = conjugate_gradients(multiply, precondition, right, self.scale, MOST_STEPS, LEAST_GAIN)
        # E ||Y - Y'||^2 computed from the product with the normal matrix, unaffected by rounding in the steps.
        changed = multiply(flat).add_(flat, alpha=-ridge)
        left = self.scale - float((flat * (2 * right - changed)).sum(dtype=torch.float64))
        return flat.double().view(r, K, J), left / self.scale if self.scale > 0 else 0.0, precondition

    @without_tf32()
    def error(self, E: Tensor, D: Tensor, encoded: Tensor) -> float:
        """E ||Y - Y'||^2 of one tile row for encoded weights returned by `solve`."""
        if self.metric is not None:
            return self.scale * MetricEquations(self, E, D).error(encoded)
        return self.scale - float((self.right(E, D) * encoded).sum())

    def right(self, E: Tensor, D: Tensor) -> Tensor:
        """Right-hand sides of the normal equations over (l, K), one for each J: [r, K, J]."""
        r, (n, k, m) = len(E), self.sides
        rows, columns = E.view(r, n, k), D.view(n, m, r)
        cross, means = self.targets
        right = torch.einsum("lpq,KpJq->lKJ", torch.einsum("iql,lip->lpq", columns, rows), cross)
        if not self.free_bias:
            z = torch.einsum("lip,Kp->lK", rows, self.mean.view(-1, k))
            right = right + z[:, :, None] * torch.einsum("iql,Jq->lJ", columns, means.view(-1, m))[:, None, :]
        return right

    def shift(self, E: Tensor, D: Tensor, encoded: Tensor) -> Tensor:
        """The change of the bias [out, padded] that corrects the mean over a tile's rows."""
        r, (n, k, m) = len(E), self.sides
        z = torch.einsum("lip,Kp->lK", E.view(r, n, k), self.mean.view(-1, k))
        got = torch.einsum("iql,lK,lKJ->iJq", D.view(n, m, r), z, encoded).flatten(1)
        return self.mean_out - got.mean(dim=0)


def _diagonals(pairs: Tensor, k: int) -> Tensor:
    """Entries of the covariance within a tile, [p, p', K], from `pairs` [p p' K, K']."""
    K = pairs.shape[1]
    return pairs.view(k, k, K, K).diagonal(dim1=2, dim2=3)

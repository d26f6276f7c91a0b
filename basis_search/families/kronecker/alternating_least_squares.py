"""Alternating least squares on a chain: min over one factor K of ||G^{1/2} (A - P K Q) S^{1/2}||, the others fixed.

Normal equations on K's support: (P^H G P) K (Q S Q^H) = P^H G A S Q^H. In blocks.py's blocks P^H P and Q Q^H are r x r.
Where G = I and either S = I or K is leftmost, the system decouples into these blocks and one step is exact. Otherwise S
and G couple them, and a few conjugate-gradient steps from the current K, preconditioned by the blocks on the diagonals
of P^H G P and Q S Q^H, lower the error, never raise it.

One value is read by the host per sweep: whether to go on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from basis_search.families.kronecker import blocks
from basis_search.families.kronecker.metric_blocks import inverse_root, row_blocks
from basis_search.families.kronecker.output_error import MOST_VALUES, OutputError, inner
from basis_search.families.kronecker.patterns import KroneckerPattern
from basis_search.layers.output_metric import OutputMetric


class FactorLeastSquares:
    """The least-squares problem of one factor w [a, b, c, d], with P on its left and Q on its right (None: I)."""

    def __init__(
        self,
        weighted: Tensor,
        moment: Tensor | None,
        left: Tensor | None,
        right: Tensor | None,
        w: Tensor,
        metric: OutputMetric | None = None,
    ):
        self.pattern = blocks.pattern_of(w)
        self.moment, self.left, self.right, self.metric = moment, left, right, metric
        self.exact = metric is None and (moment is None or left is None)
        self.left_gram: Tensor | None = None
        self.narrow_gram: Tensor | None = None
        if left is None:
            self.rhs = self._project(lambda begin, end: weighted[:, begin:end])
            if metric is not None:
                self.left_gram = row_blocks(metric, self.pattern)
                self.left_root = inverse_root(self.left_gram)
        else:
            across = blocks.adjoint(left)
            self.rhs = self._project(lambda begin, end: blocks.apply_last(across, weighted[:, begin:end]))  # P^H A S
            basis = blocks.left_blocks(left, self.pattern)  # [a_P, h, g, d, b_P, r]
            if metric is None:
                self.left_gram = basis.mH @ basis
            else:
                rows = blocks.pattern_of(left)
                own = row_blocks(metric, rows).view(rows.a, -1, 1, self.pattern.d, rows.b, rows.b)  # by (a_P, h, d)
                self.left_gram = basis.mH @ (own @ basis)
            self.left_root = inverse_root(self.left_gram)
            if metric is None and not self.exact and 2 * left.shape[1] >= left.shape[2]:
                self.narrow_gram = torch.einsum("abcd,abed->aced", left.conj(), left)
        self.right_gram = self._right_gram()
        self.right_root = None if self.right_gram is None else inverse_root(self.right_gram)

    def _project(self, columns: Callable[[int, int], Tensor]) -> Tensor:
        """Z Q^H on the support, [a, b, c, d], for Z [m, N] given as (begin, end) -> its columns.

        The columns of a few of the a block rows are in memory at a time.
        """
        p, right = self.pattern, self.right
        whole = p if right is None else p.product(blocks.pattern_of(right))
        wide, high = whole.c * whole.d, p.b * p.d
        step = max(1, MOST_VALUES // (wide * p.rows))
        parts = []
        for begin in range(0, p.a, step):
            end = min(p.a, begin + step)
            z = columns(begin * wide, end * wide)[begin * high : end * high]
            own = KroneckerPattern(end - begin, whole.b, whole.c, whole.d)
            stored = blocks.gather(z, own)
            if right is not None:
                each = right.shape[0] // p.a
                fixed = right[begin * each : end * each]
                narrow = KroneckerPattern(end - begin, p.b, p.c, p.d)
                coefficients = blocks.right_blocks(narrow, fixed)  # [a, h, g, d_Q, r, c_Q]
                inside = blocks.as_blocks(stored, narrow, blocks.pattern_of(fixed))
                stored = _from_left_blocks(inside @ coefficients.mH, narrow)
            parts.append(stored)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _right_gram(self) -> Tensor | None:
        """Q S Q^H by blocks: [a, d, c, c], or [a, h, g, d_Q, r, r] where S = I; None where it is the identity."""
        p = self.pattern
        if self.right is None:
            if self.moment is None:
                return None
            return blocks.gather(self.moment, KroneckerPattern(p.a, p.c, p.c, p.d)).permute(0, 3, 1, 2)
        v = blocks.right_blocks(p, self.right)  # [a, h, g, e, r, y]; e < d_Q, y < c_Q
        if self.moment is None:
            return v @ v.mH
        a, h, g, e, r, y = v.shape
        seen = blocks.gather(self.moment, KroneckerPattern(a, g * y, g * y, e)).reshape(a, g, y, g * y, e)
        full = v.new_empty(a, h, e, g * r, g, r)
        step = max(1, MOST_VALUES // (a * e * g * r * g * y))
        for begin in range(0, h, step):
            part = v[:, begin : begin + step]
            half = torch.einsum("ahgery,agyze->ahegrz", part, seen).reshape(a, -1, e, g * r, g, y)
            full[:, begin : begin + step] = torch.einsum("ahexky,ahkesy->ahexks", half, part.conj())  # x = (g, r)
        return full.reshape(a, p.d, g * r, g * r)

    def normal(self, w: Tensor) -> Tensor:
        """(P^H G P) K (Q S Q^H) on the support."""
        if self.exact:
            return self._on_right(self._on_left(w, solve=False), solve=False)
        moment, left, narrow = self.moment, self.left, self.narrow_gram
        product = w if self.right is None else blocks.fuse(w, self.right)
        whole = blocks.dense(product) if moment is None else None

        def columns(begin: int, end: int) -> Tensor:
            if moment is None:
                assert whole is not None
                z = whole[:, begin:end]
            else:
                z = blocks.apply_last(product, moment[:, begin:end])  # K Q S
            if narrow is not None:
                return blocks.apply_last(narrow, z)
            z = z if left is None else blocks.apply_last(left, z)
            z = z if self.metric is None else self.metric.times(z)
            return z if left is None else blocks.apply_last(blocks.adjoint(left), z)

        return self._project(columns)

    def _on_left(self, w: Tensor, solve: bool) -> Tensor:
        if self.left_gram is None:
            return w
        if self.left is None:
            z = w.permute(0, 3, 1, 2)  # [a, d, b, c]
            z = self.left_root.mH @ (self.left_root @ z) if solve else self.left_gram @ z
            return z.permute(0, 2, 3, 1)
        left = blocks.pattern_of(self.left)
        z = blocks.right_blocks(left, w)  # [a_P, h, g, d, r, c]
        z = self.left_root.mH @ (self.left_root @ z) if solve else self.left_gram @ z
        return z.permute(0, 2, 4, 1, 5, 3).reshape(self.pattern.storage)

    def _on_right(self, w: Tensor, solve: bool) -> Tensor:
        if self.right_gram is None or self.right_root is None:
            return w
        by_blocks = self.right is not None and self.moment is None
        if self.right is not None and self.moment is None:
            z = blocks.left_blocks(w, blocks.pattern_of(self.right))
        else:
            z = w.permute(0, 3, 1, 2)
        z = (z @ self.right_root.mH) @ self.right_root if solve else z @ self.right_gram
        return _from_left_blocks(z, self.pattern) if by_blocks else z.permute(0, 2, 3, 1)

    def solve(self, w: Tensor, steps: int) -> tuple[Tensor, Tensor]:
        """The improved factor and the decrease of the squared error, a tensor without dimensions."""
        residual = self.rhs - self.normal(w)
        direction = z = self._on_right(self._on_left(residual, solve=True), solve=True)
        rho = inner(residual, z)
        gain, length, image = torch.zeros_like(rho), torch.zeros_like(rho), residual
        going = torch.ones_like(rho, dtype=torch.bool)  # until a step would not lower the error
        for step in range(1 if self.exact else steps):
            if step > 0:
                residual = residual - length * image
                z = self._on_right(self._on_left(residual, solve=True), solve=True)
                rho, before = inner(residual, z), rho
                direction = z + (rho / before) * direction
            image = self.normal(direction)
            curvature = inner(direction, image)
            going = going & (rho > 0) & torch.isfinite(rho) & (curvature > 0)
            length = torch.where(going, rho / curvature, 0)
            w = torch.where(going, w + length * direction, w)
            gain = gain + torch.where(going, length * rho, 0)
        return w, gain


def _from_left_blocks(u: Tensor, pattern: KroneckerPattern) -> Tensor:
    """Stored factor [a, b, c, d] of blocks [a, h, g, e, b, r]."""
    return u.permute(0, 4, 2, 5, 1, 3).reshape(*pattern.storage)


def improve_factor(
    objective: OutputError, left: Tensor | None, right: Tensor | None, w: Tensor, steps: int
) -> tuple[Tensor, Tensor]:
    """`FactorLeastSquares.solve`; without a metric a leftmost factor, whose d are independent, in small parts."""
    weighted, moment, metric = objective.weighted, objective.moment, objective.metric
    if metric is not None or left is not None or right is None or moment is None:
        return FactorLeastSquares(weighted, moment, left, right, w, metric).solve(w, steps)
    a, b, c, d = w.shape
    blocks_right = right.reshape(right.shape[0], c * a // right.shape[0], -1, right.shape[2], right.shape[3])
    h = blocks_right.shape[2]
    each = d // h
    rows = weighted.view(a, b, d, -1)
    step = max(1, MOST_VALUES // (a * each * c * c))
    improved, gains = [], []
    for begin in range(0, h, step):
        inside = slice(begin * each, (begin + step) * each)
        own = blocks_right[:, :, begin : begin + step].flatten(1, 2)
        part = rows[:, :, inside].reshape(-1, weighted.shape[1])
        found, gain = FactorLeastSquares(part, moment, None, own, w[..., inside]).solve(w[..., inside], steps)
        improved.append(found)
        gains.append(gain)
    return torch.cat(improved, 3), torch.stack(gains).sum()


def alternate(
    factors: Sequence[Tensor],
    target: Tensor,
    moment: Tensor | None = None,
    *,
    sweeps: int = 30,
    steps: int = 3,
    tolerance: float = 1e-4,
) -> list[Tensor]:
    """Sweeps of least squares over the factors in alternating directions; the error never rises.

    Args:
        factors: stored factors [a, b, c, d] of a chainable chain, leftmost first, double precision.
        target: A, [M, N].
        moment: S = E[x x^H], [N, N], or None for the identity.
        sweeps: limit on passes over all factors.
        steps: conjugate-gradient steps per factor where S couples its blocks.
        tolerance: stop when a pass lowers the squared error by less than this fraction of it.
    """
    return descend(OutputError(target, moment), factors, sweeps=sweeps, steps=steps, tolerance=tolerance)


def descend(
    objective: OutputError, factors: Sequence[Tensor], *, sweeps: int, steps: int = 3, tolerance: float
) -> list[Tensor]:
    """`alternate` for an objective that is known already."""
    factors = list(factors)
    for sweep in range(sweeps):
        gains = []
        forward = sweep % 2 == 0
        done: Tensor | None = None  # product of the factors already passed in this sweep
        waiting = _suffixes(factors) if forward else _prefixes(factors)
        for index in range(len(factors)) if forward else range(len(factors) - 1, -1, -1):
            left, right = (done, waiting[index]) if forward else (waiting[index], done)
            w, gain = improve_factor(objective, left, right, factors[index], steps)
            gains.append(gain)
            factors[index] = w
            done = w if done is None else (blocks.fuse(done, w) if forward else blocks.fuse(w, done))
        if sweep + 1 == sweeps:
            break
        error = objective.of(factors)
        if bool((torch.stack(gains).sum() <= tolerance * error) | (error <= 1e-28 * objective.total)):
            break
    return factors


def _suffixes(factors: Sequence[Tensor]) -> list[Tensor | None]:
    """Products of all factors after each one; None after the last."""
    products: list[Tensor | None] = [None]
    for w in reversed(factors[1:]):
        last = products[0]
        products.insert(0, w if last is None else blocks.fuse(w, last))
    return products


def _prefixes(factors: Sequence[Tensor]) -> list[Tensor | None]:
    """Products of all factors before each one; None before the first."""
    products: list[Tensor | None] = [None]
    for w in factors[:-1]:
        last = products[-1]
        products.append(w if last is None else blocks.fuse(last, w))
    return products

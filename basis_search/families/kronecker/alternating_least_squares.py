"""Alternating least squares on a chain: min over one factor K of ||(A - P K Q) S^{1/2}||, the others fixed.

Normal equations on K's support: (P^H P) K (Q S Q^H) = P^H A S Q^H. In blocks.py's blocks P^H P and Q Q^H are r x r.
Where S = I, or K is leftmost, the system decouples into these blocks and one step is exact. Otherwise S couples them,
and a few conjugate-gradient steps from the current K, preconditioned by the blocks, lower the error, never raise it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from basis_search.families.kronecker import blocks
from basis_search.families.kronecker.patterns import KroneckerPattern

RIDGE = 1e-11
"""Relative ridge of the preconditioner: lets Cholesky factorise rank-deficient blocks, and does not bias the result."""


class FactorLeastSquares:
    """The least-squares problem of one factor w [a, b, c, d], with P on its left and Q on its right (None: I)."""

    def __init__(self, weighted: Tensor, moment: Tensor | None, left: Tensor | None, right: Tensor | None, w: Tensor):
        self.pattern = blocks.pattern_of(w)
        self.moment, self.left, self.right = moment, left, right
        self.exact = moment is None or left is None
        projected = weighted if left is None else blocks.apply(blocks.adjoint(left), weighted.T).T  # P^H A S, [m, N]
        self.rhs = self._project(projected)
        self.left_gram: Tensor | None = None
        if left is not None:
            basis = blocks.left_blocks(left, self.pattern)  # [a_P, h, g, d, b_P, r]
            self.left_gram = basis.mH @ basis
            self.left_root = _cholesky(self.left_gram)
        self.right_gram = self._right_gram()
        self.right_root = None if self.right_gram is None else _cholesky(self.right_gram)

    def _project(self, z: Tensor) -> Tensor:
        """Z Q^H on the support, for Z [m, N]: [a, b, c, d]."""
        if self.right is None:
            return blocks.gather(z, self.pattern)
        right = blocks.pattern_of(self.right)
        parts = blocks.as_blocks(blocks.gather(z, self.pattern.product(right)), self.pattern, right)
        coefficients = blocks.right_blocks(self.pattern, self.right)  # [a, h, g, d_Q, r, c_Q]
        return _from_left_blocks(parts @ coefficients.mH, self.pattern)

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
        half = torch.einsum("ahgery,agyze->ahegrz", v, seen).reshape(a, h, e, g * r, g, y)
        full = torch.einsum("ahexky,ahkesy->ahexks", half, v.conj())  # x = (g, r), k = g', s = r'
        return full.reshape(a, p.d, g * r, g * r)

    def normal(self, w: Tensor) -> Tensor:
        """(P^H P) K (Q S Q^H) on the support."""
        if self.exact:
            return self._on_right(self._on_left(w, solve=False), solve=False)
        assert self.moment is not None
        assert self.left is not None
        assert self.left_gram is not None
        product = w if self.right is None else blocks.fuse(w, self.right)
        z = blocks.apply(product, self.moment.T)  # (K Q S)^T, [N, m]
        if 2 * self.left.shape[1] < self.left.shape[2]:
            z = blocks.apply(blocks.adjoint(self.left), blocks.apply(self.left, z))
        else:
            z = blocks.apply(torch.einsum("abcd,abed->aced", self.left.conj(), self.left), z)
        return self._project(z.T)

    def _on_left(self, w: Tensor, solve: bool) -> Tensor:
        if self.left is None or self.left_gram is None:
            return w
        left = blocks.pattern_of(self.left)
        z = blocks.right_blocks(left, w)  # [a_P, h, g, d, r, c]
        z = torch.cholesky_solve(z, self.left_root) if solve else self.left_gram @ z
        return z.permute(0, 2, 4, 1, 5, 3).reshape(self.pattern.storage)

    def _on_right(self, w: Tensor, solve: bool) -> Tensor:
        if self.right_gram is None or self.right_root is None:
            return w
        by_blocks = self.right is not None and self.moment is None
        if self.right is not None and self.moment is None:
            z = blocks.left_blocks(w, blocks.pattern_of(self.right))
        else:
            z = w.permute(0, 3, 1, 2)
        # z G^{-1} = (G^{-1} z^H)^H for the Hermitian Gram G
        z = torch.cholesky_solve(z.mH, self.right_root).mH if solve else z @ self.right_gram
        return _from_left_blocks(z, self.pattern) if by_blocks else z.permute(0, 2, 3, 1)

    def solve(self, w: Tensor, steps: int) -> tuple[Tensor, float]:
        """The improved factor and the decrease of the squared error."""
        residual = self.rhs - self.normal(w)
        direction = z = self._on_right(self._on_left(residual, solve=True), solve=True)
        rho = _inner(residual, z)
        gain, length, image = 0.0, 0.0, residual
        for step in range(1 if self.exact else steps):
            if not (0 < rho < math.inf):
                break
            if step > 0:
                residual = residual - length * image
                z = self._on_right(self._on_left(residual, solve=True), solve=True)
                rho, before = _inner(residual, z), rho
                direction = z + (rho / before) * direction
            image = self.normal(direction)
            curvature = _inner(direction, image)
            if not curvature > 0:
                break
            length = rho / curvature
            w = w + length * direction
            gain += length * rho
        return w, gain


def _from_left_blocks(u: Tensor, pattern: KroneckerPattern) -> Tensor:
    """Stored factor [a, b, c, d] of blocks [a, h, g, e, b, r]."""
    return u.permute(0, 4, 2, 5, 1, 3).reshape(*pattern.storage)


def _inner(x: Tensor, y: Tensor) -> float:
    return float(torch.sum(x.conj() * y).real)


def _cholesky(gram: Tensor) -> Tensor:
    """Cholesky factors [.., n, n] of Hermitian Gram blocks, each with a relative ridge."""
    scale = gram.diagonal(dim1=-2, dim2=-1).real.mean(-1, keepdim=True)
    floor = float(scale.mean().clamp_min(torch.finfo(scale.dtype).tiny))
    lift = (RIDGE * (scale + floor)).expand(gram.shape[:-1])
    lifted = gram + torch.diag_embed(lift.to(gram.dtype))
    root: Tensor
    root, info = torch.linalg.cholesky_ex(lifted)
    if bool((info > 0).any()):  # numerically indefinite: precondition these by their diagonal
        diagonal = lifted.diagonal(dim1=-2, dim2=-1).real.clamp_min(RIDGE * floor).sqrt()
        root = torch.where((info > 0)[..., None, None], torch.diag_embed(diagonal.to(gram.dtype)), root)
    return root


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
    factors = list(factors)
    weighted = target if moment is None else target @ moment
    total = _inner(target, weighted)
    for sweep in range(sweeps):
        gain = 0.0
        forward = sweep % 2 == 0
        done: Tensor | None = None  # product of the factors already passed in this sweep
        waiting = _suffixes(factors) if forward else _prefixes(factors)
        for index in range(len(factors)) if forward else range(len(factors) - 1, -1, -1):
            left, right = (done, waiting[index]) if forward else (waiting[index], done)
            w, fell = FactorLeastSquares(weighted, moment, left, right, factors[index]).solve(factors[index], steps)
            gain += fell
            factors[index] = w
            done = w if done is None else (blocks.fuse(done, w) if forward else blocks.fuse(w, done))
        assert done is not None
        difference = target - blocks.dense(done)
        error = _inner(difference, difference if moment is None else difference @ moment)
        if gain <= tolerance * error or error <= 1e-28 * total:
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

"""Rank-r bases by least squares: f(U, V, W) = ||T - [[U, V, W]]||^2 + ridge * (|U|^2 + |V|^2 + |W|^2)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Factors = tuple[Array, Array, Array]
"""U [r, n m], V [r, m p], W [r, n p]: vec(C) = W^T ((U vec A) * (V vec B)), row-major."""


def product_tensor(n: int, m: int, p: int) -> Array:
    """T [n m, m p, n p] of C = A B: one 1 for each scalar product a_ij b_jk that belongs to c_ik."""
    T = np.zeros((n, m, m, p, n, p))
    i, j, k = np.meshgrid(np.arange(n), np.arange(m), np.arange(p), indexing="ij")
    T[i, j, j, k, i, k] = 1.0
    return T.reshape(n * m, m * p, n * p)


def residual(T: Array, factors: Factors) -> float:
    """||T - [[U, V, W]]||^2 / ||T||^2: the relative squared error of the product for independent N(0, 1) entries."""
    U, V, W = factors
    gap = T - np.einsum("la,lb,lc->abc", U, V, W, optimize=True)
    return float((gap**2).sum() / (T**2).sum())


def largest_coefficient(factors: Factors) -> float:
    """Largest |entry| once each term is scaled to |u| = |v| = |w|."""
    norms = np.stack([np.linalg.norm(f, axis=1) for f in factors])
    size = np.cbrt(norms.prod(axis=0))
    peaks = [np.abs(f).max(axis=1) * size / np.maximum(n, 1e-300) for f, n in zip(factors, norms, strict=True)]
    return float(max(peak.max() for peak in peaks))


def balance(factors: Factors) -> Factors:
    """The same terms with |u| = |v| = |w| in each."""
    norms = [np.linalg.norm(f, axis=1, keepdims=True) for f in factors]
    size = np.cbrt(norms[0] * norms[1] * norms[2])
    U, V, W = (f * size / np.maximum(n, 1e-300) for f, n in zip(factors, norms, strict=True))
    return U, V, W


def _unfold(T: Array) -> tuple[Array, Array, Array]:
    a, b, c = T.shape
    return T.reshape(a, b * c), T.transpose(1, 0, 2).reshape(b, a * c), T.transpose(2, 0, 1).reshape(c, a * b)


def _pairs(x: Array, y: Array) -> Array:
    """Row-wise Kronecker products, [r, dx * dy]."""
    return (x[:, :, None] * y[:, None, :]).reshape(len(x), -1)


def objective(T: Array, factors: Factors, ridge: float) -> float:
    """f as in the module docstring."""
    return residual(T, factors) * float((T**2).sum()) + ridge * sum(float((f**2).sum()) for f in factors)


def alternate(T: Array, factors: Factors, ridge: float, sweeps: int) -> Factors:
    """`sweeps` rounds of alternating least squares: each factor in turn is the minimiser of f for the other two."""
    unfolded = _unfold(T)
    F = list(factors)
    for _ in range(sweeps):
        for f in range(3):
            g, h = (F[i] for i in range(3) if i != f)
            gram = (g @ g.T) * (h @ h.T)
            gram[np.diag_indices_from(gram)] += ridge
            F[f] = np.linalg.solve(gram, _pairs(g, h) @ unfolded[f].T)
    return F[0], F[1], F[2]


def polish(T: Array, factors: Factors, ridge: float, steps: int, deadline: float = float("inf")) -> Factors:
    """Damped Newton steps on f, where alternating sweeps creep; stops when f falls by less than 1e-6 of itself.

    The Hessian comes from Gram matrices: its U-U block is ((V V^T) * (W W^T))[l, l'] on the diagonal of a, its U-V
    block (W W^T)[l, l'] U[l', a] V[l, b] less, for l = l', the residual contracted with W[l]. That last term is what
    Gauss-Newton leaves out; the residual here is large, and without it the steps converge slowly.
    """
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    unfolded = _unfold(T)
    F = list(factors)
    r = len(F[0])
    widths = [f.shape[1] for f in F]
    offsets = np.cumsum([0, *(r * w for w in widths)])
    damping, best = 1e-2, objective(T, factors, ridge)
    calm = 0
    terms = np.arange(r)
    for _ in range(steps):
        if time.monotonic() > deadline:
            break
        grams = [f @ f.T for f in F]
        gap = T - np.einsum("la,lb,lc->abc", *F, optimize=True)
        H = np.empty((offsets[-1], offsets[-1]))
        gradient = np.empty(offsets[-1])
        for f in range(3):
            g, h = (i for i in range(3) if i != f)
            mixed = grams[g] * grams[h]
            rows = slice(offsets[f], offsets[f + 1])
            H[rows, rows] = np.kron(mixed, np.eye(widths[f]))
            gradient[rows] = (_pairs(F[g], F[h]) @ unfolded[f].T - mixed @ F[f] - ridge * F[f]).ravel()
            for other, third in ((g, h), (h, g)):
                if other > f:
                    block = np.einsum("xy,ya,xb->xayb", grams[third], F[f], F[other], optimize=True)
                    axes = "abc"
                    bent = f"abc,x{axes[third]}->x{axes[f]}{axes[other]}"
                    block[terms, :, terms, :] -= np.einsum(bent, gap, F[third], optimize=True)
                    block = block.reshape(r * widths[f], r * widths[other])
                    columns = slice(offsets[other], offsets[other + 1])
                    H[rows, columns] = block
                    H[columns, rows] = block.T
        diagonal = np.diag_indices_from(H)
        H[diagonal] += ridge
        accepted = False
        for _ in range(24):
            damped = H.copy()
            damped[diagonal] += damping
            try:
                step = cho_solve(cho_factor(damped, lower=True, overwrite_a=True, check_finite=False), gradient)
            except LinAlgError:
                damping *= 10
                continue
            moved = [f + step[offsets[i] : offsets[i + 1]].reshape(f.shape) for i, f in enumerate(F)]
            value = objective(T, (moved[0], moved[1], moved[2]), ridge)
            if value < best:
                accepted = True
                break
            damping *= 4
        if not accepted:
            break
        calm = calm + 1 if best - value < 1e-6 * best else 0
        F, best = moved, value
        damping = max(damping / 5, 1e-7)
        if calm >= 2:
            break
    return F[0], F[1], F[2]


@dataclass(frozen=True)
class Fit:
    """One set of bases on a chain, with f."""

    factors: Factors
    value: float


def drop_one(
    T: Array, fits: list[Fit], ridge: float, width: int, deadline: float = float("inf"), steps: int = 15
) -> list[Fit]:
    """The best `width` fits with one term fewer: every drop is tried by a few sweeps, the best of these polished."""
    tried: list[Fit] = []
    for fit in fits:
        for term in range(len(fit.factors[0])):
            U, V, W = (np.delete(f, term, axis=0) for f in fit.factors)
            shorter = alternate(T, (U, V, W), ridge, 4)
            tried.append(Fit(shorter, objective(T, shorter, ridge)))
    tried.sort(key=lambda fit: fit.value)
    kept: list[Fit] = []
    for fit in tried:
        # Drops that symmetry makes equal start at one value: polish one of them.
        if any(abs(fit.value - other.value) < 1e-6 * fit.value for other in kept):
            continue
        kept.append(fit)
        if len(kept) == 2 * width:
            break
    polished = []
    for fit in kept:
        factors = polish(T, alternate(T, fit.factors, ridge, 20), ridge, steps, deadline)
        polished.append(Fit(factors, objective(T, factors, ridge)))
    return sorted(polished, key=lambda fit: fit.value)[:width]


def change_basis(factors: Factors, n: int, m: int, p: int, P: Array, Q: Array, R: Array) -> Factors:
    """The scheme of P A Q^-1, Q B R^-1, P C R^-1, again one for A B = C (P [n, n], Q [m, m], R [p, p])."""
    U, V, W = factors
    inverse = np.linalg.inv
    return U @ np.kron(P, inverse(Q).T), V @ np.kron(Q, inverse(R).T), W @ np.kron(inverse(P).T, R)

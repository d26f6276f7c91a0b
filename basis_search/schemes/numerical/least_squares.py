"""Least-squares fit of rank-r bases: f(U, V, W) = ||T - [[U, V, W]]||^2 + ridge * (|U|^2 + |V|^2 + |W|^2)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from basis_search.schemes.algebra.scheme import matmul_target
from basis_search.schemes.numerical.gauss_newton import (
    Array,
    damped_steps,
    gap_of,
    normal_matrix,
    row_products,
    slope_of,
    split,
    unfold,
)

Factors = tuple[Array, Array, Array]
"""U [r, n m], V [r, m p], W [r, n p]: vec(C) = W^T ((U vec A) * (V vec B)), row-major."""


def product_tensor(n: int, m: int, p: int) -> Array:
    """T [n m, m p, n p] of C = A B: 1 where a_ij b_jk contributes to c_ik, else 0."""
    return matmul_target(n, m, p).block(0, n * m)


def residual(T: Array, factors: Factors) -> float:
    """||T - [[U, V, W]]||^2 / ||T||^2: the relative squared error of the product for independent N(0, 1) entries."""
    return float((gap_of(T, factors) ** 2).sum() / (T**2).sum())


def largest_coefficient(factors: Factors) -> float:
    """The largest |entry| after scaling each term to |u| = |v| = |w|."""
    norms = np.stack([np.linalg.norm(f, axis=1) for f in factors])
    size = np.cbrt(norms.prod(axis=0))
    peaks = [np.abs(f).max(axis=1) * size / np.maximum(n, 1e-300) for f, n in zip(factors, norms, strict=True)]
    return float(max(peak.max() for peak in peaks))


def balance(factors: Factors) -> Factors:
    """The same terms scaled to |u| = |v| = |w|."""
    norms = [np.linalg.norm(f, axis=1, keepdims=True) for f in factors]
    size = np.cbrt(norms[0] * norms[1] * norms[2])
    U, V, W = (f * size / np.maximum(n, 1e-300) for f, n in zip(factors, norms, strict=True))
    return U, V, W


def objective(T: Array, factors: Factors, ridge: float) -> float:
    """f as defined in the module docstring."""
    return residual(T, factors) * float((T**2).sum()) + ridge * sum(float((f**2).sum()) for f in factors)


def alternate(T: Array, factors: Factors, ridge: float, sweeps: int) -> Factors:
    """`sweeps` rounds of alternating least squares: each factor in turn minimises f for fixed other two."""
    unfolded = unfold(T)
    F = list(factors)
    for _ in range(sweeps):
        for f in range(3):
            g, h = (F[i] for i in range(3) if i != f)
            gram = (g @ g.T) * (h @ h.T)
            gram[np.diag_indices_from(gram)] += ridge
            F[f] = np.linalg.solve(gram, row_products(g, h) @ unfolded[f].T)
    return F[0], F[1], F[2]


def polish(T: Array, factors: Factors, ridge: float, steps: int, deadline: float = float("inf")) -> Factors:
    """Damped Newton steps on f, which converge where alternating sweeps are slow.

    Stops after `steps`, at the deadline (of `time.monotonic`), or when f twice in a row falls by less than 1e-6 of
    itself.
    """
    F = list(factors)
    damping, best = 1e-2, objective(T, factors, ridge)
    small_steps = 0
    for _ in range(steps):
        if time.monotonic() > deadline or small_steps >= 2:
            break
        gap = gap_of(T, F)
        H = normal_matrix(F, gap)
        H[np.diag_indices_from(H)] += ridge
        slope = slope_of(gap, F) - ridge * np.concatenate([f.ravel() for f in F])
        for step, tried in damped_steps(H, slope, damping, growth=4, tries=24):
            U, V, W = (f + d for f, d in zip(F, split(step, F), strict=True))
            value = objective(T, (U, V, W), ridge)
            if value < best:
                damping = max(tried / 5, 1e-7)
                break
        else:
            break
        small_steps = small_steps + 1 if best - value < 1e-6 * best else 0
        F, best = [U, V, W], value
    return F[0], F[1], F[2]


@dataclass(frozen=True)
class Fit:
    """Bases and their value of f."""

    factors: Factors
    value: float


def drop_one(
    T: Array, fits: list[Fit], ridge: float, width: int, deadline: float = float("inf"), steps: int = 15
) -> list[Fit]:
    """The best `width` fits with one term fewer: every drop is followed by a few sweeps, and the best are polished."""
    tried: list[Fit] = []
    for fit in fits:
        for term in range(len(fit.factors[0])):
            U, V, W = (np.delete(f, term, axis=0) for f in fit.factors)
            shorter = alternate(T, (U, V, W), ridge, 4)
            tried.append(Fit(shorter, objective(T, shorter, ridge)))
    tried.sort(key=lambda fit: fit.value)
    kept: list[Fit] = []
    for fit in tried:
        # drops that are equal by symmetry have the same value: polish one of them
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
    """The factors after A -> P A Q^-1, B -> Q B R^-1, C -> P C R^-1 (P [n, n], Q [m, m], R [p, p])."""
    U, V, W = factors
    inverse = np.linalg.inv
    return U @ np.kron(P, inverse(Q).T), V @ np.kron(Q, inverse(R).T), W @ np.kron(inverse(P).T, R)

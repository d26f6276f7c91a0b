"""Normal form of a solution of Brent's equations: the scale and bases in which most coefficients are -1, 0 or 1.

u.v.w -> (s u).(t v).(w / (s t)) and A -> P A Q^-1, B -> Q B R^-1 preserve the equations.
"""

from __future__ import annotations

import numpy as np

from basis_search.schemes.numerical.gauss_newton import Array
from basis_search.schemes.numerical.least_squares import Factors, change_basis

BASES_TRIED = 600


def unit_scaled(factors: Factors) -> Factors:
    """The same terms scaled so that the largest |entry| of each row of U and V is +1."""
    U, V, W = factors
    u, v = (np.take_along_axis(x, np.abs(x).argmax(1)[:, None], axis=1) for x in (U, V))
    return U / u, V / v, W * u * v


def normal_form(factors: Factors, shape: tuple[int, int, int], random: np.random.Generator) -> Factors:
    """The solution in the bases, formed by vectors of its rank-1 factors, with the most coefficients -1, 0 or 1.

    Factors of matrix rank 1 are x y^T. Each trial takes n of the x as a basis of the rows of A, scaled so that one more
    x is all ones, and likewise for the other two spaces. In such bases a solution without parameters is exact.
    """
    n, m, p = shape
    U, V, W = factors
    spaces = [
        _rank_one_vectors(U.reshape(-1, n, m), 0),
        _rank_one_vectors(U.reshape(-1, n, m), 1),
        _rank_one_vectors(V.reshape(-1, m, p), 1),
    ]
    others = [
        _rank_one_vectors(W.reshape(-1, n, p), 0),
        _rank_one_vectors(V.reshape(-1, m, p), 0),
        _rank_one_vectors(W.reshape(-1, n, p), 1),
    ]
    best = factors
    bases: list[Array] = [np.eye(n), np.eye(m), np.eye(p)]
    score = _count_discrete(best)
    for turn in range(BASES_TRIED):
        k = turn % 3
        vectors, dual = (spaces[k], False) if random.random() < 0.5 else (others[k], True)
        side = shape[k]
        if len(vectors) <= side:
            continue
        drawn = vectors[random.permutation(len(vectors))[: side + 1]]
        M = drawn[:side].T
        if np.linalg.cond(M) > 1e4:
            continue
        weights = np.linalg.solve(M, drawn[side])
        M = M * np.where(np.abs(weights) > 1e-6, weights, 1.0)
        # P maps x to P^T x (k = 0), Q and R map y to their inverse times y; dual vectors transform inversely
        change: Array = np.asarray(np.linalg.inv(M).T if (k == 0) != dual else M, dtype=np.float64)
        tried: list[Array] = [*bases[:k], change, *bases[k + 1 :]]
        if max(np.linalg.cond(x) for x in tried) > 1e4:
            continue
        moved = change_basis(factors, n, m, p, tried[0], tried[1], tried[2])
        found = _count_discrete(moved)
        if found > score:
            best, bases, score = moved, tried, found
    return best


def _rank_one_vectors(matrices: Array, side: int) -> Array:
    """x (side 0) or y (side 1) of the matrices of rank 1, x y^T, [count, length]."""
    left, sizes, right = np.linalg.svd(matrices)
    rank_one = sizes[:, 1] < 1e-7 * sizes[:, 0]
    return np.asarray(left[rank_one, :, 0] if side == 0 else right[rank_one, 0])


def _count_discrete(factors: Factors) -> int:
    """The number of coefficients that are -1, 0 or 1."""
    x = np.abs(np.concatenate([f.ravel() for f in unit_scaled(factors)]))
    return int((np.minimum(x, np.abs(x - 1)) < 1e-6).sum())

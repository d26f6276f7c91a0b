"""Gauss-Newton and Newton matrices of ||T - [[U, V, W]]||^2, and damped steps.

J^T J comes from Gram matrices: its U-U block is ((V V^T) * (W W^T))[l, l'] on the diagonal of a, its U-V block
(W W^T)[l, l'] U[l', a] V[l, b].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Entry = TypeVar("Entry", bound=np.generic)


def gap_of(T: Array, F: Sequence[Array]) -> Array:
    """T - [[U, V, W]]."""
    return np.asarray(T - np.einsum("la,lb,lc->abc", *F, optimize=True))


def unfold(T: Array) -> tuple[Array, Array, Array]:
    """T [a, b, c] as [a, b c], [b, a c] and [c, a b]."""
    a, b, c = T.shape
    return T.reshape(a, b * c), T.transpose(1, 0, 2).reshape(b, a * c), T.transpose(2, 0, 1).reshape(c, a * b)


def row_products(x: Array, y: Array) -> Array:
    """Row-wise Kronecker products (Khatri-Rao), [r, dx * dy]."""
    return (x[:, :, None] * y[:, None, :]).reshape(len(x), -1)


def slope_of(gap: Array, F: Sequence[Array]) -> Array:
    """J^T gap, flat: half the negative gradient of ||gap||^2."""
    U, V, W = F
    pairs = ((V, W), (U, W), (U, V))
    return np.concatenate([(row_products(*pair) @ x.T).ravel() for pair, x in zip(pairs, unfold(gap), strict=True)])


def normal_matrix(F: Sequence[Array], gap: Array | None = None) -> Array:
    """J^T J of [[U, V, W]]; given the gap T - [[U, V, W]], half the Hessian of ||gap||^2.

    The Hessian's U-V block is less, for l = l', the gap contracted with W[l]. Gauss-Newton drops that term; where the
    gap at the minimum is large, its steps converge slowly.
    """
    r = len(F[0])
    grams = [f @ f.T for f in F]
    ends = np.cumsum([0, *(f.size for f in F)])
    H = np.empty((ends[-1], ends[-1]))
    terms = np.arange(r)
    for f in range(3):
        g, h = (k for k in range(3) if k != f)
        rows = slice(ends[f], ends[f + 1])
        H[rows, rows] = np.kron(grams[g] * grams[h], np.eye(F[f].shape[1]))
        for other, third in ((g, h), (h, g)):
            if other < f:
                continue
            block = np.einsum("xy,ya,xb->xayb", grams[third], F[f], F[other], optimize=True)
            if gap is not None:
                contraction = f"abc,x{'abc'[third]}->x{'abc'[f]}{'abc'[other]}"
                block[terms, :, terms, :] -= np.einsum(contraction, gap, F[third], optimize=True)
            block = block.reshape(F[f].size, F[other].size)
            columns = slice(ends[other], ends[other + 1])
            H[rows, columns], H[columns, rows] = block, block.T
    return H


def split(x: NDArray[Entry], F: Sequence[Array]) -> list[NDArray[Entry]]:
    """A flat vector as arrays with the shapes of the factors."""
    ends = np.cumsum([f.size for f in F])[:-1]
    return [part.reshape(f.shape) for part, f in zip(np.split(x, ends), F, strict=True)]


def damped_steps(H: Array, slope: Array, damping: float, growth: float, tries: int) -> Iterator[tuple[Array, float]]:
    """Solutions of (H + damping I) step = slope with growing damping, at most `tries`, each with its damping."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    diagonal = np.diag_indices_from(H)
    for _ in range(tries):
        damped = H.copy()
        damped[diagonal] += damping
        try:
            factor = cho_factor(damped, lower=True, overwrite_a=True, check_finite=False)
        except LinAlgError:
            damping *= 10
            continue
        yield cho_solve(factor, slope), damping
        damping *= growth

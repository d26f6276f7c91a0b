"""Ternary bases, applied by additions only: U, W in {-1, 0, 1}, V real, min over V of ||T - [[U, V, W]]||^2.

A layer applies U to its inputs and W^T to its outputs at every call, and V to its weights once. So V may be any real
matrix, and for given U and W the best one solves r linear equations: with G = (U U^T) * (W W^T) and
B[l, j k] = sum_i U[l, i j] W[l, i k], V = G^-1 B, and the squared residual is n m p - tr(B^T G^-1 B). The search over
U and W replaces one row at a time by the best of a library of sparse rows, all scored at once.
"""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from basis_search.errors import BadInput
from basis_search.schemes.constructions.derived import standard, strassen
from basis_search.schemes.library.loader import catalogue
from basis_search.schemes.numerical.gauss_newton import Array

Single = NDArray[np.float32]
Format = tuple[int, int, int]

RIDGE = 1e-3
"""Relative to G's diagonal; without it terms that nearly cancel grow without bound."""
MAX_NONZEROS = 3
"""In a row of the library, besides all outer products of two ternary vectors and the rows of the start."""
SWEEPS = 10
HEATED_SWEEPS = 4
"""Sweeps at a temperature above 0."""
DROPS_TRIED = 2
"""Terms of least effect that are dropped in turn at each rank."""


@dataclass(frozen=True, eq=False)
class TernaryPair:
    """Ternary U [r, n m] and W [r, n p], and the residual with the best V, relative to ||T||^2."""

    U: NDArray[np.int8]
    W: NDArray[np.int8]
    residual: float

    @property
    def nonzeros(self) -> int:
        return int(np.count_nonzero(self.U) + np.count_nonzero(self.W))


def best_v(U: Array, W: Array, form: Format, ridge: float = RIDGE) -> tuple[Array, Array]:
    """The best V [r, m p] for U [r, n m] and W [r, n p], and G^-1 [r, r]; both with the ridge."""
    G = (U @ U.T) * (W @ W.T)
    G[np.diag_indices_from(G)] *= 1 + ridge
    inverse: Array = np.linalg.inv(G).astype(U.dtype)
    V: Array = inverse @ _contracted(U, W, form)
    return V, inverse


def residual_of(U: Array, W: Array, form: Format) -> float:
    """The residual with the best V, relative to ||T||^2, including the ridge's share."""
    V, _ = best_v(U, W, form)
    return 1 - float((_contracted(U, W, form) * V).sum()) / float(np.prod(form))


def _contracted(U: Array, W: Array, form: Format) -> Array:
    n, m, p = form
    pairs = np.einsum("lij,lik->ljk", U.reshape(-1, n, m), W.reshape(-1, n, p))
    contracted: Array = pairs.reshape(len(U), m * p)
    return contracted


def ternary_rows(height: int, width: int, nonzeros: int = MAX_NONZEROS) -> Single:
    """The library: ternary rows [N, height * width] up to sign with few non-zeros or the form of an outer product."""
    size = height * width
    rows: set[tuple[int, ...]] = set()
    for count in range(1, min(nonzeros, size) + 1):
        for places in itertools.combinations(range(size), count):
            for signs in itertools.product((1, -1), repeat=count - 1):
                row = [0] * size
                for place, sign in zip(places, (1, *signs), strict=True):
                    row[place] = sign
                rows.add(tuple(row))
    left, right = (_leading_positive(side) for side in (height, width))
    rows.update(tuple(a * b for a in x for b in y) for x in left for y in right)
    return np.array(sorted(rows), dtype=np.float32)


def _leading_positive(size: int) -> list[tuple[int, ...]]:
    vectors = itertools.product((0, 1, -1), repeat=size)
    return [v for v in vectors if next((c for c in v if c), 0) == 1]


def _gains(U: Single, W: Single, place: int, form: Format, rows: Single, for_u: bool) -> Single:
    """The increase of the captured part of the tensor for each of `rows` as row `place` of U (or of W)."""
    n, m, p = form
    others = np.arange(len(U)) != place
    U_rest, W_rest = U[others], W[others]
    V, inverse = best_v(U_rest, W_rest, form)  # [r - 1, m p], [r - 1, r - 1]
    if for_u:
        shared = (rows @ U_rest.T) * (W_rest @ W[place])
        own = np.einsum("Nij,ik->Njk", rows.reshape(-1, n, m), W[place].reshape(n, p), optimize=True)
        size = (rows**2).sum(1) * (W[place] ** 2).sum()
    else:
        shared = (rows @ W_rest.T) * (U_rest @ U[place])
        own = np.einsum("ij,Nik->Njk", U[place].reshape(n, m), rows.reshape(-1, n, p), optimize=True)
        size = (rows**2).sum(1) * (U[place] ** 2).sum()
    left = own.reshape(len(rows), -1) - shared @ V
    # the part of the new term that the others do not span, bounded away from zero against rounding errors
    apart = np.maximum(size * (1 + RIDGE) - ((shared @ inverse) * shared).sum(1), 1e-3 * size)
    gains: Single = (left**2).sum(1) / apart
    return gains


def descend(
    U: Single,
    W: Single,
    form: Format,
    rows: tuple[Single, Single],
    price: float,
    rng: np.random.Generator,
    temperature: float = 0.0,
    sweeps: int = SWEEPS,
) -> tuple[Single, Single, float]:
    """Replaces each row by the best of `rows` until nothing changes.

    The score is the captured part of the tensor less `price` per non-zero entry. With a temperature the first sweep
    samples rows by exp(score / temperature), and each following sweep at half the temperature before.
    """
    U, W = U.copy(), W.copy()
    prices = [price * np.count_nonzero(side, axis=1) for side in rows]
    last = -np.inf
    for sweep in range(sweeps):
        now_temperature = temperature * 0.5**sweep if sweep < HEATED_SWEEPS else 0.0
        for place in rng.permutation(len(U)):
            for for_u in (True, False) if rng.random() < 0.5 else (False, True):
                side = 0 if for_u else 1
                gains = _gains(U, W, int(place), form, rows[side], for_u)
                scores = gains - prices[side]
                if now_temperature:
                    scores = scores + now_temperature * rng.gumbel(size=len(scores))
                (U, W)[side][place] = rows[side][int(scores.argmax())]
        now = _score(U, W, form, price)
        if not now_temperature and now < last + 1e-6:
            break
        last = now
    return U, W, _score(U, W, form, price)


def _score(U: Single, W: Single, form: Format, price: float) -> float:
    exact = residual_of(U.astype(np.float64), W.astype(np.float64), form)
    return float((1 - exact) * np.prod(form) - price * (np.count_nonzero(U) + np.count_nonzero(W)))


def chain(
    U: Single,
    W: Single,
    form: Format,
    price: float,
    rng: np.random.Generator,
    lowest: int = 1,
    temperature: float = 0.0,
    deadline: float = float("inf"),
) -> dict[int, TernaryPair]:
    """The best pair of each rank from that of exact ternary bases down to `lowest`, dropping one term at a time."""
    n, m, p = form
    U, W = _leading_positive_rows(U), _leading_positive_rows(W)
    rows = (_unique_rows(ternary_rows(n, m), U), _unique_rows(ternary_rows(n, p), W))
    found: dict[int, TernaryPair] = {}
    while True:
        exact = U.astype(np.float64), W.astype(np.float64)
        found[len(U)] = TernaryPair(U.astype(np.int8), W.astype(np.int8), residual_of(*exact, form))
        if len(U) <= lowest or time.monotonic() > deadline:
            return found
        V, inverse = best_v(*exact, form)
        harm = (V**2).sum(1) / np.diag(inverse)
        harm -= price * (np.count_nonzero(U, axis=1) + np.count_nonzero(W, axis=1))
        tried = []
        for place in np.argsort(harm)[:DROPS_TRIED]:
            rest = np.delete(U, place, 0), np.delete(W, place, 0)
            tried.append(descend(*rest, form, rows, price, rng))
            if temperature:
                tried.append(descend(*rest, form, rows, price, rng, temperature))
        U, W, _ = max(tried, key=lambda t: t[2])


def _leading_positive_rows(rows: Array | Single) -> Single:
    """Each row with a positive first entry, as in the library; the sign goes to V."""
    first = np.array([row[np.flatnonzero(row)[0]] for row in rows])
    signed: Single = (rows * np.sign(first)[:, None]).astype(np.float32)
    return signed


def _unique_rows(some: Single, more: Single) -> Single:
    return np.unique(np.concatenate([some, more]), axis=0)


@lru_cache(maxsize=1)
def strassen_orbit() -> tuple[tuple[Array, Array], ...]:
    """U and W of Strassen's scheme in every basis where they are ternary and some term has a single product.

    Dropping that term costs 1 of 8, the least possible; the best chains start from such bases.
    """
    scheme = strassen()
    matrices = np.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=4))).reshape(-1, 2, 2)
    units = matrices[np.abs(np.rint(np.linalg.det(matrices))) == 1]
    inverse = np.linalg.inv(units)

    def transformed(factor: Array, left: Array, right: Array) -> tuple[Array, Array]:
        """The factor under all pairs of bases, [left, right, 7, 4], and the squared norms of its terms."""
        rows = np.einsum("qik,xis,ytk->xyqst", factor.reshape(7, 2, 2), left, right, optimize=True)
        rows = np.rint(rows.reshape(len(left), len(right), 7, 4))
        return rows, (rows**2).sum(axis=-1)

    # A -> P A Q^-1, B -> Q B R^-1, C -> P C R^-1, as in change_basis
    U, U_norms = transformed(scheme.U.astype(np.float64), units, inverse)
    _, V_norms = transformed(scheme.V.astype(np.float64), units, inverse)
    W, W_norms = transformed(scheme.W.astype(np.float64), inverse.swapaxes(1, 2), units.swapaxes(1, 2))
    ternary_U, ternary_W = (np.abs(x).max(axis=(2, 3)) <= 1 for x in (U, W))
    found: dict[tuple[tuple[float, ...], ...], tuple[Array, Array]] = {}
    for p, q in np.argwhere(ternary_U):
        least = (U_norms[p, q] * V_norms[q] * W_norms[p]).min(axis=-1)
        for r in np.flatnonzero((least == 1) & ternary_W[p]):
            pair = U[p, q], W[p, r]
            key = sorted(map(tuple, np.hstack([_leading_positive_rows(side) for side in pair]).tolist()))
            found.setdefault(tuple(key), pair)
    return tuple(found[key] for key in sorted(found))


def start(form: Format, rng: np.random.Generator) -> tuple[Array, Array]:
    """U and W of a random exact ternary scheme of the format, by nesting or from the catalogue.

    Half of the starts for 4x4x4 are instead products of two approximate schemes, of 6 or 7 and of 5 to 7 terms.

    Raises:
        BadInput: no such scheme is known.
    """
    n, m, p = form
    if n % 2 == m % 2 == p % 2 == 0:
        forms = strassen_orbit()
        outer = forms[rng.integers(len(forms))]
        if form == (2, 2, 2):
            return outer
        if form == (4, 4, 4) and rng.random() < 0.5:
            ranks = int(rng.integers(6, 8)), int(rng.integers(5, 8))
            first, second = (_chained_to(forms[rng.integers(len(forms))], rank, rng) for rank in ranks)
            return _nested(first, second, (2, 2, 2), (2, 2, 2))
        half = (n // 2, m // 2, p // 2)
        inner = forms[rng.integers(len(forms))] if half == (2, 2, 2) else _plain(half)
        return _nested(outer, inner, (2, 2, 2), half)
    usable = [s for s in catalogue().values() if (s.n, s.m, s.p) == form and s.ring == "ZT"]
    if not usable:
        raise BadInput(f"no exact ternary scheme of {n}x{m}x{p} is known; use even sizes or a format of the catalogue")
    scheme = min(usable, key=lambda s: s.rank)
    return scheme.U.astype(np.float64), scheme.W.astype(np.float64)


def _chained_to(pair: tuple[Array, Array], rank: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """The 2x2x2 bases with terms dropped down to `rank`."""
    U, W = (side.astype(np.float32) for side in pair)
    thin = chain(U, W, (2, 2, 2), 0.01, rng, rank)[rank]
    return thin.U.astype(np.float64), thin.W.astype(np.float64)


def _plain(form: Format) -> tuple[Array, Array]:
    scheme = standard(*form)
    return scheme.U.astype(np.float64), scheme.W.astype(np.float64)


def _nested(
    outer: tuple[Array, Array], inner: tuple[Array, Array], first: Format, second: Format
) -> tuple[Array, Array]:
    """Row-major U and W of the tensor product."""
    sides = []
    for side, (x, y) in enumerate(((0, 1), (0, 2))):
        f, g = outer[side], inner[side]
        blocks = f.reshape(-1, first[x], first[y]), g.reshape(-1, second[x], second[y])
        sides.append(np.einsum("lij,kpq->lkipjq", *blocks).reshape(len(f) * len(g), -1))
    return sides[0], sides[1]

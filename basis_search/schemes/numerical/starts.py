"""Starts of the search for rank-r bases: exact schemes, polynomial products, products of smaller bases, noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from basis_search.schemes.algebra.transforms import tensor_product
from basis_search.schemes.constructions.derived import (
    laderman,
    standard,
    strassen,
    toom_cook,
)
from basis_search.schemes.numerical.gauss_newton import Array
from basis_search.schemes.numerical.least_squares import (
    Factors,
    alternate,
    balance,
    change_basis,
    objective,
    product_tensor,
)

Format = tuple[int, int, int]
Rng = np.random.Generator

BASIS_NOISE = 0.3
"""Standard deviation of the noise added to the identity for a random change of basis."""
MOST_SURPLUS_TERMS = 8
"""Most terms beyond the rank in a product of smaller bases; they are dropped one by one."""


def noise(form: Format, rank: int, rng: Rng) -> Factors:
    """Independent normal entries, each row of length about 1."""
    n, m, p = form
    U, V, W = (rng.standard_normal((rank, width)) / np.sqrt(width) for width in (n * m, m * p, n * p))
    return U, V, W


def moved(factors: Factors, form: Format, rng: Rng, spread: float = BASIS_NOISE) -> Factors:
    """The factors after a random change of basis, which preserves exactness."""
    P, Q, R = (np.eye(size) + spread * rng.standard_normal((size, size)) for size in form)
    return balance(change_basis(factors, *form, P, Q, R))


def exact(form: Format, rank: int) -> list[Factors]:
    """Exact schemes of the format with at least `rank` terms, fewest first, the standard algorithm among them."""
    n, m, p = form
    schemes = [standard(n, m, p)]
    if n == m == p and n in (2, 4, 8):
        scheme = strassen()
        while scheme.n < n:
            scheme = tensor_product(scheme, strassen())
        schemes.insert(0, scheme)
    elif n == m == p == 3:
        schemes.insert(0, laderman())
    elif n % 2 == m % 2 == p % 2 == 0:
        schemes.insert(0, tensor_product(strassen(), standard(n // 2, m // 2, p // 2)))
    usable = [s for s in schemes if s.rank >= rank]
    return [(s.U.astype(np.float64), s.V.astype(np.float64), s.W.astype(np.float64)) for s in usable]


def discovered(form: Format, rank: int) -> list[Factors]:
    """Schemes of the catalogue in characteristic 0, of that format and at least that rank."""
    from basis_search.schemes.library.loader import catalogue

    usable = [s for s in catalogue().values() if (s.n, s.m, s.p) == form and s.ring != "Z2" and s.rank >= rank]
    return [(s.U.astype(np.float64), s.V.astype(np.float64), s.W.astype(np.float64)) for s in usable]


def polynomial(form: Format, rank: int, rng: Rng) -> Factors:
    """`rank` random terms of c_ik = [x^(m-1)] a_i(x) b_k(x) with rows and columns as polynomials, by Toom-Cook.

    a_i(x) = sum_j A_ij x^j and b_k(x) = sum_j B_jk x^(m-1-j), evaluated at 2 m - 1 points: n p (2 m - 1) terms.
    """
    n, m, p = form
    scheme = toom_cook(m)
    left, right = scheme.U.astype(np.float64), scheme.V.astype(np.float64)[:, ::-1]  # [points, m]
    weight = scheme.W.astype(np.float64)[:, m - 1]  # [points], of the middle coefficient
    i, k, point = (index.ravel() for index in np.meshgrid(range(n), range(p), range(len(left)), indexing="ij"))
    U, V, W = (np.zeros((len(i), *shape)) for shape in ((n, m), (m, p), (n, p)))
    terms = np.arange(len(i))
    U[terms, i, :], V[terms, :, k], W[terms, i, k] = left[point], right[point], weight[point]
    chosen = rng.choice(len(i), rank, replace=rank > len(i))
    a, b, c = (f.reshape(len(i), -1)[chosen] for f in (U, V, W))
    return balance((a, b, c))


def product(form: Format, rank: int, ridge: float, rng: Rng) -> Factors | None:
    """The tensor product of bases of two smaller formats with at least `rank` terms, or None if the format has none.

    Residuals e_1 and e_2 give 1 - (1 - e_1)(1 - e_2).
    """
    a2, b2, c2 = (2 if size % 2 == 0 else 1 for size in form)
    outer, inner = (a2, b2, c2), (form[0] // a2, form[1] // b2, form[2] // c2)
    if min(np.prod(outer), np.prod(inner)) < 4:
        return None
    sizes = [int(np.prod(outer)), int(np.prod(inner))]
    pairs = [
        (a, b)
        for a in range(1, sizes[0] + 1)
        for b in range(1, sizes[1] + 1)
        if rank <= a * b <= rank + MOST_SURPLUS_TERMS and a >= sizes[0] / 3 and b >= sizes[1] / 3
    ]
    if not pairs:
        return None
    a, b = pairs[rng.integers(len(pairs))]
    first, second = _small(outer, a, ridge, rng), _small(inner, b, ridge, rng)
    shapes = [((outer[x], outer[y]), (inner[x], inner[y])) for x, y in ((0, 1), (1, 2), (0, 2))]
    factors = [
        np.einsum("lij,kpq->lkipjq", f.reshape(-1, *left), g.reshape(-1, *right)).reshape(a * b, -1)
        for f, g, (left, right) in zip(first, second, shapes, strict=True)
    ]
    return balance((factors[0], factors[1], factors[2]))


def _small(form: Format, rank: int, ridge: float, rng: Rng, tries: int = 3) -> Factors:
    """The best of a few runs from noise, or an exact scheme of that rank."""
    schemes = exact(form, rank)
    if schemes and len(schemes[0][0]) == rank:
        return moved(schemes[0], form, rng)
    T: Array = product_tensor(*form)
    runs = [alternate(T, noise(form, rank, rng), ridge, 120) for _ in range(tries)]
    return min(runs, key=lambda run: objective(T, run, ridge))  # not transformed: that would change the residual


def by_kind(form: Format, rank: int, ridge: float, rng: Rng) -> dict[str, Callable[[], Factors | None]]:
    """A function per kind of start, by name, that draws one; starts may have more than `rank` terms."""

    def drawn(schemes: list[Factors]) -> Factors | None:
        return moved(schemes[rng.integers(len(schemes))], form, rng) if schemes else None

    return {
        "random": lambda: noise(form, rank, rng),
        "exact": lambda: drawn(exact(form, rank)[:1]),
        "polynomial": lambda: polynomial(form, rank, rng),
        "discovered": lambda: drawn(discovered(form, rank)),
        "product": lambda: product(form, rank, ridge, rng),
    }

"""The numerical road: solve Brent's equations in floating point, then move along the solutions to exact coefficients.

    min ||T - [[U, V, W]]||^2 + ridge |x|^2 with the ridge going to nothing; then coefficients are set, nearest first,
    to values of a short list, the others solving again each time, until every one is set and the identity is exact.

A. V. Smirnov, The bilinear complexity and practical algorithms for matrix multiplication, 2013, goes this way.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme, check_format
from basis_search.schemes.algebra.transforms import is_contained
from basis_search.schemes.flips.progress import check_budget
from basis_search.schemes.numerical.least_squares import (
    Array,
    Factors,
    alternate,
    balance,
    largest_coefficient,
    polish,
    product_tensor,
    residual,
)
from basis_search.schemes.numerical.normal_form import normal_form, unit_scaled

_HALVES = [Fraction(k) for k in (0, 1, 2, 4)] + [Fraction(1, 2), Fraction(1, 4), Fraction(3, 2)]
_THIRDS = [Fraction(k, 3) for k in (1, 2, 4)] + [Fraction(3)]
VALUES: dict[str, list[Fraction]] = {
    "ZT": _HALVES[:2], "Z": _HALVES[:3], "Z[1/2]": _HALVES, "Q": _HALVES + _THIRDS
}  # fmt: skip
"""What a coefficient may be rounded to, up to sign."""

SOLVED = 1e-22  # of ||T - [[U, V, W]]||^2 / ||T||^2: as exact as float64 tells
MAX_ROUNDING_DISTANCE = 0.3  # a coefficient farther from every value waits until the others have moved it
MAX_COEFFICIENT = 12.0  # |coefficient| with the rows of U and V unit_scaled to 1
FEW_FREE = 64  # free coefficients, from which on all are read as fractions
MAX_DENOMINATOR = 24
MAX_REJECTIONS = 60  # values that the equations did not allow, until a solution is given up
MAX_BALANCED = 6.0  # largest balanced coefficient of a solution worth rounding: beyond it the terms run away to a limit


@dataclass(frozen=True)
class StartResult:
    """One start: the residual it came to rest at, and whether it was rounded to an exact scheme."""

    start: int
    residual: float
    largest: float
    exact: bool
    seconds: float


def discover_numerically(
    n: int,
    m: int,
    p: int,
    rank: int,
    ring: str = "Q",
    seconds: float = 60.0,
    seed: int = 0,
    progress: Callable[[StartResult], None] | None = None,
) -> BilinearScheme | None:
    """An exact scheme of that rank over Q, Z[1/2], Z or ZT (in the smallest ring that holds it), or None in that time.

    Ctrl-C ends it like the end of the time.

    Raises:
        BadInput: a format, rank, ring or time out of range.
    """
    check_format(n, m, p)
    check_budget(rank, seconds)
    if ring not in VALUES:
        raise BadInput(f"the numerical search rounds to the rings {', '.join(VALUES)}, not to {ring!r}")
    if not rank <= n * m * p or n * m * m * p * n * p > 1 << 17:
        raise BadInput(
            f"rank {rank} for {n}x{m}x{p}: the numerical search takes ranks up to {n * m * p} and formats up to "
            "131072 equations; walk from a scheme with discover instead"
        )
    T = product_tensor(n, m, p)
    random = np.random.default_rng(seed)
    begin = time.monotonic()
    deadline = begin + seconds
    start = 0
    try:
        while time.monotonic() < deadline:
            factors = solve(T, rank, random, deadline)
            rest, largest = residual(T, factors), largest_coefficient(factors)
            exact = None
            if rest < SOLVED and largest < MAX_BALANCED:
                exact = _round_to_exact(T, (n, m, p), factors, ring, random, deadline)
            if progress is not None:
                progress(StartResult(start, rest, largest, exact is not None, time.monotonic() - begin))
            if exact is not None:
                return exact
            start += 1
    except KeyboardInterrupt:
        pass
    return None


def solve(T: Array, rank: int, random: np.random.Generator, deadline: float = float("inf")) -> Factors:
    """A point where the equations hold, or where the steps got stuck, from a random start."""
    U, V, W = (random.standard_normal((rank, width)) for width in T.shape)
    factors: Factors = (U, V, W)
    for ridge, sweeps in ((1e-2, 200), (3e-3, 200), (1e-3, 100)):
        factors = alternate(T, factors, ridge, sweeps)
    if residual(T, factors) * float((T**2).sum()) > 0.3:
        return factors  # at rest a whole product away, or more, as most starts are
    factors = balance(polish(T, factors, 1e-5, 20, deadline))
    free = [np.ones(f.shape, dtype=bool) for f in factors]
    return balance(_levenberg_marquardt(T, factors, free, 60, deadline))


def _levenberg_marquardt(
    T: Array, factors: Factors, free: list[NDArray[np.bool_]], steps: int, deadline: float
) -> Factors:
    """Levenberg-Marquardt on ||T - [[U, V, W]]||^2 over the free coefficients; the others stay."""
    from scipy.linalg import LinAlgError, cho_factor, cho_solve

    F = [f.copy() for f in factors]
    chosen = np.flatnonzero(np.concatenate([x.ravel() for x in free]))
    ends = np.cumsum([f.size for f in F])[:-1]
    gap = T - np.einsum("la,lb,lc->abc", *F, optimize=True)
    value, damping = float((gap**2).sum()), 1e-3
    scale = float((T**2).sum())
    for _ in range(steps):
        if value < 0.01 * SOLVED * scale or time.monotonic() > deadline or not chosen.size:
            break
        H, gradient = _normal(T, F, gap)
        H = H[np.ix_(chosen, chosen)]
        gradient = gradient[chosen]
        diagonal = np.diag_indices_from(H)
        accepted = False
        for _ in range(8):
            damped = H.copy()
            damped[diagonal] += damping
            try:
                step = cho_solve(cho_factor(damped, lower=True, overwrite_a=True, check_finite=False), gradient)
            except LinAlgError:
                damping *= 10
                continue
            whole = np.zeros(sum(f.size for f in F))
            whole[chosen] = step
            moved = [f + d.reshape(f.shape) for f, d in zip(F, np.split(whole, ends), strict=True)]
            gap = T - np.einsum("la,lb,lc->abc", *moved, optimize=True)
            after = float((gap**2).sum())
            if after < value:
                accepted = True
                break
            damping *= 8
        if not accepted:
            break
        F, value = moved, after
        damping = max(
            min(damping / 4, value), 1e-13
        )  # of the order of the gap: steps along singular solutions stay quadratic
    return F[0], F[1], F[2]


def _normal(T: Array, F: list[Array], gap: Array) -> tuple[Array, Array]:
    """J^T J from Gram matrices, and J^T gap."""
    r = len(F[0])
    grams = [f @ f.T for f in F]
    bends = ("abc,lb,lc->la", "abc,la,lc->lb", "abc,la,lb->lc")
    ends = np.cumsum([0, *(f.size for f in F)])
    H = np.empty((ends[-1], ends[-1]))
    gradient = np.empty(ends[-1])
    for f in range(3):
        g, h = (k for k in range(3) if k != f)
        rows = slice(ends[f], ends[f + 1])
        H[rows, rows] = np.kron(grams[g] * grams[h], np.eye(F[f].shape[1]))
        gradient[rows] = np.einsum(bends[f], gap, F[g], F[h], optimize=True).ravel()
        for other, third in ((g, h), (h, g)):
            if other > f:
                block = np.einsum("xy,ya,xb->xayb", grams[third], F[f], F[other], optimize=True)
                block = block.reshape(r * F[f].shape[1], r * F[other].shape[1])
                columns = slice(ends[other], ends[other + 1])
                H[rows, columns], H[columns, rows] = block, block.T
    return H, gradient


def _round_to_exact(
    T: Array, shape: tuple[int, int, int], factors: Factors, ring: str, random: np.random.Generator, deadline: float
) -> BilinearScheme | None:
    """Sets coefficients to values of the ring one after another, nearest first, while the others can follow."""
    F = unit_scaled(normal_form(factors, shape, random))
    shapes = [f.shape for f in F]
    ends = np.cumsum([f.size for f in F])[:-1]
    signed = sorted({s * v for v in VALUES[ring] for s in (1, -1)}, key=lambda v: (v.denominator, abs(v), v))
    table = np.array([float(v) for v in signed])
    penalty = np.array([1.0 if abs(v) <= 1 and v.denominator == 1 else 3.0 * v.denominator for v in signed])
    chosen = np.full(sum(f.size for f in F), -1)  # the place in `signed`, or -1 while free
    rejected = np.zeros((chosen.size, table.size), dtype=bool)
    batch = chosen.size // 8 + 1
    failures = 0
    while (free := np.flatnonzero(chosen < 0)).size:
        if time.monotonic() > deadline or failures > MAX_REJECTIONS:
            return _exact_scheme(shape, F, ring)
        x = np.concatenate([f.ravel() for f in F])
        distance = np.abs(x[free, None] - table) * penalty
        distance[rejected[free]] = np.inf
        value = distance.argmin(1)
        distance = distance[np.arange(free.size), value]
        order = np.argsort(distance + 1e-3 * random.random(free.size), kind="stable")
        sure = int((distance < 1e-9).sum())
        take = order[: max(sure, min(batch, int((distance < MAX_ROUNDING_DISTANCE).sum())), 1)]
        if not np.isfinite(distance[take]).all():
            return _exact_scheme(shape, F, ring)
        indices, values = free[take], value[take]
        x[indices] = table[values]
        held = chosen.copy()
        held[indices] = values
        parts = np.split(x, ends)
        masks = [part.reshape(shape) for part, shape in zip(np.split(held < 0, ends), shapes, strict=True)]
        U, V, W = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        moved = _levenberg_marquardt(T, (U, V, W), masks, 40, deadline)
        if residual(T, moved) < SOLVED and max(np.abs(f).max() for f in moved) < MAX_COEFFICIENT:
            F, chosen = moved, held
            batch = min(2 * batch, chosen.size // 8 + 1)
            if (chosen < 0).sum() <= FEW_FREE and (found := _exact_scheme(shape, F, ring)) is not None:
                return found
        elif len(take) > 1:
            batch = max(len(take) // 3, 1)
        else:
            rejected[indices[0], values[0]] = True
            failures += 1
    return _exact_scheme(shape, F, ring)


def _exact_scheme(shape: tuple[int, int, int], factors: Factors, ring: str) -> BilinearScheme | None:
    """The exact scheme that the floats are, if each is near a simple fraction and the identity holds over the ring.

    The last coefficients are mostly fixed by the others, and then they are fractions whatever list they are not in.
    """
    exact = []
    for f in factors:
        read = np.empty(f.shape, dtype=object)
        for at, value in np.ndenumerate(f):
            read[at] = Fraction(float(value)).limit_denominator(MAX_DENOMINATOR)
            if abs(float(read[at]) - value) > 1e-7:
                return None
        exact.append(read)
    U, V, W = exact
    scheme = BilinearScheme(*shape, U, V, W, "Q").simplest_ring()
    return scheme if scheme.verify() and (scheme.ring == ring or is_contained(scheme.ring, ring)) else None

"""Numerical discovery: solve Brent's equations in floating point, then round the solution to exact coefficients.

    min ||T - [[U, V, W]]||^2 + ridge |x|^2 with the ridge decreasing to 0; then coefficients are fixed to values of a
    short list, nearest first, and the others are solved for again, until all are fixed and the scheme is exact.

After A. V. Smirnov, The bilinear complexity and practical algorithms for matrix multiplication, 2013.
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
from basis_search.schemes.numerical.gauss_newton import Array, damped_steps, gap_of, normal_matrix, slope_of, split
from basis_search.schemes.numerical.least_squares import (
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
"""Absolute values to which coefficients are rounded."""

SOLVED = 1e-22  # ||T - [[U, V, W]]||^2 / ||T||^2 of a solution in float64
MAX_ROUNDING_DISTANCE = 0.3  # coefficients farther from every value are rounded later
MAX_COEFFICIENT = 12.0  # |coefficient| while rounding, with the rows of U and V scaled to 1
FEW_FREE = 64  # free coefficients, below which all are read as fractions
MAX_DENOMINATOR = 24
MAX_REJECTIONS = 60  # of single values, after which a solution is given up
MAX_BALANCED = 6.0  # largest balanced coefficient of a solution worth rounding: beyond it the terms diverge


@dataclass(frozen=True)
class StartResult:
    """The result of one start: its number, final residual, largest coefficient, and whether an exact scheme was found.

    `seconds` is the wall time since the search began.
    """

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
    """An exact scheme of that rank, over the smallest ring that contains it, or None if none is found in time.

    Ctrl-C ends the search early.

    Args:
        n, m, p: the format.
        rank: at most n m p.
        ring: "Q", "Z[1/2]", "Z" or "ZT".
        seconds: wall time.
        seed: of the starts.
        progress: called with the result of each start.

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
            value, largest = residual(T, factors), largest_coefficient(factors)
            exact = None
            if value < SOLVED and largest < MAX_BALANCED:
                exact = _round_to_exact(T, (n, m, p), factors, ring, random, deadline)
            if progress is not None:
                progress(StartResult(start, value, largest, exact is not None, time.monotonic() - begin))
            if exact is not None:
                return exact
            start += 1
    except KeyboardInterrupt:
        pass
    return None


def solve(T: Array, rank: int, random: np.random.Generator, deadline: float = float("inf")) -> Factors:
    """A solution of the equations, or the point where the descent stops, from a random start."""
    U, V, W = (random.standard_normal((rank, width)) for width in T.shape)
    factors: Factors = (U, V, W)
    for ridge, sweeps in ((1e-2, 200), (3e-3, 200), (1e-3, 100)):
        factors = alternate(T, factors, ridge, sweeps)
    if residual(T, factors) * float((T**2).sum()) > 0.3:
        return factors  # a local minimum at least one product away, as for most starts
    factors = balance(polish(T, factors, 1e-5, 20, deadline))
    free = [np.ones(f.shape, dtype=bool) for f in factors]
    return balance(_levenberg_marquardt(T, factors, free, 60, deadline))


def _levenberg_marquardt(
    T: Array, factors: Factors, free: list[NDArray[np.bool_]], steps: int, deadline: float
) -> Factors:
    """Minimises ||T - [[U, V, W]]||^2 over the free coefficients; the others are fixed."""
    F = list(factors)
    chosen = np.flatnonzero(np.concatenate([x.ravel() for x in free]))
    gap = gap_of(T, F)
    value, damping = float((gap**2).sum()), 1e-3
    scale = float((T**2).sum())
    for _ in range(steps):
        if value < 0.01 * SOLVED * scale or time.monotonic() > deadline or not chosen.size:
            break
        H = normal_matrix(F)[np.ix_(chosen, chosen)]
        whole = np.zeros(sum(f.size for f in F))
        for step, tried in damped_steps(H, slope_of(gap, F)[chosen], damping, growth=8, tries=8):
            whole[chosen] = step
            moved = [f + d for f, d in zip(F, split(whole, F), strict=True)]
            moved_gap = gap_of(T, moved)
            after = float((moved_gap**2).sum())
            if after < value:
                # damping of the order of the squared gap keeps steps to singular solutions quadratic
                damping = max(min(tried / 4, after), 1e-13)
                break
        else:
            break
        F, gap, value = moved, moved_gap, after
    return F[0], F[1], F[2]


def _round_to_exact(
    T: Array, shape: tuple[int, int, int], factors: Factors, ring: str, random: np.random.Generator, deadline: float
) -> BilinearScheme | None:
    """Fixes coefficients to values of the ring, nearest first, as long as the others still solve the equations."""
    F = unit_scaled(normal_form(factors, shape, random))
    signed = sorted({s * v for v in VALUES[ring] for s in (1, -1)}, key=lambda v: (v.denominator, abs(v), v))
    table = np.array([float(v) for v in signed])
    penalty = np.array([1.0 if abs(v) <= 1 and v.denominator == 1 else 3.0 * v.denominator for v in signed])
    chosen = np.full(sum(f.size for f in F), -1)  # index in `signed`, or -1 if free
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
        U, V, W = split(x, F)
        moved = _levenberg_marquardt(T, (U, V, W), split(held < 0, F), 40, deadline)
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
    """The exact scheme of the floats, if each is near a simple fraction and Brent's equations hold over the ring.

    The last free coefficients are mostly determined by the others, as fractions that may not be in the list of values.
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

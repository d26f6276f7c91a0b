"""Interpolation points for F(m, r) with small rounding errors: ranked by a first-order bound, the best measured.

For independent inputs the error of output z grows as sqrt(sum_q W[q, z]^2 |U_q|^2 |V_q|^2), for any row scaling.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.convolution import ConvolutionScheme
from basis_search.schemes.algebra.rings import Array
from basis_search.schemes.constructions import rounding
from basis_search.schemes.constructions.derived import choose_points, winograd_convolution
from basis_search.schemes.constructions.rounding import Rounding, SplitConvolution

MAX_SETS = 20_000
_FINALISTS = 48


@dataclass(frozen=True, eq=False)
class Points:
    """The result of `search_points`.

    Attributes:
        points: finite interpolation points; infinity is always added.
        algorithm: F(m, r) from them, split by a change of basis where that reduces the error.
        error: measured on tiles that the search did not use.
        default: the same for the default points without a split.
        measured: number of measurements.
        seconds: duration of the search.
    """

    points: tuple[Fraction, ...]
    algorithm: SplitConvolution
    error: Rounding
    default: Rounding
    measured: int
    seconds: float

    @property
    def scheme(self) -> ConvolutionScheme:
        """The unsplit algorithm in one dimension."""
        return self.algorithm.scheme


def rationals(largest: int) -> list[Fraction]:
    """Positive fractions with numerator and denominator up to `largest`, the simplest first."""
    found = {Fraction(a, b) for a in range(1, largest + 1) for b in range(1, largest + 1)}
    return sorted(found, key=lambda x: (max(x.numerator, x.denominator), x.numerator + x.denominator, x))


def bound(points: Sequence[Fraction], m: int, r: int) -> float:
    """First-order error growth in one dimension, as a root mean square over the outputs; squared if nested twice."""
    finite = np.array([float(x) for x in points])
    size = m + r - 1
    full = _evaluation(finite, size)
    U = np.linalg.inv(full).T
    norms = (U**2).sum(axis=1) * (_evaluation(finite, r) ** 2).sum(axis=1)
    return float(math.sqrt((_evaluation(finite, m) ** 2 * norms[:, None]).sum() / m))


def _evaluation(finite: Array, size: int) -> Array:
    leading = np.zeros((1, size))
    leading[0, -1] = 1
    return np.concatenate([finite[:, None] ** np.arange(size), leading])


def candidates(count: int, largest: int) -> Iterator[tuple[Fraction, ...]]:
    """Sets of `count` points: 0, pairs +-x, and one more point where the count is even."""
    pool = rationals(largest)
    pairs, extra = divmod(count - 1, 2)
    while pairs and math.comb(len(pool), pairs) * (len(pool) if extra else 1) > MAX_SETS:
        pool = pool[:-1]
    for magnitudes in itertools.combinations(pool, pairs):
        both = tuple(s * x for x in magnitudes for s in (1, -1))
        singles = [x for x in pool if x not in magnitudes] if extra else [None]
        for single in singles:
            yield (Fraction(0), *both) if single is None else (Fraction(0), *both, single)


def neighbours(points: tuple[Fraction, ...], largest: int) -> Iterator[tuple[Fraction, ...]]:
    """Sets that differ in one point, or in two points that become x and -1/x."""
    signed = [s * x for x in rationals(largest) for s in (1, -1)]
    for k in range(len(points)):
        rest = points[:k] + points[k + 1 :]
        yield from ((*rest, x) for x in signed if x not in rest)
    for i, j in itertools.combinations(range(len(points)), 2):
        rest = tuple(x for k, x in enumerate(points) if k not in (i, j))
        yield from ((*rest, x, -1 / x) for x in signed if x > 0 and x not in rest and -1 / x not in rest)


def ranked_sets(m: int, r: int, largest: int) -> list[tuple[float, tuple[Fraction, ...]]]:
    """Sets of m + r - 2 points in ascending order of their bound: symmetric sets and two rounds of neighbours."""
    known = {frozenset(points): (bound(points, m, r), points) for points in candidates(m + r - 2, largest)}
    for _ in range(2):
        leaders = sorted(known.values())[:8]
        for points in (other for _, leader in leaders for other in neighbours(leader, largest)):
            if frozenset(points) not in known:
                known[frozenset(points)] = (bound(points, m, r), points)
    return sorted(known.values())


def search_points(
    m: int,
    r: int,
    precision: str = "fp32",
    dimensions: int = 2,
    seconds: float = 60,
    seed: int = 0,
    largest: int = 5,
    bases: Sequence[str] = ("monomial", "legendre", "chebyshev"),
) -> Points:
    """The rational points and polynomial bases with the least measured error of F(m, r).

    Args:
        m, r: outputs and taps; 2 <= m + r - 2 <= 16 finite points.
        precision: "fp32", "fp16" or "int8", as `rounding.measure` defines them.
        dimensions: 1, or 2 for F(m x m, r x r).
        seconds: time limit of the measurements.
        seed: of the random tiles.
        largest: largest numerator and denominator.
        bases: polynomial bases tried on the three sides after the points are chosen.

    Raises:
        BadInput: sizes out of range, or an unknown precision or basis.
    """
    count = m + r - 2
    if not 2 <= count <= 16 or m < 1 or r < 1:
        raise BadInput(f"F({m}, {r}) has {count} finite points; the search takes 2 to 16")
    begun = time.monotonic()
    default = rounding.balanced(winograd_convolution(m, r))
    usual = tuple(x for x in choose_points(count + 1) if x is not None)
    finalists = [points for _, points in ranked_sets(m, r, largest)[:_FINALISTS]]
    finalists += [] if usual in finalists else [usual]
    measured = 0

    def error_of(algorithm: ConvolutionScheme | SplitConvolution, tiles: int) -> float:
        return rounding.measure(algorithm, precision, dimensions, tiles, seed + 1).mean

    # successive halving: each round keeps half the sets and doubles the sample
    tiles = 256
    schemes = {points: rounding.balanced(winograd_convolution(m, r, points)) for points in finalists}
    while len(finalists) > 1 and time.monotonic() - begun < seconds:
        scores = {points: error_of(schemes[points], tiles) for points in finalists}
        measured += len(finalists)
        finalists = sorted(finalists, key=scores.__getitem__)[: max(1, len(finalists) // 2)]
        tiles = min(2 * tiles, 8192)
    best = rounding.change_of_basis(schemes[finalists[0]], "monomial", "monomial", "monomial")
    least = error_of(best, tiles)
    for names in itertools.product(bases, repeat=3):
        if time.monotonic() - begun > seconds:
            break
        if set(names) == {"monomial"}:
            continue
        split = rounding.change_of_basis(best.scheme, *names)
        error = error_of(split, tiles)
        measured += 1
        if error < least:
            best, least = split, error
    fresh = rounding.measure(best, precision, dimensions, 8192, seed)
    plain = rounding.measure(default, precision, dimensions, 8192, seed)
    return Points(finalists[0], best, fresh, plain, measured, time.monotonic() - begun)

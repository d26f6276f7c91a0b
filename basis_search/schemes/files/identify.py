"""Identification of a file's three matrices: orientation, format, convention of W and ring, by Brent's equations.

Some programs write W for C, index i p + j (fast-matmul, plinopt), others for C^T, index j n + i (AlphaTensor,
AlphaEvolve, flip-graph programs); for square outputs only the equations distinguish the two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.bilinear import MAX_ENTRIES, MAX_RANK
from basis_search.schemes.algebra.rings import (
    Array,
    Gaussian,
    ring_named,
    smallest_ring,
)
from basis_search.schemes.algebra.scheme import BilinearScheme

MAX_COEFFICIENTS = 1 << 22  # of one matrix


@dataclass(frozen=True)
class Matrices:
    """The contents of a file: U, V, W as written, and the format and the ring where the file states them.

    `rows` is True if rows are products, False if columns are, None if the file's format does not state it.
    """

    U: Any
    V: Any
    W: Any
    shape: tuple[int, int, int] | None = None
    ring: str | None = None
    rows: bool | None = None


def check_size(rank: int, entries: int, what: str) -> None:
    """Checks a matrix's size against the limits before memory is allocated for it.

    Raises:
        BadInput: the size is beyond a limit.
    """
    if not 1 <= rank <= MAX_RANK or not 1 <= entries <= MAX_ENTRIES or rank * entries > MAX_COEFFICIENTS:
        raise BadInput(
            f"{what} declares {rank} products of {entries} entries; the limits are {MAX_RANK} products, {MAX_ENTRIES} "
            f"entries and {MAX_COEFFICIENTS} coefficients in a matrix"
        )


def identify(given: Matrices, what: str) -> BilinearScheme:
    """The verified scheme that the matrices represent.

    Raises:
        BadInput: no interpretation satisfies Brent's equations; the message names the first violated equation of the
            interpretation with the least residual.
    """
    exact = ring_named("Q[i]" if given.ring is None else given.ring)
    named = (("U", given.U), ("V", given.V), ("W", given.W))
    U, V, W = (_matrix(x, exact.coerce, f"{what}: {letter}") for letter, x in named)
    nearest: BilinearScheme | None = None
    least = float("inf")
    tried = False
    for rows, shape in _readings(given, (U, V, W)):
        matrices = [x if rows else x.T for x in (U, V, W)]
        for transposed in (False, True):
            candidate = _candidate(shape, matrices, transposed, given.ring)
            tried = True
            for scheme in (candidate, *_modulo_two(candidate, given.ring)):
                if scheme.verify():
                    return scheme
            residual = candidate.residual()
            if residual < least:
                nearest, least = candidate, residual
    if not tried or nearest is None:
        shapes = ", ".join(str(list(x.shape)) for x in (U, V, W))
        form = "" if given.shape is None else f" of format {'x'.join(map(str, given.shape))}"
        raise BadInput(
            f"{what}: matrices of shapes {shapes} are not a scheme{form}; r x nm, r x mp and r x np are needed"
        )
    raise BadInput(f"{what} is not an exact scheme: {nearest.first_violation()}")


def _matrix(values: Any, coerce: Any, what: str) -> Array:
    if not isinstance(values, np.ndarray):
        lengths = {len(row) for row in values}
        if len(lengths) != 1 or not lengths - {0}:
            raise BadInput(f"{what} has rows of {len(lengths)} different lengths, but a matrix is needed")
        check_size(len(values), lengths.pop(), what)
        array = np.empty((len(values), len(values[0])), dtype=object)
        for k, row in enumerate(values):
            array[k] = row
        values = array
    if values.dtype == object:
        whole = all(type(x) is int and abs(x) < 1 << 62 for x in values.flat)
        values = values.astype(np.int64) if whole else values
    # integers stay as they are: a ring of characteristic 0 is chosen once all three matrices are known
    return values if values.dtype.kind in "iu" and values.ndim == 2 else np.asarray(coerce(values, what))


def _readings(given: Matrices, matrices: tuple[Array, Array, Array]) -> Iterator[tuple[bool, tuple[int, int, int]]]:
    """The (rows are products, format) that the shapes allow."""
    for rows in (True, False) if given.rows is None else (given.rows,):
        axis = 0 if rows else 1
        ranks = {x.shape[axis] for x in matrices}
        if len(ranks) != 1:
            continue
        a, b, c = (x.shape[1 - axis] for x in matrices)
        if given.shape is not None:
            n, m, p = given.shape
            if (n * m, m * p, n * p) == (a, b, c):
                yield rows, given.shape
            continue
        m = isqrt(a * b // c) if c else 0
        if m and a % m == 0 and b % m == 0 and (a // m) * (b // m) == c:
            yield rows, (a // m, m, b // m)


def _candidate(
    shape: tuple[int, int, int], matrices: list[Array], transposed: bool, ring: str | None
) -> BilinearScheme:
    n, m, p = shape
    U, V, W = matrices
    if transposed:
        W = W.reshape(-1, p, n).transpose(0, 2, 1).reshape(len(W), -1)
    return BilinearScheme(n, m, p, U, V, W, ring or smallest_ring((U, V, W)))


def _modulo_two(scheme: BilinearScheme, ring: str | None) -> list[BilinearScheme]:
    """The integer scheme reduced modulo 2, because a file that names no ring may contain a scheme over GF(2)."""
    if ring is not None or scheme.ring not in ("ZT", "Z"):
        return []
    return [scheme.reduce_mod(2)]


def parse_coefficient(value: Any, what: str) -> Any:
    """A coefficient in JSON (a number, a string such as "1/2", or [re, im]) as a number.

    Raises:
        BadInput: anything else.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return int(value) if isinstance(value, float) and value.is_integer() else value
    if isinstance(value, str):
        return Gaussian.parse(value)
    if isinstance(value, Gaussian | Fraction):
        return value
    if isinstance(value, list) and len(value) == 2 and not any(isinstance(x, list) for x in value):
        return Gaussian.of(parse_coefficient(value[0], what)) + Gaussian.of(
            parse_coefficient(value[1], what)
        ) * Gaussian.of(1j)
    raise BadInput(f"{what}: {str(value)[:40]!r} is not a coefficient; write a number, '1/2' or [re, im]")

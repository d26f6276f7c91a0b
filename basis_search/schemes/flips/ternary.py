"""Integer schemes made ternary by elementary changes of their three bases: steepest descent with random kicks.

With P = I + t E_ij the scheme of (P A, B, P C) adds t times row j of W to row i, and subtracts t times row i of U from
row j; likewise in the other two spaces. The cost is (coefficients beyond -1, 0, 1; non-zero coefficients).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme

Integers = NDArray[np.int64]
Move = tuple[int, int, int, int]  # space, i, j, t

# space: (factor, axis) that gains and (factor, axis) that loses; factors U, V, W as [r, rows, columns]
_GAINS = ((2, 1), (0, 2), (2, 2))
_LOSES = ((0, 1), (1, 1), (1, 2))
_TRANSPOSED = (False, False, True)  # C R adds column i to column j
_LARGE_COST = 1 << 20  # one coefficient beyond -1, 0, 1 outweighs all zeros


def towards_ternary(scheme: BilinearScheme, rounds: int = 50, seed: int = 0) -> BilinearScheme:
    """An equivalent scheme with fewer coefficients beyond -1, 0, 1, then fewer non-zero ones; at worst the same scheme.

    The result is over ZT if all its coefficients are -1, 0 or 1, otherwise over Z.

    Args:
        scheme: over Z or ZT.
        rounds: random kicks after the first descent.
        seed: of the kicks.

    Raises:
        BadInput: a scheme over a ring other than ZT and Z, or rounds below 0.
    """
    if scheme.ring not in ("ZT", "Z"):
        raise BadInput(f"only integer coefficients can be made ternary, and the scheme is over {scheme.ring}")
    if rounds < 0:
        raise BadInput(f"rounds = {rounds}, but must be at least 0")
    n, m, p = scheme.shape
    sides = (n, m, p)
    shapes = ((n, m), (m, p), (n, p))
    given = (scheme.U, scheme.V, scheme.W)
    start = [np.array(x, dtype=np.int64).reshape(-1, *shape) for x, shape in zip(given, shapes, strict=True)]
    moves = [
        (s, i, j, t) for s in range(3) for i in range(sides[s]) for j in range(sides[s]) if i != j for t in (1, -1)
    ]
    random = np.random.default_rng(seed)
    best = _steepest_descent(start, moves)
    least = _cost(best)
    for _ in range(rounds if moves else 0):
        kicked = [x.copy() for x in best]
        for k in random.integers(len(moves), size=int(random.integers(1, 4))):
            _apply(kicked, moves[k])
        tried = _steepest_descent(kicked, moves)
        cost = _cost(tried)
        if cost <= least:
            best, least = tried, cost
    flat = [x.reshape(len(x), -1) for x in best]
    if least >= _cost(start):
        return scheme
    return BilinearScheme(n, m, p, flat[0], flat[1], flat[2], "Z").simplest_ring()


def _cost(factors: list[Integers]) -> int:
    return sum(_weight(x) for x in factors)


def _weight(x: Integers) -> int:
    return int((x != 0).sum()) + _LARGE_COST * int((np.abs(x) > 1).sum())


def _apply(factors: list[Integers], move: Move) -> None:
    space, i, j, t = move
    if _TRANSPOSED[space]:
        i, j = j, i
    for (factor, axis), to, of, sign in ((_GAINS[space], i, j, t), (_LOSES[space], j, i, -t)):
        x = np.moveaxis(factors[factor], axis, 0)
        x[to] += sign * x[of]


def _change(factors: list[Integers], move: Move) -> int:
    """The change in cost by a move."""
    space, i, j, t = move
    if _TRANSPOSED[space]:
        i, j = j, i
    change = 0
    for (factor, axis), to, of, sign in ((_GAINS[space], i, j, t), (_LOSES[space], j, i, -t)):
        x = np.moveaxis(factors[factor], axis, 0)
        change += _weight(x[to] + sign * x[of]) - _weight(x[to])
    return change


def _steepest_descent(start: list[Integers], moves: list[Move]) -> list[Integers]:
    """The factors after the steepest moves, until none lowers the cost."""
    factors = [x.copy() for x in start]
    while moves:
        changes = [_change(factors, move) for move in moves]
        least = int(np.argmin(changes))
        if changes[least] >= 0:
            break
        _apply(factors, moves[least])
    return factors

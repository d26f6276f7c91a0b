"""What acts on schemes for matrix multiplication, and how larger ones are put together from smaller ones.

(A, B, C) -> (P A Q^-1, Q B R^-1, P C R^-1); cyclic shift of trace(A B C^T); transposition (A B)^T = B^T A^T.
"""

from __future__ import annotations

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.rings import Array
from basis_search.schemes.scheme import BilinearScheme

_WIDER = ("ZT", "Z", "Z[1/2]", "Q", "Z[i]", "Z[i,1/2]", "Q[i]", "R")
_CONTAINED = {
    "ZT": set(_WIDER),
    "Z": set(_WIDER[1:]),
    "Z[1/2]": {"Z[1/2]", "Q", "Z[i,1/2]", "Q[i]", "R"},
    "Q": {"Q", "Q[i]", "R"},
    "Z[i]": {"Z[i]", "Z[i,1/2]", "Q[i]"},
    "Z[i,1/2]": {"Z[i,1/2]", "Q[i]"},
    "Q[i]": {"Q[i]"},
    "R": {"R"},
}


def joint_ring(a: str, b: str) -> str:
    """The smallest ring that holds both.

    Raises:
        BadInput: there is none, such as for Z2 and Q.
    """
    if a == b:
        return a
    for ring in _WIDER:
        if ring in _CONTAINED.get(a, ()) and ring in _CONTAINED.get(b, ()):
            return ring
    raise BadInput(f"schemes over {a} and {b} share no ring; bring one to the other's with to_ring() or reduce_mod()")


def tensor_product(a: BilinearScheme, b: BilinearScheme) -> BilinearScheme:
    """The scheme of format (n n', m m', p p') that applies `a` to blocks and `b` inside them; its rank is r r'."""
    ring = joint_ring(a.ring, b.ring)
    a, b = a.to_ring(ring), b.to_ring(ring)

    def kron(x: Array, y: Array, rows: tuple[int, int], columns: tuple[int, int]) -> Array:
        left = x.reshape(len(x), 1, rows[0], 1, columns[0], 1)
        right = y.reshape(1, len(y), 1, rows[1], 1, columns[1])
        return (left * right).reshape(len(x) * len(y), -1)

    n, m, p = (a.n, b.n), (a.m, b.m), (a.p, b.p)
    U, V, W = kron(a.U, b.U, n, m), kron(a.V, b.V, m, p), kron(a.W, b.W, n, p)
    if a.ring_of.characteristic:
        U, V, W = (x % a.ring_of.characteristic for x in (U, V, W))
    return BilinearScheme(n[0] * n[1], m[0] * m[1], p[0] * p[1], U, V, W, ring)


def _swap(rows: Array, height: int, width: int) -> Array:
    """Each row, the entries of a height x width matrix, transposed."""
    return np.ascontiguousarray(rows.reshape(-1, height, width).transpose(0, 2, 1).reshape(len(rows), -1))


def cycle(s: BilinearScheme) -> BilinearScheme:
    """The scheme of format (m, p, n): from trace(A B C^T) = trace(B C^T A)."""
    n, m, p = s.shape
    return BilinearScheme(m, p, n, s.V, _swap(s.W, n, p), _swap(s.U, n, m), s.ring)


def transpose(s: BilinearScheme) -> BilinearScheme:
    """The scheme of format (p, m, n): from (A B)^T = B^T A^T."""
    n, m, p = s.shape
    return BilinearScheme(p, m, n, _swap(s.V, m, p), _swap(s.U, n, m), _swap(s.W, n, p), s.ring)

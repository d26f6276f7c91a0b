"""Transforms of matrix multiplication schemes, and larger schemes from smaller ones.

(A, B, C) -> (P A Q^-1, Q B R^-1, P C R^-1); cyclic shift of trace(A B C^T); transposition (A B)^T = B^T A^T; tensor
products, direct sums, extension and projection.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.factor_orders import transposed_rows
from basis_search.schemes.algebra.rings import (
    Array,
    Ring,
    ring_named,
    smallest_ring,
)
from basis_search.schemes.algebra.scheme import BilinearScheme, matmul_target

_FROM_SMALL_TO_LARGE = ("ZT", "Z", "Z[1/2]", "Q", "Z[i]", "Z[i,1/2]", "Q[i]", "R")
_SUPERRINGS = {
    "ZT": set(_FROM_SMALL_TO_LARGE),
    "Z": set(_FROM_SMALL_TO_LARGE[1:]),
    "Z[1/2]": {"Z[1/2]", "Q", "Z[i,1/2]", "Q[i]", "R"},
    "Q": {"Q", "Q[i]", "R"},
    "Z[i]": {"Z[i]", "Z[i,1/2]", "Q[i]"},
    "Z[i,1/2]": {"Z[i,1/2]", "Q[i]"},
    "Q[i]": {"Q[i]"},
    "R": {"R"},
}


def joint_ring(a: str, b: str) -> str:
    """The smallest ring that contains both.

    Raises:
        BadInput: there is none, as for Z2 and Q.
    """
    if a == b:
        return a
    for ring in _FROM_SMALL_TO_LARGE:
        if ring in _SUPERRINGS.get(a, ()) and ring in _SUPERRINGS.get(b, ()):
            return ring
    raise BadInput(f"schemes over {a} and {b} share no ring; convert one with to_ring() or reduce_mod()")


def is_contained(a: str, b: str) -> bool:
    """Whether every scheme over `a` is also one over `b`, reduced modulo p if `b` is Zp and `a` is Z or ZT."""
    if b in _SUPERRINGS.get(a, ()):
        return True
    return a in ("Z", "ZT") and bool(ring_named(b).characteristic)


def tensor_product(a: BilinearScheme, b: BilinearScheme) -> BilinearScheme:
    """The scheme of format (n n', m m', p p') and rank r r' that applies `a` to blocks and `b` inside them."""
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


def cycle(s: BilinearScheme) -> BilinearScheme:
    """The scheme of format (m, p, n): from trace(A B C^T) = trace(B C^T A)."""
    n, m, p = s.shape
    return BilinearScheme(m, p, n, s.V, transposed_rows(s.W, n, p), transposed_rows(s.U, n, m), s.ring)


def transpose(s: BilinearScheme) -> BilinearScheme:
    """The scheme of format (p, m, n): from (A B)^T = B^T A^T."""
    n, m, p = s.shape
    return BilinearScheme(
        p, m, n, transposed_rows(s.V, m, p), transposed_rows(s.U, n, m), transposed_rows(s.W, n, p), s.ring
    )


def to_format(s: BilinearScheme, n: int, m: int, p: int) -> BilinearScheme:
    """The same algorithm for a permutation of its format, by cyclic shifts and transposition.

    Raises:
        BadInput: (n, m, p) is not a permutation of the scheme's format.
    """
    for start in (s, transpose(s)):
        for _ in range(3):
            if start.shape == (n, m, p):
                return start
            start = cycle(start)
    raise BadInput(
        f"format {n}x{m}x{p} is not a permutation of {s.format}; extend(), project() and merge() change sizes"
    )


def sandwich(s: BilinearScheme, P: Any, Q: Any, R: Any, ring: str | None = None) -> BilinearScheme:
    """The scheme of the same rank after the change of basis A -> P A Q^-1, B -> Q B R^-1, C -> P C R^-1.

    Args:
        P: [n, n], Q: [m, m], R: [p, p], invertible, with entries that share a ring with `s`.
        ring: the ring of the result; by default that of `s`, or the smallest ring that contains the result.

    Raises:
        BadInput: a matrix has another shape or is singular, or the result is not in `ring`.
    """
    n, m, p = s.shape
    changes = [_invertible(x, side, name, s) for x, side, name in ((P, n, "P"), (Q, m, "Q"), (R, p, "R"))]
    inverses = [inverse(x, s.ring_of, name) for x, name in zip(changes, "PQR", strict=True)]
    (P_, Q_, R_), (Pi, Qi, Ri) = changes, inverses
    # (P A Q^-1)[i, k] = sum P[i, s] A[s, t] Q^-1[t, k], and C = P^-1 (.) R
    U = _contract(s.U.reshape(-1, n, m), P_, Qi)
    V = _contract(s.V.reshape(-1, m, p), Q_, Ri)
    W = _contract(s.W.reshape(-1, n, p), Pi.T, R_.T)
    modulus = s.ring_of.characteristic
    if modulus:
        return BilinearScheme(n, m, p, U % modulus, V % modulus, W % modulus, s.ring)
    if not s.ring_of.exact:
        return BilinearScheme(n, m, p, U, V, W, "R")
    found = BilinearScheme(n, m, p, U, V, W, smallest_ring((U, V, W)))
    return found.to_ring(ring or joint_ring(s.ring, found.ring))


def _contract(x: Array, left: Array, right: Array) -> Array:
    """sum_ik x[q, i, k] left[i, s] right[t, k] as rows [q, s t]."""
    y = np.tensordot(x, left, axes=(1, 0))  # [q, k, s]
    y = np.tensordot(y, right, axes=(1, 1))  # [q, s, t]
    return np.asarray(y.reshape(len(x), -1))


def _invertible(matrix: Any, side: int, name: str, s: BilinearScheme) -> Array:
    exact = s.ring_of.exact and not s.ring_of.characteristic
    matrix = np.asarray(matrix)
    if matrix.shape != (side, side):
        raise BadInput(f"{name} has shape {list(matrix.shape)}, but format {s.format} needs [{side}, {side}]")
    if exact:
        return ring_named("Q[i]" if s.ring_of.complex else "Q").coerce(matrix, name)
    return s.ring_of.coerce(matrix, name)


def inverse(matrix: Array, ring: Ring, name: str = "the matrix") -> Array:
    """The inverse: exact by Gauss-Jordan elimination (over GF(p) with residues), over R in floating point.

    Raises:
        BadInput: the matrix is singular.
    """
    if not ring.exact:
        return np.linalg.inv(matrix)
    p, size = ring.characteristic, len(matrix)
    rows = [[*matrix[i].tolist(), *(int(i == j) for j in range(size))] for i in range(size)]
    for column in range(size):
        pivot = next((i for i in range(column, size) if rows[i][column]), None)
        if pivot is None:
            raise BadInput(f"{name} is singular over {ring.name}; a change of basis needs an invertible matrix")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        lead = rows[column][column]
        scale = pow(lead, -1, p) if p else None
        rows[column] = [x * scale % p if p else x / lead for x in rows[column]]
        for i in range(size):
            factor = rows[i][column]
            if i != column and factor:
                rows[i] = [
                    (x - factor * y) % p if p else x - factor * y for x, y in zip(rows[i], rows[column], strict=True)
                ]
    return np.array([row[size:] for row in rows], dtype=np.int64 if p else object)


def merge(a: BilinearScheme, b: BilinearScheme, axis: str) -> BilinearScheme:
    """The direct sum of two schemes along `axis` ("n", "m" or "p"): that side and the rank are sums of theirs.

    Raises:
        BadInput: another axis, or formats that differ in another side.
    """
    if axis not in ("n", "m", "p"):
        raise BadInput(f"axis {axis!r} is unknown; schemes are merged along 'n', 'm' or 'p'")
    differing = [name for name in "nmp" if name != axis and getattr(a, name) != getattr(b, name)]
    if differing:
        raise BadInput(f"{a.format} and {b.format} cannot be merged along {axis}: they differ in {differing[0]}")
    ring = joint_ring(a.ring, b.ring)
    a, b = a.to_ring(ring), b.to_ring(ring)

    def block_diagonal(x: Array, y: Array, names: str) -> Array:
        left = x.reshape(len(x), getattr(a, names[0]), getattr(a, names[1]))
        right = y.reshape(len(y), getattr(b, names[0]), getattr(b, names[1]))
        if axis not in names:
            return np.concatenate([x, y])
        k = 1 + names.index(axis)
        zero = x.flat[0] * 0
        size = list(left.shape)
        size[0], size[k] = len(x) + len(y), left.shape[k] + right.shape[k]
        both = np.full(size, zero, dtype=x.dtype)
        both[(slice(0, len(x)), *(slice(0, left.shape[d]) for d in (1, 2)))] = left
        both[(slice(len(x), None), *(slice(size[d] - right.shape[d], None) for d in (1, 2)))] = right
        return both.reshape(size[0], -1)

    sides = {name: getattr(a, name) + (getattr(b, name) if name == axis else 0) for name in "nmp"}
    return BilinearScheme(
        **sides,
        U=block_diagonal(a.U, b.U, "nm"),
        V=block_diagonal(a.V, b.V, "mp"),
        W=block_diagonal(a.W, b.W, "np"),
        ring=ring,
    )


def extend(s: BilinearScheme, axis: str) -> BilinearScheme:
    """The scheme with `axis` one longer by the standard algorithm; the rank grows by the product of the other sides."""
    sides = {name: 1 if name == axis else getattr(s, name) for name in "nmp"}
    return merge(s, _standard_over(s.ring, *sides.values()), axis)


def _standard_over(ring: str, n: int, m: int, p: int) -> BilinearScheme:
    target = matmul_target(n, m, p)
    U, V, W = (np.eye(size, dtype=np.int64) for size in target.sizes)
    return BilinearScheme(n, m, p, U[target.x], V[target.y], W[target.z], ring)


def project(s: BilinearScheme, axis: str, index: int = -1) -> BilinearScheme:
    """The scheme with `axis` one shorter: row or column `index` is set to zero, and terms that vanish are dropped.

    Raises:
        BadInput: another axis, an index out of range, or a side of 1.
    """
    if axis not in ("n", "m", "p"):
        raise BadInput(f"axis {axis!r} is unknown; schemes are projected along 'n', 'm' or 'p'")
    side = getattr(s, axis)
    if side == 1:
        raise BadInput(f"{s.format} cannot be projected along {axis}: that side is already 1")
    if not -side <= index < side:
        raise BadInput(f"index {index} is out of range for side {axis} of {s.format}; use 0 to {side - 1}")

    def without(x: Array, names: str) -> Array:
        cube = x.reshape(len(x), getattr(s, names[0]), getattr(s, names[1]))
        if axis in names:
            cube = np.delete(cube, index % side, axis=1 + names.index(axis))
        return cube.reshape(len(x), -1)

    U, V, W = without(s.U, "nm"), without(s.V, "mp"), without(s.W, "np")
    alive = (U != 0).any(axis=1) & (V != 0).any(axis=1) & (W != 0).any(axis=1)
    sides = {name: getattr(s, name) - (name == axis) for name in "nmp"}
    return BilinearScheme(**sides, U=U[alive], V=V[alive], W=W[alive], ring=s.ring)

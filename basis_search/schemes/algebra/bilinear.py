"""A bilinear map computed by r products, c = W^T ((U a) * (V b)), checked exactly against its structure tensor.

Brent's equations: sum_q U[q, x] V[q, y] W[q, z] = T[x, y, z] for every x, y, z (R. P. Brent, 1970).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra import brent
from basis_search.schemes.algebra.brent import Numerators, Target
from basis_search.schemes.algebra.rings import (
    Array,
    Gaussian,
    Ring,
    ring_named,
    smallest_ring,
)

MAX_RANK = 1 << 17
MAX_ENTRIES = 1 << 12  # of one operand


class BilinearMap:
    """The base class of schemes. Subclasses are frozen dataclasses that define the map.

    Attributes:
        U: [r, a], V: [r, b], W: [r, c]: exact coefficients, read-only, stored as `Ring.coerce` describes.
        ring: the ring's name.
    """

    U: Array
    V: Array
    W: Array
    ring: str

    # ---- defined by subclasses ------------------------------------------------------------------------------
    @property
    def target(self) -> Target:
        """The structure tensor of the map."""
        raise NotImplementedError

    @property
    def format(self) -> str:
        """The map's sizes as a short text, such as 2x2x2."""
        raise NotImplementedError

    def _equation_name(self, x: int, y: int, z: int) -> str:
        """The equation of a[x] b[y] -> c[z] in words."""
        return f"a[{x}] b[{y}] in c[{z}]"

    # ---- construction ---------------------------------------------------------------------------------------
    def _coerce(self, sizes: tuple[int, int, int]) -> None:
        """Checks the three matrices against the ring and the sizes, and stores them as read-only arrays."""
        ring = ring_named(self.ring)
        object.__setattr__(self, "ring", ring.name)
        if max(sizes) > MAX_ENTRIES:
            raise BadInput(f"format {self.format} has an operand of {max(sizes)} entries; the limit is {MAX_ENTRIES}")
        rank = None
        for letter, size in zip("UVW", sizes, strict=True):
            given = getattr(self, letter)
            rows = len(given)
            if rank is None:
                rank = rows
            if not 1 <= rows <= MAX_RANK:
                raise BadInput(f"{letter} has {rows} rows (products); 1 to {MAX_RANK} are allowed")
            matrix = ring.coerce(given, letter)
            if matrix.shape != (rank, size):
                raise BadInput(
                    f"{letter} has shape {list(matrix.shape)}, but format {self.format} with {rank} products needs "
                    f"[{rank}, {size}]"
                )
            object.__setattr__(self, letter, matrix)

    def _with_matrices(self, matrices: Sequence[Array], ring: str) -> Self:
        U, V, W = matrices
        return replace(self, U=U, V=V, W=W, ring=ring)  # type: ignore[type-var]

    # ---- counts and conversions -----------------------------------------------------------------------------
    @property
    def rank(self) -> int:
        """The number of products."""
        return len(self.U)

    @property
    def ring_of(self) -> Ring:
        """The ring as an object."""
        return ring_named(self.ring)

    @property
    def nnz(self) -> int:
        """Non-zero coefficients of U, V and W together."""
        return sum(int(np.count_nonzero(m)) for m in (self.U, self.V, self.W))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.format}, rank {self.rank}, ring {self.ring})"

    def additions(self) -> int:
        """Additions and subtractions in the shortest straight-line programs found for U, V and W^T."""
        from basis_search.schemes.programs.additions import additions

        return additions(self).additions

    @property
    def naive_additions(self) -> int:
        """Additions without common subexpressions: nnz - 2 r - (outputs)."""
        return self.nnz - 2 * self.rank - self.target.sizes[2]

    def floats(self) -> tuple[Array, Array, Array]:
        """U, V, W as float64, or complex128 for a complex ring."""
        dtype = np.complex128 if self.ring_of.complex else np.float64
        return tuple(np.array(m, dtype=dtype) for m in (self.U, self.V, self.W))  # type: ignore[return-value]

    def to_ring(self, ring: str) -> Self:
        """The same coefficients in another ring of characteristic 0, or in R.

        Raises:
            BadInput: a coefficient is not in it.
        """
        if self.ring_of.characteristic and ring_named(ring).name != self.ring:
            raise BadInput(
                f"a scheme over {self.ring} cannot be converted to {ring}; lift() searches for a scheme that can"
            )
        matrices = self.floats() if ring == "R" else (self.U, self.V, self.W)
        return self._with_matrices(matrices, ring)

    def simplest_ring(self) -> Self:
        """The same scheme over the smallest ring of characteristic 0 that contains it; unchanged over GF(p) and R."""
        if self.ring_of.characteristic or not self.ring_of.exact:
            return self
        return self.to_ring(smallest_ring((self.U, self.V, self.W)))

    def reduce_mod(self, p: int) -> Self:
        """The scheme over GF(p), with i replaced by a square root of -1.

        Raises:
            BadInput: p is not prime or divides a denominator, or a square root of -1 is needed and does not exist.
        """
        ring = ring_named(f"Z{p}")
        if self.ring == ring.name:
            return self
        if self.ring_of.characteristic or not self.ring_of.exact:
            raise BadInput(
                f"a scheme over {self.ring} cannot be reduced modulo {p}; use one over Z, Q or a complex ring"
            )
        reduced = []
        root = None
        for letter, part in zip("UVW", self._numerators, strict=True):
            if part.denominator % p == 0:
                raise BadInput(f"{letter} has denominators divisible by {p}, so the scheme has no reduction modulo {p}")
            residues = part.re % p
            if part.im is not None:
                root = root if root is not None else next((t for t in range(1, p) if (t * t + 1) % p == 0), 0)
                if not root:
                    raise BadInput(f"-1 has no square root modulo {p}; reduce modulo 2 or a prime of the form 4k + 1")
                residues = residues + root * (part.im % p)
            reduced.append((residues * pow(part.denominator, -1, p) % p).astype(np.int64))
        return self._with_matrices(reduced, ring.name)

    # ---- verification ---------------------------------------------------------------------------------------
    @cached_property
    def _numerators(self) -> tuple[Numerators, Numerators, Numerators]:
        return tuple(Numerators.of(m) for m in (self.U, self.V, self.W))  # type: ignore[return-value]

    def verify(self) -> bool:
        """Whether all of Brent's equations hold exactly in the ring (over R: for the float64 values)."""
        return self.first_violation() is None

    def first_violation(self) -> str | None:
        """The first of Brent's equations that fails, as a sentence, or None if all hold."""
        place = None
        if not self.ring_of.exact:  # a cheap check that nearly every approximate scheme fails
            place = brent.first_deviation(*self.floats(), self.target, above=1e-6)
        if place is None:
            place = brent.first_failure(self._numerators, self.target, self.ring_of.characteristic)
        return None if place is None else self._violation_sentence(*place)

    def residual(self) -> float:
        """||T - [[U, V, W]]||^2 / ||T||^2; over GF(p), the number of failing equations / the number of ones in T."""
        p = self.ring_of.characteristic
        if p:
            blocks = brent.failures(self._numerators, self.target, p)
            return sum(float(np.count_nonzero(wrong)) for _, wrong in blocks) / len(self.target.x)
        deviations = brent.deviations(*self.floats(), self.target)
        return sum(float(np.sum(np.abs(deviation) ** 2)) for _, deviation in deviations) / len(self.target.x)

    def value(self, x: int, y: int, z: int) -> Any:
        """sum_q U[q, x] V[q, y] W[q, z], in the ring."""
        total: Any = 0
        for q in range(self.rank):
            if self.U[q, x] and self.V[q, y] and self.W[q, z]:
                product = self.U[q, x].item() if self.U.dtype != object else self.U[q, x]
                for factor in (self.V[q, y], self.W[q, z]):
                    product = product * (factor.item() if isinstance(factor, np.generic) else factor)
                total = total + product
        return total % self.ring_of.characteristic if self.ring_of.characteristic else total

    def _violation_sentence(self, x: int, y: int, z: int) -> str:
        target = self.target
        needed = int(((target.x == x) & (target.y == y) & (target.z == z)).any())
        return (
            f"{self.format} of rank {self.rank} over {self.ring} breaks Brent's equation for "
            f"{self._equation_name(x, y, z)}: its products add up to {self.value(x, y, z)}, but {needed} is needed"
        )

    # ---- canonical form -------------------------------------------------------------------------------------
    @cached_property
    def _canonical_terms(self) -> tuple[tuple[Any, ...], ...]:
        return tuple(sorted(self._signed_term(q) for q in range(self.rank)))

    def _signed_term(self, q: int) -> tuple[Any, ...]:
        p = self.ring_of.characteristic
        rows, flips = [], 0
        for k, matrix in enumerate((self.U, self.V, self.W)):
            row = [_sortable(x) for x in matrix[q].tolist()]
            if k < 2:
                lead = next((x for x in row if x != (0, 0)), (0, 0))
                flip = lead[0] * 2 > p if p else lead < (0, 0)
            else:
                flip = bool(flips % 2)
            if flip:
                flips += 1
                row = [((-x[0]) % p if p else -x[0], -x[1]) for x in row]
            rows.append(tuple(row))
        return tuple(rows)

    def canonical(self) -> Self:
        """The same scheme with sorted terms and a positive first non-zero coefficient in each row of U and V."""
        p = self.ring_of.characteristic
        matrices = []
        for k in range(3):
            rows = [term[k] for term in self._canonical_terms]
            if self.ring_of.complex:
                cells: list[Any] = [[Gaussian(re, im) for re, im in row] for row in rows]
            else:
                cells = [[re for re, _ in row] for row in rows]
            dtype = object if self.U.dtype == object else self.U.dtype
            matrices.append(np.array(cells, dtype=dtype) % p if p else np.array(cells, dtype=dtype))
        return self._with_matrices(matrices, self.ring)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the canonical form: equal for schemes that differ only in the order and signs of their terms."""
        text = repr((type(self).__name__, self.format, self.ring_of.characteristic, self.ring_of.exact))
        digest = hashlib.sha256(text.encode())
        for term in self._canonical_terms:
            rows = (" ".join(f"{re}" if not im else f"{re},{im}" for re, im in row) for row in term)
            digest.update(";".join(rows).encode())
        return digest.hexdigest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BilinearMap) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)


def _sortable(x: Any) -> tuple[Any, Any]:
    return (x.re, x.im) if isinstance(x, Gaussian) else (x, 0)

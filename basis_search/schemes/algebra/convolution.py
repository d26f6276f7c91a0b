"""Schemes for polynomial products, c_k = sum a_i b_(k-i), and correlations, y_k = sum_j d_(k+j) g_j."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.bilinear import BilinearMap
from basis_search.schemes.algebra.brent import Target
from basis_search.schemes.algebra.rings import Array
from basis_search.schemes.algebra.transforms import joint_ring

KINDS = ("polynomial", "correlation")
MAX_LENGTH = 64


@dataclass(frozen=True, eq=False, repr=False)
class ConvolutionScheme(BilinearMap):
    """A bilinear algorithm for polynomial products (Karatsuba, Toom-Cook) or filters (Winograd's F(m, r)).

    Args:
        kind: "polynomial": sizes (a, b) per dimension, a and b coefficients give a + b - 1;
            "correlation": sizes (m, r) per dimension, m + r - 1 inputs and r filter taps give m outputs.
        sizes: one pair per dimension; operands are flattened row-major over the dimensions.
        U: [q, inputs], V: [q, second operand or taps], W: [q, outputs], ring: as in `BilinearScheme`.

    Raises:
        BadInput: an unknown kind, sizes beyond 1 to 64, shapes that contradict them, coefficients outside the ring.
    """

    kind: str
    sizes: tuple[tuple[int, int], ...]
    U: Array
    V: Array
    W: Array
    ring: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(f"unknown kind {self.kind!r} of convolution; it is one of {', '.join(KINDS)}")
        sizes = tuple((int(a), int(b)) for a, b in self.sizes)
        if not sizes or any(not 1 <= x <= MAX_LENGTH for pair in sizes for x in pair):
            raise BadInput(f"sizes {sizes} of a {self.kind}: pairs of integers from 1 to {MAX_LENGTH} are needed")
        object.__setattr__(self, "sizes", sizes)
        self._coerce(self._operands)

    @property
    def dimensions(self) -> int:
        """1 for sequences, 2 for images."""
        return len(self.sizes)

    @property
    def format(self) -> str:
        """Such as F(4,3), F(4x4,3x3), or polynomial(2,2)."""
        first, second = ("x".join(str(pair[k]) for pair in self.sizes) for k in (0, 1))
        return f"{'F' if self.kind == 'correlation' else 'polynomial'}({first},{second})"

    @property
    def _operands(self) -> tuple[int, int, int]:
        a, b, c = zip(*(_one_dimension(self.kind, *pair).sizes for pair in self.sizes), strict=True)
        return int(np.prod(a)), int(np.prod(b)), int(np.prod(c))

    @cached_property
    def target(self) -> Target:
        return reduce(_nested_target, (_one_dimension(self.kind, *pair) for pair in self.sizes))

    def apply(self, a: Any, b: Any) -> Any:
        """The bilinear map of a: [..., inputs] and b: [..., taps], numpy or torch, to [..., outputs]."""
        from basis_search.schemes.algebra.multiply import apply

        return apply(self, a, b)

    def nested(self, inner: ConvolutionScheme) -> ConvolutionScheme:
        """The nested algorithm: this scheme on the outer dimensions, `inner` on the inner ones; ranks multiply.

        Raises:
            BadInput: the two are of different kinds or share no ring.
        """
        if self.kind != inner.kind:
            raise BadInput(f"a {self.kind} and a {inner.kind} do not nest; nest two of the same kind")
        ring = joint_ring(self.ring, inner.ring)
        a, b = self.to_ring(ring), inner.to_ring(ring)
        modulus = a.ring_of.characteristic
        U, V, W = (np.kron(x, y) % modulus if modulus else _kron(x, y) for x, y in ((a.U, b.U), (a.V, b.V), (a.W, b.W)))
        return ConvolutionScheme(self.kind, self.sizes + inner.sizes, U, V, W, ring)

    def composed(self, inner: ConvolutionScheme) -> ConvolutionScheme:
        """The polynomial product of length a a' that applies this scheme to blocks and `inner` inside them.

        Raises:
            BadInput: one of them is not a polynomial product in one dimension.
        """
        if self.kind != "polynomial" or inner.kind != "polynomial" or self.dimensions + inner.dimensions != 2:
            raise BadInput("only polynomial products in one dimension compose; use nested() for the others")
        (a, b), (c, d) = self.sizes[0], inner.sizes[0]
        if c != d:
            raise BadInput(f"the inner product multiplies {c} by {d} coefficients; blocks of equal length are needed")
        both = self.nested(inner)
        outer, inside = a + b - 1, c + d - 1
        W = both.W.reshape(-1, outer, inside)
        folded = np.full((len(W), a * c + b * d - 1), W.flat[0] * 0, dtype=W.dtype)
        for k in range(outer):  # block k begins at x^(k c); adjacent blocks overlap
            folded[:, k * c : k * c + inside] = folded[:, k * c : k * c + inside] + W[:, k]
        if both.ring_of.characteristic:
            folded %= both.ring_of.characteristic
        ring = "Z" if both.ring == "ZT" else both.ring  # coefficients of overlapping blocks add up
        return ConvolutionScheme("polynomial", ((a * c, b * d),), both.U, both.V, folded, ring).simplest_ring()

    def transposed(self) -> ConvolutionScheme:
        """The algorithm of the transposed map, of the same rank: a product (m, r) of polynomials <-> F(m, r)."""
        kind = KINDS[1 - KINDS.index(self.kind)]
        return ConvolutionScheme(kind, self.sizes, self.W, self.V, self.U, self.ring)


def _kron(x: Array, y: Array) -> Array:
    return (x[:, None, :, None] * y[None, :, None, :]).reshape(len(x) * len(y), -1)


def _one_dimension(kind: str, a: int, b: int) -> Target:
    i, j = (index.ravel() for index in np.indices((a, b)))
    if kind == "polynomial":
        return Target((a, b, a + b - 1), i, j, i + j)
    return Target((a + b - 1, b, a), i + j, j, i)


def _nested_target(outer: Target, inner: Target) -> Target:
    x, y, z = (
        (first[:, None] * size + second[None, :]).ravel()
        for first, second, size in zip(
            (outer.x, outer.y, outer.z), (inner.x, inner.y, inner.z), inner.sizes, strict=True
        )
    )
    a, b, c = (s * t for s, t in zip(outer.sizes, inner.sizes, strict=True))
    return Target((a, b, c), x, y, z)

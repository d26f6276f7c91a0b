"""Short straight-line programs for the three linear maps of a bilinear scheme, c = W^T ((U a) * (V b))."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.programs.compose import kronecker, simplified
from basis_search.schemes.programs.program import Coefficient, Program, exact
from basis_search.schemes.programs.shorten import shorten

Matrix = tuple[tuple[Coefficient, ...], ...]


class Bilinear(Protocol):
    """Anything with exact matrices U [r, a], V [r, b], W [r, c], such as a scheme."""

    @property
    def U(self) -> Any: ...
    @property
    def V(self) -> Any: ...
    @property
    def W(self) -> Any: ...


@dataclass(frozen=True)
class BilinearProgram:
    """Programs for U, V and W^T.

    Attributes:
        left: a [a] -> U a [r].
        right: b [b] -> V b [r].
        decode: products [r] -> c [c].
    """

    left: Program
    right: Program
    decode: Program

    def __post_init__(self) -> None:
        ranks = (len(self.left.outputs), len(self.right.outputs), self.decode.inputs)
        if len(set(ranks)) != 1:
            raise BadInput(f"the three programs disagree on the rank: {ranks[0]}, {ranks[1]} and {ranks[2]}")

    @property
    def parts(self) -> tuple[Program, Program, Program]:
        """(left, right, decode)."""
        return self.left, self.right, self.decode

    @property
    def rank(self) -> int:
        """The number of products."""
        return self.decode.inputs

    @property
    def additions(self) -> int:
        """Additions and subtractions of all three programs."""
        return sum(p.additions for p in self.parts)

    @property
    def scalings(self) -> int:
        """Products by constants other than 1 and -1."""
        return sum(p.scalings for p in self.parts)

    @property
    def negations(self) -> int:
        """Negations that no addition or subtraction absorbs."""
        return sum(p.negations for p in self.parts)

    def __call__(self, a: Any, b: Any) -> Any:
        """c [c, ...] for a [a, ...] and b [b, ...], torch or numpy; exact for integers and Fractions."""
        return self.decode(self.left(a) * self.right(b))

    def computes(self, scheme: Bilinear) -> bool:
        """Whether the three programs compute U, V and W^T of the scheme exactly."""
        return (
            self.left.computes(scheme.U)
            and self.right.computes(scheme.V)
            and self.decode.computes(_transpose(scheme.W))
        )

    def __str__(self) -> str:
        return "\n\n".join(f"# {name}\n{p}" for name, p in zip(("U a", "V b", "W^T m"), self.parts, strict=True))


def additions(scheme: Bilinear, seconds: float | None = None, seed: int = 0) -> BilinearProgram:
    """Short programs for the three linear maps of a scheme, verified exactly.

    A matrix that is a Kronecker product in the order of `tensor_product` starts from the programs of its two factors.
    The decoder is searched as W and as W^T (transposition principle).

    Args:
        scheme: U [r, a], V [r, b], W [r, c]; residues modulo a prime are taken as integers.
        seconds: time for all three; None for a fixed effort (a few seconds) whose result depends only on the seed and
            on whether the compiled search is installed.
        seed: of the randomised search.

    Raises:
        BadInput: a coefficient is complex or not an exact rational, or `seconds` is not positive.
    """
    shape = getattr(scheme, "shape", None)
    n, m, p = shape if isinstance(shape, tuple) and len(shape) == 3 else (1, 1, 1)
    sides = [(scheme.U, (n, m)), (scheme.V, (m, p)), (scheme.W, (n, p))]
    programs = []
    for matrix, side in sides:
        rows: Matrix = tuple(tuple(exact(c) for c in row) for row in np.asarray(matrix))
        if side[0] * side[1] != len(rows[0]):
            side = (1, len(rows[0]))
        share = None if seconds is None else seconds / 3
        programs.append(_cached(rows, side, seed) if share is None else _shortest(rows, side, share, seed))
    left, right, encode = programs
    return BilinearProgram(left, right, simplified(encode.transposed()))


@lru_cache(maxsize=256)
def _cached(rows: Matrix, side: tuple[int, int], seed: int) -> Program:
    return _shortest(rows, side, None, seed)


def _shortest(rows: Matrix, side: tuple[int, int], seconds: float | None, seed: int) -> Program:
    factors = split(rows, side)
    if factors is None:
        return shorten(rows, seconds=seconds, seed=seed)
    first, second, inner, outer = factors
    share = None if seconds is None else seconds / 8
    parts = [_shortest(f, s, share, seed) for f, s in ((first, outer), (second, inner))]
    whole = kronecker(parts[0], parts[1]).permuted(inputs=_kronecker_places(outer, inner))
    return shorten(rows, seconds=None if seconds is None else seconds * 3 / 4, seed=seed, start=whole)


def _kronecker_places(outer: tuple[int, int], inner: tuple[int, int]) -> list[int]:
    """The index (i1 k1, i2 k2) in the Kronecker product of each entry (i1 i2, k1 k2) of the row-major operand."""
    order = np.arange(outer[0] * outer[1] * inner[0] * inner[1]).reshape(outer[0], outer[1], inner[0], inner[1])
    return [int(i) for i in order.transpose(0, 2, 1, 3).ravel()]


def split(rows: Matrix, side: tuple[int, int]) -> tuple[Matrix, Matrix, tuple[int, int], tuple[int, int]] | None:
    """The Kronecker factors of a matrix [r, height * width], or None if it is not a Kronecker product.

    Returns:
        (F, G, inner side, outer side): the matrix is F (x) G up to the order of its columns, where the height x width
        operand consists of `outer` blocks of size `inner`.
    """
    height, width = side
    matrix = np.array(rows, dtype=object)
    rank = len(rows)
    for h in _divisors(height):
        for w in _divisors(width):
            if h * w in (1, height * width):
                continue
            outer, inner = (h, w), (height // h, width // w)
            for r in _divisors(rank):
                if r in (1, rank):
                    continue
                pair = _kronecker_factors(matrix.reshape(r, rank // r, h, height // h, w, width // w))
                if pair is not None:
                    return (*pair, inner, outer)
    return None


def _divisors(k: int) -> list[int]:
    return [d for d in range(1, k + 1) if k % d == 0]


def _kronecker_factors(blocks: Any) -> tuple[Matrix, Matrix] | None:
    r, s, h, hh, w, ww = blocks.shape
    flat = blocks.transpose(0, 2, 4, 1, 3, 5).reshape(r * h * w, s * hh * ww)
    i, j = next(((i, j) for i in range(len(flat)) for j in range(flat.shape[1]) if flat[i, j] != 0), (-1, -1))
    if i < 0:
        return None
    pivot = flat[i, j]
    first = [exact(Fraction(c) / pivot) for c in flat[:, j]]
    second = list(flat[i])
    if any(flat[x, y] != first[x] * second[y] for x in range(len(first)) for y in range(len(second))):
        return None
    return (
        tuple(tuple(first[x * h * w : (x + 1) * h * w]) for x in range(r)),
        tuple(tuple(second[x * hh * ww : (x + 1) * hh * ww]) for x in range(s)),
    )


def _transpose(matrix: Any) -> list[list[Any]]:
    return [list(column) for column in zip(*matrix, strict=True)]


def tensor_product_programs(
    outer: BilinearProgram,
    inner: BilinearProgram,
    outer_shape: tuple[int, int, int],
    inner_shape: tuple[int, int, int],
) -> BilinearProgram:
    """The programs of a tensor product of two matrix multiplication schemes, from the programs of its factors.

    Args:
        outer, inner: programs of schemes for n1 x m1 x p1 and n2 x m2 x p2.
        outer_shape: (n1, m1, p1); inner_shape: (n2, m2, p2).

    Returns:
        Programs for row-major operands of n1 n2 x m1 m2 x p1 p2, with products in the order (q1, q2), not shortened.
        Winograd's form nested twice takes 44 + 44 + 77 additions.
    """
    (n, m, p), (nn, mm, pp) = outer_shape, inner_shape
    left = kronecker(outer.left, inner.left).permuted(inputs=_kronecker_places((n, m), (nn, mm)))
    right = kronecker(outer.right, inner.right).permuted(inputs=_kronecker_places((m, p), (mm, pp)))
    decode = kronecker(outer.decode, inner.decode).permuted(outputs=_kronecker_places((n, p), (nn, pp)))
    return BilinearProgram(left, right, decode)

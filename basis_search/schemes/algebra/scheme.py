"""Exact schemes for matrix multiplication: vec(C) = W^T ((U vec A) * (V vec B)) with C = A B, all row-major."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.bilinear import BilinearMap
from basis_search.schemes.algebra.brent import Target
from basis_search.schemes.algebra.rings import Array

MAX_SIDE = 64


def check_format(n: int, m: int, p: int) -> None:
    """Checks that each size is an integer from 1 to 64.

    Raises:
        BadInput: one is not.
    """
    for name, size in (("n", n), ("m", m), ("p", p)):
        if isinstance(size, bool) or not isinstance(size, int | np.integer) or not 1 <= size <= MAX_SIDE:
            raise BadInput(
                f"format {n}x{m}x{p}: {name} = {size!r}, but each side must be an integer from 1 to {MAX_SIDE}"
            )


@lru_cache(maxsize=64)
def matmul_target(n: int, m: int, p: int) -> Target:
    """T[(i, k), (k, j), (i, j)] = 1: the structure tensor of C = A B, [n m, m p, n p]."""
    i, k, j = (index.ravel() for index in np.indices((n, m, p)))
    return Target((n * m, m * p, n * p), i * m + k, k * p + j, i * p + j)


@dataclass(frozen=True, eq=False, repr=False)
class BilinearScheme(BilinearMap):
    """An algorithm that multiplies an n x m by an m x p matrix with r products of linear combinations.

    The constructor checks shapes and the ring; `verify()` checks that the scheme multiplies matrices. Two schemes are
    equal (and have equal hashes) if they differ only in the order of terms and in signs within terms.

    Args:
        n, m, p: the format.
        U: [r, n*m], V: [r, m*p], W: [r, n*p]; C is not transposed. Integers, Fractions, strings such as "1/2".
        ring: "Z", "ZT" (-1, 0, 1), "Z[1/2]", "Q", "Z2" and any prime "Zp", "Z[i]", "Z[i,1/2]", "Q[i]", or "R".

    Raises:
        BadInput: sizes outside 1 to 64, shapes that contradict them, coefficients outside the ring, an unknown ring.
    """

    n: int
    m: int
    p: int
    U: Array
    V: Array
    W: Array
    ring: str

    def __post_init__(self) -> None:
        check_format(self.n, self.m, self.p)
        for name in ("n", "m", "p"):
            object.__setattr__(self, name, int(getattr(self, name)))
        self._coerce((self.n * self.m, self.m * self.p, self.n * self.p))

    @property
    def shape(self) -> tuple[int, int, int]:
        """(n, m, p)."""
        return self.n, self.m, self.p

    @property
    def format(self) -> str:
        return f"{self.n}x{self.m}x{self.p}"

    @cached_property
    def target(self) -> Target:
        return matmul_target(self.n, self.m, self.p)

    def _equation_name(self, x: int, y: int, z: int) -> str:
        (i, k), (l, j), (s, t) = divmod(x, self.m), divmod(y, self.p), divmod(z, self.p)  # noqa: E741
        return f"A[{i},{k}] B[{l},{j}] in C[{s},{t}]"

    @property
    def exponent(self) -> float:
        """omega = 3 log r / log(n m p): recursion on N x N matrices takes O(N^omega) operations."""
        volume = self.n * self.m * self.p
        return float("inf") if volume == 1 else float(3 * np.log(self.rank) / np.log(volume))

    def multiply(self, a: Any, b: Any, levels: int = 1, product: Callable[[Any, Any], Any] | None = None) -> Any:
        """C = A B by `levels` recursion steps of this scheme; see `basis_search.schemes.algebra.multiply.multiply`."""
        from basis_search.schemes.algebra.multiply import multiply

        return multiply(self, a, b, levels, product)

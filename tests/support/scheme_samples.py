"""Small schemes over several rings, and their matrices as other programs write them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

import basis_search.schemes as schemes
from basis_search.schemes import BilinearScheme
from basis_search.schemes.algebra.rings import Gaussian
from basis_search.schemes.algebra.transforms import sandwich, tensor_product

EYE = [[1, 0], [0, 1]]


def rational() -> BilinearScheme:
    return sandwich(schemes.strassen(), [[3, 0], [0, 1]], [[1, 1], [0, 2]], EYE)


def gaussian() -> BilinearScheme:
    s = schemes.strassen().to_ring("Q[i]")
    half = Gaussian.of(1j) * Gaussian.of("1/2")
    return BilinearScheme(2, 2, 2, s.U * half, s.V / half, s.W, "Q[i]").simplest_ring()


def rectangular() -> BilinearScheme:
    return tensor_product(schemes.strassen(), schemes.standard(1, 2, 3))  # 2x4x6


def ct(s: BilinearScheme) -> np.ndarray:
    """W for C^T, index k n + i."""
    return s.W.reshape(-1, s.n, s.p).transpose(0, 2, 1).reshape(s.rank, -1)


def rows(matrix: np.ndarray) -> list[list[object]]:
    return [[x if isinstance(x, int) else str(x) for x in row] for row in matrix.tolist()]


def sms(matrix: np.ndarray) -> str:
    entries = [f"{i + 1} {j + 1} {x}" for i, row in enumerate(matrix.tolist()) for j, x in enumerate(row) if x]
    return "\n".join([f"{len(matrix)} {len(matrix[0])} R", *entries, "0 0 0", ""])


OURS: dict[str, Callable[[], object]] = {
    "strassen": schemes.strassen,
    "rectangular": rectangular,
    "rational": rational,
    "gaussian": gaussian,
    "modulo two": lambda: schemes.strassen().reduce_mod(2),
    "modulo seven": lambda: rational().reduce_mod(7),
    "real": lambda: schemes.strassen().to_ring("R"),
    "Toom-Cook": lambda: schemes.toom_cook(3),
    "F(2x2,3x3)": lambda: schemes.winograd_convolution(2, 3, dimensions=2),
}

STRASSEN_EXP = """\
(a11 + a22)*(b11 + b22)*(c11 + c22)
(a21 + a22) b11 (c12 - c22)
a11*(b12 - b22)*(c21 + c22)
(2*(a22))*(b21 - b11)*(c11 + c12)/2
(a11 + a12)*b22*(-c11 + c21)
-(a11 - a21)*(b11 + b12)*c22
(a12 - a22) (b21 + 1 b22) c11)
"""

"""Known bilinear algorithms, derived and proved with sympy: W^T ((U a) * (V b)) - T(a, b) simplifies to zero."""

from __future__ import annotations

import numpy as np

from basis_search.schemes.scheme import BilinearScheme, check_format, matmul_target


def standard(n: int, m: int, p: int) -> BilinearScheme:
    """The definition: n m p products A[i,k] B[k,j], each added into C[i,j]."""
    check_format(n, m, p)
    target = matmul_target(n, m, p)
    eyes = [np.eye(size, dtype=np.int64) for size in target.sizes]
    return BilinearScheme(n, m, p, eyes[0][target.x], eyes[1][target.y], eyes[2][target.z], "ZT")


def strassen() -> BilinearScheme:
    """2x2x2 by 7 products and 18 additions (V. Strassen, Gaussian elimination is not optimal, 1969)."""
    U = [[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [-1, 0, 1, 0], [0, 1, 0, -1]]
    V = [[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]]
    W = [[1, 0, 0, 1], [0, 0, 1, -1], [0, 1, 0, 1], [1, 0, 1, 0], [-1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    return BilinearScheme(2, 2, 2, np.array(U), np.array(V), np.array(W), "ZT")


def winograd() -> BilinearScheme:
    """2x2x2 by 7 products and, with shared sums, 15 additions (S. Winograd, 1971)."""
    # s1 = a21+a22, s2 = s1-a11, s3 = a11-a21, s4 = a12-s2; t1 = b12-b11, t2 = b22-t1, t3 = b22-b12, t4 = t2-b21
    U = [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, -1, -1], [0, 0, 0, 1], [0, 0, 1, 1], [-1, 0, 1, 1], [1, 0, -1, 0]]
    V = [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, -1, -1, 1], [-1, 1, 0, 0], [1, -1, 0, 1], [0, -1, 0, 1]]
    W = [[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 1, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    return BilinearScheme(2, 2, 2, np.array(U), np.array(V), np.array(W), "ZT")

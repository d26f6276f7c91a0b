"""The six orders of a scheme's factors: tr(A B Z) = tr(B Z A) = tr(Z^T B^T A^T)."""

from __future__ import annotations

from typing import Any, TypeVar

Matrix = TypeVar("Matrix", bound=Any)
Format = tuple[int, int, int]


def transposed_rows(factor: Matrix, height: int, width: int) -> Matrix:
    """Each row, a row-major height x width matrix, transposed; numpy or torch."""
    result: Matrix = factor.reshape(-1, height, width).swapaxes(1, 2).reshape(-1, height * width)
    return result


def factor_permutations(
    U: Matrix, V: Matrix, W: Matrix, form: Format
) -> list[tuple[Format, tuple[Matrix, Matrix, Matrix]]]:
    """The factors of vec(A B) ~ W^T ((U vec A) * (V vec B)) in six orders, each with its format, the given one first.

    U [r, n m], V [r, m p], W [r, n p] for the format n x m x p. All six have the same residual.
    """
    n, m, p = form
    found: list[tuple[Format, tuple[Matrix, Matrix, Matrix]]] = []
    for (a, b, c), start in (((n, m, p), (U, V, W)), ((n, p, m), (W, transposed_rows(V, m, p), U))):
        factors = start
        for _ in range(3):
            found.append(((a, b, c), factors))
            factors = (factors[1], transposed_rows(factors[2], a, c), transposed_rows(factors[0], a, b))
            a, b, c = b, c, a
    return found

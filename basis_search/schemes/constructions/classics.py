"""Published products (linear form in A, linear form in B) of classical algorithms; derive() solves for the outputs."""

from __future__ import annotations

from typing import Any

Product = tuple[Any, Any]


def strassen(a: Any, b: Any) -> list[Product]:
    """V. Strassen, 1969; a, b: matrices indexed as a[i, j] whose entries can be added."""
    return [
        (a[0, 0] + a[1, 1], b[0, 0] + b[1, 1]),
        (a[1, 0] + a[1, 1], b[0, 0]),
        (a[0, 0], b[0, 1] - b[1, 1]),
        (a[1, 1], b[1, 0] - b[0, 0]),
        (a[0, 0] + a[0, 1], b[1, 1]),
        (a[1, 0] - a[0, 0], b[0, 0] + b[0, 1]),
        (a[0, 1] - a[1, 1], b[1, 0] + b[1, 1]),
    ]


def winograd(a: Any, b: Any) -> list[Product]:
    """S. Winograd, 1971, with the shared sums that give 15 additions."""
    s1 = a[1, 0] + a[1, 1]
    s2 = s1 - a[0, 0]
    s4 = a[0, 1] - s2
    t1 = b[0, 1] - b[0, 0]
    t2 = b[1, 1] - t1
    t4 = t2 - b[1, 0]
    return [
        (a[0, 0], b[0, 0]),
        (a[0, 1], b[1, 0]),
        (s4, b[1, 1]),
        (a[1, 1], t4),
        (s1, t1),
        (s2, t2),
        (a[0, 0] - a[1, 0], b[1, 1] - b[0, 1]),
    ]


def laderman(a: Any, b: Any) -> list[Product]:
    """J. Laderman, 1976."""
    sum_a = a[0, 0] + a[0, 1] + a[0, 2]
    sum_b = -b[0, 0] + b[1, 0] - b[1, 2] - b[2, 0]
    return [
        (sum_a - a[1, 0] - a[1, 1] - a[2, 1] - a[2, 2], b[1, 1]),
        (a[0, 0] - a[1, 0], b[1, 1] - b[0, 1]),
        (a[1, 1], sum_b + b[0, 1] - b[1, 1] + b[2, 2]),
        (a[1, 0] + a[1, 1] - a[0, 0], b[0, 0] - b[0, 1] + b[1, 1]),
        (a[1, 0] + a[1, 1], b[0, 1] - b[0, 0]),
        (a[0, 0], b[0, 0]),
        (a[2, 0] + a[2, 1] - a[0, 0], b[0, 0] - b[0, 2] + b[1, 2]),
        (a[2, 0] - a[0, 0], b[0, 2] - b[1, 2]),
        (a[2, 0] + a[2, 1], b[0, 2] - b[0, 0]),
        (sum_a - a[1, 1] - a[1, 2] - a[2, 0] - a[2, 1], b[1, 2]),
        (a[2, 1], sum_b + b[0, 2] - b[1, 1] + b[2, 1]),
        (a[2, 1] + a[2, 2] - a[0, 2], b[1, 1] + b[2, 0] - b[2, 1]),
        (a[0, 2] - a[2, 2], b[1, 1] - b[2, 1]),
        (a[0, 2], b[2, 0]),
        (a[2, 1] + a[2, 2], b[2, 1] - b[2, 0]),
        (a[1, 1] + a[1, 2] - a[0, 2], b[1, 2] + b[2, 0] - b[2, 2]),
        (a[0, 2] - a[1, 2], b[1, 2] - b[2, 2]),
        (a[1, 1] + a[1, 2], b[2, 2] - b[2, 0]),
        (a[0, 1], b[1, 0]),
        (a[1, 2], b[2, 1]),
        (a[1, 0], b[0, 2]),
        (a[2, 0], b[0, 1]),
        (a[2, 2], b[2, 2]),
    ]

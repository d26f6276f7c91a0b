"""References for stored bases: the matrix product's tensor by its definition, and the list of stored files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def product(n: int, m: int, p: int) -> np.ndarray:
    """T [n m, m p, n p]: 1 where A_ij B_jk contributes to C_ik."""
    T = np.zeros((n * m, m * p, n * p))
    for i in range(n):
        for j in range(m):
            for k in range(p):
                T[i * m + j, j * p + k, i * p + k] = 1
    return T


def leftover(U: np.ndarray, V: np.ndarray, W: np.ndarray, form: tuple[int, int, int]) -> float:
    """||T - [[U, V, W]]||^2 / ||T||^2."""
    gap = product(*form) - np.einsum("la,lb,lc->abc", U, V, W)
    return float((gap**2).sum() / np.prod(form))


def files(folder: Path, known_ranks: Callable[..., tuple[int, ...]]) -> list[tuple[tuple[int, int, int], int]]:
    """(format, rank) of every stored file."""
    forms = [tuple(map(int, path.name.split("x"))) for path in sorted(folder.iterdir()) if path.is_dir()]
    return [((n, m, p), rank) for n, m, p in forms for rank in known_ranks(n, m, p)]

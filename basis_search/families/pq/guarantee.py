"""Bound on the error on new rows beyond that on the training rows: Theorem 4.1 of MADDNESS (arXiv 2106.10860).

With probability 1 - delta, E |a . b - y| <= mean over the n rows of |a . b - y| + excess, where
excess = C sigma ||b|| / (2 sqrt(lambda)) (1/256 + (8 + sqrt(nu)) / sqrt(2 n)),
nu = C (4 ceil(log2 D) + 256) ln 2 - ln delta.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from basis_search.errors import BadInput
from basis_search.families.pq.fit import RIDGE


@dataclass(frozen=True)
class Guarantee:
    """The largest over the columns of B, in units of the outputs.

    Attributes:
        measured: mean absolute error on the rows given.
        excess: bound on the excess of the expected error on new rows from the same distribution.
        delta: probability that the bound fails.
    """

    measured: float
    excess: float
    delta: float


def excess(codebooks: int, width: int, rows: int, sigma: float, norm: float, *, delta: float = 0.05) -> float:
    """The bound's second term for D = width columns, the largest singular value sigma of the rows, and norm = ||b||.

    Raises:
        BadInput: delta outside (0, 1).
    """
    if not 0 < delta < 1:
        raise BadInput(f"delta is {delta}, but a probability between 0 and 1 is needed, such as 0.05")
    nu = codebooks * (4 * math.ceil(math.log2(max(2, width))) + 256) * math.log(2) - math.log(delta)
    factor = 1 / 256 + (8 + math.sqrt(nu)) / math.sqrt(2 * rows)
    return codebooks * sigma * norm / (2 * math.sqrt(RIDGE)) * factor


def guarantee(y: Tensor, a: Tensor, b: Tensor, codebooks: int, *, delta: float = 0.05) -> Guarantee:
    """The bound from the training rows a [n, D], the known b [D, M] and the products y [n, M] given for them."""
    a, b = a.double(), b.double()
    measured = float((y.double() - a @ b).abs().mean(0).max())
    sigma = float(torch.linalg.matrix_norm(a, ord=2))
    largest = float(b.norm(dim=0).max())
    return Guarantee(measured, excess(codebooks, a.shape[1], len(a), sigma, largest, delta=delta), delta)

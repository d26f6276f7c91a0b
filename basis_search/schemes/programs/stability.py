"""Numerical stability of a scheme's program: its growth factor and its measured float32 error.

Growth factor: max_z sum_q |W[q, z]| (sum_x |U[q, x]|) (sum_y |V[q, y]|), the emax of Ballard, Benson, Druinsky,
Lipshitz and Schwartz, "Improving the numerical stability of fast matrix multiplication" (2016): m for the standard
algorithm, 12 for Strassen's, 18 for Winograd's form.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.programs.additions import Bilinear, BilinearProgram
from basis_search.schemes.programs.program import exact


@dataclass(frozen=True)
class Stability:
    """Rounding of one application to operands uniform in [-1, 1].

    Attributes:
        growth: the growth factor.
        depth: the most additions on a path from an operand to an output.
        mean, worst: absolute error of an output entry in float32.
        direct_mean, direct_worst: the same for the bilinear map summed directly in float32.
    """

    growth: Fraction
    depth: int
    mean: float
    worst: float
    direct_mean: float
    direct_worst: float


def growth_factor(scheme: Bilinear) -> Fraction:
    """The largest growth over all outputs, exactly."""
    matrices = (np.asarray(m) for m in (scheme.U, scheme.V, scheme.W))
    U, V, W = (np.array([[abs(Fraction(exact(c))) for c in row] for row in m]) for m in matrices)
    return Fraction(max((U.sum(1) * V.sum(1)) @ W))


def stability(scheme: Bilinear, program: BilinearProgram, samples: int = 4096, seed: int = 0) -> Stability:
    """The growth factor and the measured float32 error of a scheme's program.

    Args:
        scheme: U [r, a], V [r, b], W [r, c].
        program: the programs of its three maps.
        samples: number of random operands.
        seed: of the operands.

    Raises:
        BadInput: the program has another rank or size, or `samples` is below 1.
    """
    U, V, W = (np.array([[float(c) for c in row] for row in np.asarray(m)]) for m in (scheme.U, scheme.V, scheme.W))
    if (program.left.inputs, program.right.inputs, program.rank) != (U.shape[1], V.shape[1], len(U)):
        raise BadInput(
            f"a program of rank {program.rank} does not belong to a scheme of rank {len(U)} with operands of "
            f"{U.shape[1]} and {V.shape[1]} entries"
        )
    if samples < 1:
        raise BadInput(f"samples={samples}, but at least 1 is needed")
    rng = np.random.default_rng(seed)
    a = rng.uniform(-1, 1, (U.shape[1], samples)).astype(np.float32)
    b = rng.uniform(-1, 1, (V.shape[1], samples)).astype(np.float32)
    # [a, b, c], the map itself: integers up to rounding, although a scheme's coefficients may be fractions
    tensor = np.round(np.einsum("qx,qy,qz->xyz", U, V, W, optimize=True), 9)
    truth = _direct(tensor, a.astype(np.float64), b.astype(np.float64))
    direct = np.abs(_direct(tensor.astype(np.float32), a, b) - truth)
    error = np.abs(program(a, b) - truth)
    depth = max(program.left.depth, program.right.depth) + program.decode.depth
    return Stability(
        growth_factor(scheme), depth, float(error.mean()), float(error.max()), float(direct.mean()), float(direct.max())
    )


def _direct(tensor: Any, a: Any, b: Any) -> Any:
    """The sum of T[x, y, z] a[x] b[y], [c, samples], term by term in the dtype of a and b."""
    result = np.zeros((tensor.shape[2], a.shape[1]), dtype=a.dtype)
    for x, y, z in zip(*np.nonzero(tensor), strict=True):
        result[z] += tensor[x, y, z] * (a[x] * b[y])
    return result

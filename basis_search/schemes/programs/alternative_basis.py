"""Sparse schemes in alternative bases, U = U' phi: phi is applied once per multiplication, U' at every recursion level.

After Karstadt and Schwartz, "Matrix multiplication, a little faster" (2017). The bases are sparse vectors of the
column space of U, found from random information sets and chosen greedily, which is optimal among the vectors found
(linearly independent sets form a matroid).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.rings import ring_named
from basis_search.schemes.algebra.transforms import inverse
from basis_search.schemes.programs.additions import Bilinear, BilinearProgram
from basis_search.schemes.programs.compose import chain, simplified
from basis_search.schemes.programs.program import Program, exact, rows_of
from basis_search.schemes.programs.shorten import shorten

Exact = np.ndarray[Any, np.dtype[Any]]
"""An object array of ints and Fractions."""


@dataclass(frozen=True)
class AlternativeBasis:
    """A scheme as sparse programs between changes of basis: U = U' phi, V = V' psi, W = W' nu.

    Attributes:
        sparse: programs of U', V' and W'^T, run at every recursion level.
        phi: program a [a] -> phi a; psi: program b [b] -> psi b; applied to the operands before the recursion.
        nu: program of nu^T, [c] -> c [c], applied to the result after the recursion.
        matrices: (U', phi, V', psi, W', nu), exact.
    """

    sparse: BilinearProgram
    phi: Program
    psi: Program
    nu: Program
    matrices: tuple[Exact, Exact, Exact, Exact, Exact, Exact]

    @property
    def additions(self) -> int:
        """Additions of one recursion level, without the changes of basis."""
        return self.sparse.additions

    @property
    def change_additions(self) -> int:
        """Additions of the three changes of basis."""
        return self.phi.additions + self.psi.additions + self.nu.additions

    def whole(self) -> BilinearProgram:
        """Programs of the scheme itself, with the changes of basis included."""
        return BilinearProgram(
            chain(self.phi, self.sparse.left), chain(self.psi, self.sparse.right), chain(self.sparse.decode, self.nu)
        )

    def computes(self, scheme: Bilinear) -> bool:
        """Whether the sparse programs and the changes of basis together compute the scheme exactly."""
        return self.whole().computes(scheme)


def leading_coefficient(side: int, rank: int, additions: int) -> Fraction:
    """c in c N^log_side(rank) + O(N^2 log N) operations: 1 + additions / (rank - side^2).

    `additions` are those of one level of a scheme for side x side matrices. Strassen has 7, Winograd 6, and an
    alternative basis 5.

    Raises:
        BadInput: rank <= side^2, for which the formula does not hold.
    """
    if rank <= side * side:
        raise BadInput(f"rank {rank} is not above {side}^2, as that of a scheme for {side} x {side} matrices must be")
    return 1 + Fraction(additions, rank - side * side)


def sparsify(scheme: Bilinear, seconds: float | None = None, seed: int = 0, samples: int = 4000) -> AlternativeBasis:
    """Alternative bases in which a scheme takes few additions, verified exactly.

    Args:
        scheme: U [r, a], V [r, b], W [r, c], each of full column rank.
        seconds: total time for shortening the programs; None for a fixed effort.
        seed: of the information sets and of the shortening.
        samples: information sets drawn for each of the three matrices.

    Raises:
        BadInput: a matrix has dependent columns, or coefficients that are not exact rationals.
    """
    pairs = [sparse_factor(m, samples, seed) for m in (scheme.U, scheme.V, scheme.W)]
    share = None if seconds is None else seconds / 6
    left, right, encode = (shorten(factor, seconds=share, seed=seed) for factor, _ in pairs)
    phi, psi, nu = (shorten(change, seconds=share, seed=seed) for _, change in pairs)
    matrices = (*pairs[0], *pairs[1], *pairs[2])
    result = AlternativeBasis(
        BilinearProgram(left, right, simplified(encode.transposed())), phi, psi, simplified(nu.transposed()), matrices
    )
    if not result.computes(scheme):
        raise AssertionError("the alternative basis does not compute its scheme")
    return result


def sparse_factor(matrix: Any, samples: int = 4000, seed: int = 0) -> tuple[Exact, Exact]:
    """(M', phi) with M = M' phi exactly, phi [d, d] invertible and M' [r, d] sparse.

    Raises:
        BadInput: the columns of M [r, d] are linearly dependent.
    """
    columns, rows = rows_of(matrix)
    whole = np.array([[row.get(k, 0) for k in range(columns)] for row in rows], dtype=object)
    real = whole.astype(np.float64)
    if np.linalg.matrix_rank(real) < columns:
        raise BadInput(
            f"the matrix has {columns} columns but only rank {np.linalg.matrix_rank(real)}; "
            "a change of basis needs linearly independent columns"
        )
    candidates = [*np.eye(columns, dtype=object), *_sparse_directions(whole, real, samples, seed)]
    weighed = sorted(((_weight(whole @ p), k) for k, p in enumerate(candidates)))
    chosen: list[Exact] = []
    for _, k in weighed:
        trial = np.array([*chosen, candidates[k]], dtype=np.float64)
        if np.linalg.matrix_rank(trial) == len(trial):
            chosen.append(candidates[k])
            if len(chosen) == columns:
                break
    change = np.array(chosen, dtype=object).T  # [d, d], its columns the new basis
    return _exact(whole @ change), _exact(inverse(change, ring_named("Q")))


def _weight(column: Exact) -> tuple[int, int]:
    return sum(c != 0 for c in column), sum(abs(c) > 1 or Fraction(c).denominator > 1 for c in column)


def _exact(matrix: Exact) -> Exact:
    return np.array([[exact(c) for c in row] for row in matrix], dtype=object)


def _sparse_directions(whole: Exact, real: Any, samples: int, seed: int) -> list[Exact]:
    """Vectors p with sparse M p: columns of (M_I)^-1 for random independent row sets I, their sums and differences."""
    rng = np.random.default_rng(seed)
    rows, columns = real.shape
    if math.comb(rows, columns) <= samples:
        sets = np.array(list(itertools.combinations(range(rows), columns)))
    else:
        sets = rng.permuted(np.tile(np.arange(rows), (samples, 1)), axis=1)[:, :columns]
    blocks = real[sets]  # [samples, d, d]
    sound = np.abs(np.linalg.det(blocks)) > 1e-6
    if not sound.any():
        return []
    vectors = np.linalg.inv(blocks[sound]).transpose(0, 2, 1).reshape(-1, columns)  # [samples * d, d]
    vectors = _shortest_first(real, vectors, 4 * columns + 40)
    pairs = [vectors[i] + s * vectors[j] for i in range(len(vectors)) for j in range(i) for s in (1, -1)]
    vectors = _shortest_first(real, np.array([*vectors, *pairs]), 12 * columns + 100)
    found = []
    for vector in vectors:
        p = np.array([Fraction(float(x)).limit_denominator(1024) for x in vector], dtype=object)
        image = whole @ p
        if all((e == 0) == (abs(r) < 1e-7) for e, r in zip(image, real @ vector, strict=True)):
            found.append(_primitive(p, image))
    return found


def _shortest_first(real: Any, vectors: Any, keep: int) -> Any:
    """Distinct vectors, scaled to a largest image entry of 1, in order of the sparsity of their images."""
    images = vectors @ real.T
    scale = np.take_along_axis(images, np.abs(images).argmax(1)[:, None], axis=1)
    live = np.abs(scale[:, 0]) > 1e-9
    vectors, images = vectors[live] / scale[live], images[live] / scale[live]
    _, first = np.unique(np.round(vectors, 6), axis=0, return_index=True)
    vectors, images = vectors[first], images[first]
    order = np.argsort((np.abs(images) > 1e-9).sum(1), kind="stable")
    return vectors[order[:keep]]


def _primitive(p: Exact, image: Exact) -> Exact:
    """p scaled so that the entries of M p are coprime integers."""
    fractions = [Fraction(c) for c in image if c != 0]
    scale = Fraction(math.lcm(*(f.denominator for f in fractions)), math.gcd(*(f.numerator for f in fractions)))
    return np.array([exact(c * scale) for c in p], dtype=object)

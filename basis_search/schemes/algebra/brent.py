"""Exact check of Brent's equations: sum_q U[q, x] V[q, y] W[q, z] = T[x, y, z] for all x, y, z (R. P. Brent, 1970).

Integers below 2^53 are exact in float64 in any order of summation, so BLAS evaluates the equations; where sums could
exceed that, they are evaluated modulo enough primes (Chinese remainder theorem).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import lcm

import numpy as np
from numpy.typing import NDArray

from basis_search.schemes.algebra.rings import Array, Gaussian

_BLOCK_ENTRIES = 1 << 22  # entries of a work array
_EXACT_INTEGERS = 1 << 53

Place = tuple[int, int, int]


@dataclass(frozen=True)
class Numerators:
    """A matrix as (re + im i) / denominator with integers; `im` is None for a real matrix."""

    re: Array
    im: Array | None
    denominator: int

    @classmethod
    def of(cls, matrix: Array) -> Numerators:
        """The exact numerators of a matrix in any storage; a float64 is taken as the binary fraction it represents."""
        if matrix.dtype.kind in "iu":
            return cls(matrix, None, 1)
        imaginary: list[Fraction] = []
        if matrix.dtype.kind == "f":
            real = [Fraction(x) for x in matrix.flat]
        elif all(isinstance(x, Fraction) for x in matrix.flat):
            real = list(matrix.flat)
        else:
            numbers = [Gaussian.of(x) for x in matrix.flat]
            real, imaginary = [g.re for g in numbers], [g.im for g in numbers]
        denominator = lcm(*{x.denominator for x in (*real, *imaginary)})

        def whole(parts: list[Fraction]) -> Array:
            values = [x.numerator * (denominator // x.denominator) for x in parts]
            fits = all(abs(v) < 1 << 62 for v in values)
            return np.array(values, dtype=np.int64 if fits else object).reshape(matrix.shape)

        return cls(whole(real), whole(imaginary) if any(imaginary) else None, denominator)

    @property
    def largest(self) -> int:
        """The largest absolute value in `re` and `im`."""
        parts = [self.re] if self.im is None else [self.re, self.im]
        return max((abs(int(x)) for part in parts if part.size for x in (part.min(), part.max())), default=0)


@dataclass(frozen=True)
class Target:
    """The structure tensor of a bilinear map, [a, b, c] with ones at (x[k], y[k], z[k]) and zeros elsewhere."""

    sizes: tuple[int, int, int]
    x: NDArray[np.int64]
    y: NDArray[np.int64]
    z: NDArray[np.int64]

    def block(self, first: int, last: int) -> Array:
        """Rows first to last - 1 of the dense tensor, [last - first, b, c], float64."""
        dense = np.zeros((last - first, *self.sizes[1:]))
        here = (self.x >= first) & (self.x < last)
        dense[self.x[here] - first, self.y[here], self.z[here]] = 1
        return dense

    def row_ranges(self, terms: int) -> Iterator[tuple[int, int]]:
        """Row ranges (first, last) of blocks that bound the work arrays, [rows, b, terms] and [rows, b, c]."""
        a, b, c = self.sizes
        step = max(1, _BLOCK_ENTRIES // (b * max(terms, c)))
        return ((row, min(row + step, a)) for row in range(0, a, step))


def deviations(U: Array, V: Array, W: Array, target: Target) -> Iterator[tuple[int, Array]]:
    """[[U, V, W]] - T in floating point, in blocks (first row, [rows, b, c])."""
    for first, last in target.row_ranges(len(U)):
        products = (U.T[first:last, None, :] * V.T).reshape(-1, len(U))  # [rows b, r]
        yield first, (products @ W).reshape(last - first, *target.sizes[1:]) - target.block(first, last)


def first_deviation(U: Array, V: Array, W: Array, target: Target, above: float) -> Place | None:
    """The first entry of [[U, V, W]] that deviates from T by more than `above` in floating point."""
    for first, deviation in deviations(U, V, W, target):
        wrong = np.abs(deviation) > above
        if wrong.any():
            x, y, z = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
            return first + int(x), int(y), int(z)
    return None


def first_failure(parts: Sequence[Numerators], target: Target, characteristic: int) -> Place | None:
    """(x, y, z) of the first equation that fails, or None if all hold."""
    found: list[Place] = []
    for modulus in [characteristic] if characteristic else _moduli(parts):
        for first, wrong in failures(parts, target, modulus):
            if wrong.any():
                x, y, z = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
                found.append((first + int(x), int(y), int(z)))
                break
    return min(found, default=None)


def _moduli(parts: Sequence[Numerators]) -> list[int]:
    """[0] where float64 arithmetic is exact, else primes whose product exceeds twice any possible deviation."""
    bound, scale = len(parts[0].re), 1
    for part in parts:
        bound *= part.largest * (1 if part.im is None else 2)
        scale *= part.denominator
    bound += scale
    if bound < _EXACT_INTEGERS:
        return [0]
    primes: list[int] = []
    product, candidate = 1, 1 << 20
    while product <= 2 * bound:
        candidate -= 1
        if all(candidate % d for d in range(2, 1025)):
            primes.append(candidate)
            product *= candidate
    return primes


def failures(parts: Sequence[Numerators], target: Target, modulus: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
    """(first row, [rows, b, c]) in blocks: True where the equation fails modulo `modulus` (0: in the integers)."""

    def residues(values: Array) -> Array:
        return (values % modulus if modulus else values).astype(np.float64)

    U, V, W = (residues(part.re) for part in parts)
    Ui, Vi, Wi = (np.zeros(part.re.shape) if part.im is None else residues(part.im) for part in parts)
    is_complex = any(part.im is not None for part in parts)
    scale = parts[0].denominator * parts[1].denominator * parts[2].denominator
    # (P + i Q)(W + i W'): the real part is [P Q] [W; -W'], the imaginary part [P Q] [W'; W]
    outputs = [np.concatenate([W, -Wi]), np.concatenate([Wi, W])] if is_complex else [W]
    for first, last in target.row_ranges(len(outputs[0])):
        u, ui = U.T[first:last, None, :], Ui.T[first:last, None, :]
        products = u * V.T  # [rows, b, r]
        if is_complex:
            products = np.concatenate([products - ui * Vi.T, u * Vi.T + ui * V.T], axis=-1)
        expected = target.block(first, last) * (scale % modulus if modulus else scale)
        wrong = np.zeros(expected.shape, dtype=bool)
        for output in outputs:
            deviation = _multiply(products.reshape(-1, len(output)), output, modulus).reshape(wrong.shape) - expected
            wrong |= (np.mod(deviation, modulus) if modulus else deviation) != 0
            expected = np.zeros(1)  # the imaginary part
        yield first, wrong


def _multiply(left: Array, right: Array, modulus: int) -> Array:
    """left @ right, exact in float64: modulo `modulus`, or for modulus 0 as is, where the caller bounds the sums."""
    if not modulus:
        return left @ right
    largest = float(np.abs(left).max(initial=0)) * float(np.abs(right).max(initial=0))
    if largest * left.shape[1] < _EXACT_INTEGERS:
        return left @ right
    left = np.mod(left, modulus)
    chunk = max(1, _EXACT_INTEGERS // (modulus * modulus) - 1)
    total = np.zeros((len(left), right.shape[1]))
    for k in range(0, left.shape[1], chunk):
        total = np.mod(total + np.mod(left[:, k : k + chunk] @ right[k : k + chunk], modulus), modulus)
    return total

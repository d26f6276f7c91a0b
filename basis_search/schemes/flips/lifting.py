"""Hensel lifting from GF(2) to Z and Q: x <- x + 2^k d with J d = (T - [[U, V, W]]) / 2^k mod 2, then fractions.

J is the Jacobian of Brent's equations at the GF(2) scheme, factored once. Unknowns that J leaves free keep their value;
those that are 0 over GF(2) are left free where possible, so that the lifted scheme stays sparse and mostly ternary
(Kauers and Moosbauer, Flip graphs for matrix multiplication, 2022).
"""

from __future__ import annotations

from fractions import Fraction
from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from basis_search.errors import BadInput
from basis_search.schemes.algebra.scheme import BilinearScheme
from basis_search.schemes.flips.walk import compiled

Integers = NDArray[np.int64]

DIGITS = 40  # 2-adic digits computed: numerators and denominators up to 2^19
MAX_ORDERS = 4  # most orders of the unknowns tried


def lift(scheme: BilinearScheme, seed: int = 0, attempts: int = MAX_ORDERS) -> BilinearScheme | None:
    """A scheme over Z or Q (the smallest ring that contains it) that reduces to this one modulo 2, or None.

    None means that no tried order of the unknowns led to a lift; the scheme may still have one. Ternary lifts are
    preferred, then integer ones, then the sparsest. `towards_ternary` may make an integer lift ternary.

    Args:
        scheme: over Z2, verified.
        seed: of the random orders of the unknowns; the first order is fixed.
        attempts: most orders tried; a ternary lift ends the search.

    Raises:
        BadInput: another ring, a scheme that does not verify, or no compiled kernels.
    """
    if scheme.ring != "Z2":
        raise BadInput(f"lifting starts from a scheme over Z2, not over {scheme.ring}; reduce_mod(2) makes one")
    if not scheme.verify():
        raise BadInput(f"only an exact scheme can be lifted: {scheme.first_violation()}")
    random = np.random.default_rng(seed)
    best: BilinearScheme | None = None
    for attempt in range(attempts):
        found = _lift_once(scheme, random if attempt else None)
        if found is not None and (best is None or _simplicity(found) < _simplicity(best)):
            best = found
        if best is not None and best.ring == "ZT":
            break
    return best


def _simplicity(scheme: BilinearScheme) -> tuple[bool, bool, int]:
    return scheme.ring != "ZT", scheme.ring != "Z", scheme.nnz


def _lift_once(scheme: BilinearScheme, random: np.random.Generator | None) -> BilinearScheme | None:
    shapes = [m.shape for m in (scheme.U, scheme.V, scheme.W)]
    bits = [np.ascontiguousarray(m, dtype=np.int8) for m in (scheme.U, scheme.V, scheme.W)]
    x = np.concatenate([m.ravel() for m in bits]).astype(np.int64)
    preference = np.zeros(x.size) if random is None else random.random(x.size)
    order = np.lexsort((preference, 1 - x)).astype(np.int64)  # zeros last, so that they stay free
    jacobian = compiled().Elimination(*bits, order)
    target = _tensor(scheme)
    for k in range(1, DIGITS):
        error = target - _product(x, shapes)  # modulo 2^64; x is known modulo 2^k
        digit = jacobian.solve(((error >> k - 1) & 1).astype(np.uint8)) if k > 1 else np.zeros(x.size, np.uint8)
        if digit is None:
            return None
        x = x + (digit.astype(np.int64) << k - 1)
        small = _balanced(x, k)
        if not (target - _product(small, shapes)).any() and np.abs(small).max() < 1 << 15:
            return _checked(scheme, small, shapes)
        if k in (12, 20, 30, DIGITS - 1):
            fractions = _fractions(x, k)
            if fractions is not None:
                found = _checked(scheme, fractions, shapes)
                if found is not None:
                    return found
    return None


def _tensor(scheme: BilinearScheme) -> Integers:
    target = scheme.target
    tensor = np.zeros(target.sizes, dtype=np.int64)
    tensor[target.x, target.y, target.z] = 1
    return tensor.ravel()


def _product(x: Integers, shapes: list[tuple[int, ...]]) -> Integers:
    """[[U, V, W]] modulo 2^64, flattened."""
    U, V, W = _split(x, shapes)
    pairs = (U[:, :, None] * V[:, None, :]).reshape(len(U), -1)  # [r, nm mp]
    return np.asarray(pairs.T @ W).ravel()


def _split(x: NDArray[Any], shapes: list[tuple[int, ...]]) -> list[NDArray[Any]]:
    ends = np.cumsum([rows * columns for rows, columns in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(x, ends[:-1]), shapes, strict=True)]


def _balanced(x: Integers, k: int) -> Integers:
    """The residue modulo 2^k of least absolute value."""
    half = np.int64(1) << (k - 1)
    return ((x + half - 1) & ((np.int64(1) << k) - 1)) - half + 1


def _fractions(x: Integers, k: int) -> NDArray[np.object_] | None:
    """For each entry the fraction a / b = x modulo 2^k with |a|, |b| <= sqrt(2^(k-1)); None if one does not exist."""
    values, where = np.unique(x & ((np.int64(1) << k) - 1), return_inverse=True)
    found = [_fraction(int(value), 1 << k) for value in values]
    if any(fraction is None for fraction in found):
        return None
    return np.array(found, dtype=object)[where]


def _fraction(value: int, modulus: int) -> Fraction | None:
    bound = isqrt(modulus // 2)
    r0, r1, t0, t1 = modulus, value, 0, 1
    while r1 > bound:
        q = r0 // r1
        r0, r1, t0, t1 = r1, r0 - q * r1, t1, t0 - q * t1
    return Fraction(r1, t1) if t1 and abs(t1) <= bound and t1 % 2 else None


def _checked(scheme: BilinearScheme, x: NDArray[Any], shapes: list[tuple[int, ...]]) -> BilinearScheme | None:
    U, V, W = _split(x, shapes)
    found = BilinearScheme(scheme.n, scheme.m, scheme.p, U, V, W, "Q").simplest_ring()
    return found if found.verify() else None

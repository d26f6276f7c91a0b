"""Measured error of a filter algorithm F(m, r) in fp32, fp16 and int8: mean |y - y64| over tiles uniform in [-1, 1].

An algorithm may be split by a change of basis, U = U' Phi, V = V' Psi, W = W' Omega; each half then rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from basis_search.errors import BadInput
from basis_search.schemes.algebra.convolution import ConvolutionScheme
from basis_search.schemes.algebra.rings import Array, ring_named
from basis_search.schemes.algebra.transforms import inverse

PRECISIONS = ("fp32", "fp16", "int8")
BASES = ("monomial", "legendre", "chebyshev", "hermite")


@dataclass(frozen=True, eq=False)
class SplitConvolution:
    """F(m, r) in one dimension with each of its three transforms as a product of two; identities where unsplit.

    Attributes:
        scheme: the unsplit algorithm.
        phi: [m + r - 1, m + r - 1], psi: [r, r], omega: [m, m], exact: U = U' phi, V = V' psi, W = W' omega.
        bases: names of the polynomial bases on the data, filter and output side.
    """

    scheme: ConvolutionScheme
    phi: Array
    psi: Array
    omega: Array
    bases: tuple[str, str, str] = ("monomial", "monomial", "monomial")

    @cached_property
    def halves(self) -> tuple[Array, Array, Array]:
        """U', V', W', exact."""
        ring = ring_named("Q")
        outer = (self.scheme.U, self.scheme.V, self.scheme.W)
        return tuple(
            matrix.astype(object).dot(inverse(change, ring))
            for matrix, change in zip(outer, self._changes, strict=True)
        )

    @property
    def _changes(self) -> tuple[Array, Array, Array]:
        return self.phi, self.psi, self.omega

    def steps(self) -> tuple[list[Array], list[Array], list[Array]]:
        """The float32 matrices applied in turn to data, filter and products; an unsplit side has one."""
        sides = []
        for name, half, change in zip(self.bases, self.halves, self._changes, strict=True):
            both = [half] if name == "monomial" else [change, half]
            sides.append([matrix.astype(np.float64).astype(np.float32) for matrix in both])
        data, taps, outputs = sides
        return data, taps, [matrix.T for matrix in reversed(outputs)]


def change_of_basis(scheme: ConvolutionScheme, data: str, filter_: str, output: str) -> SplitConvolution:
    """F(m, r) with polynomials in Legendre, Chebyshev, Hermite or monomial (unsplit) bases on each of the three sides.

    With M the matrix from coefficients of x^j to those of the basis, Psi = M_r, Omega = M_m and Phi = M_(m+r-1)^-T
    (the data side is the transpose of an interpolation): B. Barabasz, Quantized Winograd/Toom-Cook Convolution for
    DNNs: Beyond Canonical Polynomials Base, 2020 (arXiv 2004.11077).

    Raises:
        BadInput: a scheme other than F(m, r) in one dimension, or an unknown basis.
    """
    if scheme.kind != "correlation" or scheme.dimensions != 1:
        raise BadInput(f"{scheme!r} is not F(m, r) in one dimension; winograd_convolution(m, r) makes one")
    m, r = scheme.sizes[0]
    phi = inverse(_to_basis(m + r - 1, data), ring_named("Q")).T.copy()
    return SplitConvolution(scheme, phi, _to_basis(r, filter_), _to_basis(m, output), (data, filter_, output))


def _to_basis(size: int, basis: str) -> Array:
    """[size, size]: from coefficients of x^j to those of the basis's monic polynomials; integers stay integers."""
    ring = ring_named("Q")
    if basis not in BASES:
        raise BadInput(f"unknown polynomial basis {basis!r}; it is one of {', '.join(BASES)}")
    if basis == "monomial":
        return ring.coerce(np.eye(size, dtype=np.int64), "the identity")
    # monic three-term recurrences p_(k+1) = x p_k - c_k p_(k-1)
    polynomials = [ring.coerce(np.eye(1, size, dtype=np.int64), "1")[0]]
    for k in range(size - 1):
        shifted = np.concatenate([polynomials[-1][-1:] * 0, polynomials[-1][:-1]])
        if k:
            shifted = shifted - polynomials[-2] * _recurrence(basis, k)
        polynomials.append(shifted)
    return inverse(np.array(polynomials, dtype=object).T.copy(), ring)


def _recurrence(basis: str, k: int) -> Fraction:
    if basis == "legendre":
        return Fraction(k * k, 4 * k * k - 1)
    if basis == "chebyshev":
        return Fraction(1, 2 if k == 1 else 4)
    return Fraction(k, 2)


def balanced(scheme: ConvolutionScheme) -> ConvolutionScheme:
    """The same products with powers of two moved between U and V so that their rows have about equal norms.

    Floating-point rounding is unchanged, and neither side leaves the range of fp16.
    """
    factors = []
    for u, v in zip(scheme.U.tolist(), scheme.V.tolist(), strict=True):
        ratio = math.sqrt(sum(float(x) ** 2 for x in v) / sum(float(x) ** 2 for x in u))
        factors.append([Fraction(2) ** round(math.log2(ratio) / 2)])
    scale = np.array(factors, dtype=object)
    return ConvolutionScheme(
        scheme.kind, scheme.sizes, scheme.U * scale, scheme.V / scale, scheme.W, "Q"
    ).simplest_ring()


@dataclass(frozen=True)
class Rounding:
    """The result of `measure`: mean and largest |y - y64| of the algorithm, and the mean of the direct sum."""

    precision: str
    mean: float
    largest: float
    direct: float


def measure(
    algorithm: ConvolutionScheme | SplitConvolution,
    precision: str = "fp32",
    dimensions: int = 2,
    tiles: int = 4096,
    seed: int = 0,
) -> Rounding:
    """The error of F(m, r), nested `dimensions` times, on random tiles in a precision, compared with float64.

    fp32 rounds every operation; fp16 stores inputs and both transforms in fp16 and computes in fp32; int8 quantises
    both transforms with one scale per product and transforms in fp32. Overflow in fp16 gives an infinite error.

    Raises:
        BadInput: an unknown precision, dimensions other than 1 or 2, or a scheme other than F(m, r) in one dimension.
    """
    if precision not in PRECISIONS:
        raise BadInput(f"unknown precision {precision!r}; it is one of {', '.join(PRECISIONS)}")
    if dimensions not in (1, 2):
        raise BadInput(f"dimensions = {dimensions!r}, but must be 1 or 2")
    split = algorithm if isinstance(algorithm, SplitConvolution) else change_of_basis(algorithm, *["monomial"] * 3)
    m, r = split.scheme.sizes[0]
    rng = np.random.default_rng(seed)
    d, g = (rng.uniform(-1, 1, (tiles, *[size] * dimensions)).astype(np.float32) for size in (m + r - 1, r))
    if precision == "fp16":
        d, g = _rounded(d, precision), _rounded(g, precision)
    exact = _direct(d.astype(np.float64), g.astype(np.float64))
    data, taps, outputs = split.steps()
    D, G = d, g
    for axis in range(1, dimensions + 1):
        D, G = _along(D, data, axis), _along(G, taps, axis)
    with np.errstate(over="ignore", invalid="ignore"):
        products = _rounded(D, precision) * _rounded(G, precision)
    if not np.isfinite(products).all():
        return Rounding(precision, float("inf"), float("inf"), float("nan"))
    for axis in range(1, dimensions + 1):
        products = _along(products, outputs, axis)
    plain = _direct(_rounded(d, precision), _rounded(g, precision))
    deviation = np.abs(products.astype(np.float64) - exact)
    return Rounding(precision, float(deviation.mean()), float(deviation.max()), float(np.abs(plain - exact).mean()))


def _along(x: Array, matrices: list[Array], axis: int) -> Array:
    """x after each matrix in turn along one axis, in float32."""
    x = np.moveaxis(x, axis, -1)
    for matrix in matrices:
        x = x @ matrix.T
    return np.asarray(np.moveaxis(x, -1, axis))


def _rounded(x: Array, precision: str) -> Array:
    if precision == "fp16":
        return x.astype(np.float16).astype(np.float32)
    if precision == "int8":
        scale = np.abs(x).max(axis=0, keepdims=True) / 127  # one per product, over all tiles
        scale[scale == 0] = 1
        return np.asarray(np.rint(x / scale).astype(np.float32) * scale)
    return x


def _direct(d: Array, g: Array) -> Array:
    axes = tuple(range(1, d.ndim))
    windows = np.lib.stride_tricks.sliding_window_view(d, g.shape[1:], axis=axes)  # [tiles, m.., r..]
    total: NDArray[np.float64] = np.zeros(windows.shape[: d.ndim], dtype=d.dtype)
    for tap in np.ndindex(*g.shape[1:]):
        total = total + windows[(..., *tap)] * g[(slice(None), *tap)].reshape(-1, *[1] * (d.ndim - 1))
    return total

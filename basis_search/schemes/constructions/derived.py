"""Known bilinear algorithms, derived and proved with sympy: W^T ((U a) * (V b)) - T(a, b) expands to zero."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np

from basis_search.errors import BadInput
from basis_search.schemes.algebra.bilinear import BilinearMap
from basis_search.schemes.algebra.convolution import MAX_LENGTH, ConvolutionScheme
from basis_search.schemes.algebra.rings import Array, Gaussian, exact_fraction
from basis_search.schemes.algebra.scheme import BilinearScheme, check_format, matmul_target
from basis_search.schemes.constructions import classics

Point = int | float | str | Fraction

# 0, 1, -1, then reciprocal pairs: the transforms' entries stay small
_POINTS = ("0", "1", "-1", "2", "-2", "1/2", "-1/2", "3", "-3", "1/3", "-1/3", "4", "-4", "1/4", "-1/4", "3/2", "-3/2")


def standard(n: int, m: int, p: int) -> BilinearScheme:
    """The standard algorithm: n m p products A[i,k] B[k,j], each added to C[i,j].

    Raises:
        BadInput: a size outside 1 to 64.
    """
    check_format(n, m, p)
    target = matmul_target(n, m, p)
    eyes = [np.eye(size, dtype=np.int64) for size in target.sizes]
    return BilinearScheme(n, m, p, eyes[0][target.x], eyes[1][target.y], eyes[2][target.z], "ZT")


def strassen() -> BilinearScheme:
    """2x2x2 by 7 products and 18 additions (V. Strassen, Gaussian elimination is not optimal, 1969).

    The matrices equal those of `derive("strassen")`; a test compares them.
    """
    U = [[1, 0, 0, 1], [0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0], [-1, 0, 1, 0], [0, 1, 0, -1]]
    V = [[1, 0, 0, 1], [1, 0, 0, 0], [0, 1, 0, -1], [-1, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]]
    W = [[1, 0, 0, 1], [0, 0, 1, -1], [0, 1, 0, 1], [1, 0, 1, 0], [-1, 1, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0]]
    return BilinearScheme(2, 2, 2, np.array(U), np.array(V), np.array(W), "ZT")


def winograd() -> BilinearScheme:
    """2x2x2 by 7 products and, with shared sums, 15 additions (S. Winograd, 1971); equals `derive("winograd")`."""
    U = [[1, 0, 0, 0], [0, 1, 0, 0], [1, 1, -1, -1], [0, 0, 0, 1], [0, 0, 1, 1], [-1, 0, 1, 1], [1, 0, -1, 0]]
    V = [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, -1, -1, 1], [-1, 1, 0, 0], [1, -1, 0, 1], [0, -1, 0, 1]]
    W = [[1, 1, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, -1, 0], [0, 1, 0, 1], [0, 1, 1, 1], [0, 0, 1, 1]]
    return BilinearScheme(2, 2, 2, np.array(U), np.array(V), np.array(W), "ZT")


def laderman() -> BilinearScheme:
    """3x3x3 by 23 products (J. Laderman, A noncommutative algorithm for multiplying 3 x 3 matrices, 1976)."""
    return derive("laderman")


# ---- matrix multiplication: the products are given, the outputs are solved for -----------------------------------

_DERIVED: dict[str, tuple[int, int, int, Callable[[Any, Any], list[classics.Product]]]] = {
    "strassen": (2, 2, 2, classics.strassen),
    "winograd": (2, 2, 2, classics.winograd),
    "laderman": (3, 3, 3, classics.laderman),
}


@lru_cache(maxsize=8)
def derive(name: str) -> BilinearScheme:
    """ "strassen", "winograd" or "laderman" from their products: W solves sum_q w_q (U a)_q (V b)_q = (A B)_ij.

    Raises:
        BadInput: another name.
    """
    import sympy

    if name not in _DERIVED:
        raise BadInput(f"derive() does not know {name!r}; it knows {', '.join(_DERIVED)}")
    n, m, p, products = _DERIVED[name]
    a = sympy.Matrix(n, m, sympy.symbols(f"a:{n * m}"))
    b = sympy.Matrix(m, p, sympy.symbols(f"b:{m * p}"))
    pairs = products(a, b)
    U = _integers([[left.coeff(x) for x in a] for left, _ in pairs])
    V = _integers([[right.coeff(x) for x in b] for _, right in pairs])
    # one equation per monomial a_x b_y: sum_q U[q, x] V[q, y] w_q = T[x, y, z], for all z at once
    monomials = np.einsum("qx,qy->xyq", U, V).reshape(-1, len(U))
    outputs = matmul_target(n, m, p).block(0, n * m).reshape(len(monomials), -1).astype(np.int64)
    system = sympy.Matrix(np.concatenate([monomials, outputs], axis=1).tolist())
    reduced, pivots = sympy.polys.matrices.DomainMatrix.from_Matrix(system).to_field().rref()
    if pivots != tuple(range(len(U))):
        raise ArithmeticError(f"the products of {name} do not determine its outputs; pivots {pivots}")
    W = _integers(reduced.to_Matrix()[: len(U), len(U) :].tolist())
    return BilinearScheme(n, m, p, U, V, W, "ZT")


def _integers(rows: list[list[Any]]) -> Array:
    return np.array([[int(x) for x in row] for row in rows], dtype=np.int64)


def prove(scheme: BilinearMap) -> bool:
    """Whether W^T ((U a) * (V b)) - T(a, b) expands to the zero polynomial for indeterminate entries of a and b.

    The proof uses sympy's polynomial ring over Q (or GF(p), or Q[i]) and shares no code with `verify()`.
    """
    import sympy
    from sympy.polys.rings import ring as polynomial_ring

    target, p = scheme.target, scheme.ring_of.characteristic
    domain: Any = sympy.GF(p) if p else sympy.QQ_I if scheme.ring_of.complex else sympy.QQ

    def number(value: Any) -> Any:
        if isinstance(value, Gaussian):
            re, im = (sympy.Rational(x.numerator, x.denominator) for x in (value.re, value.im))
            return domain.from_sympy(re + im * sympy.I)
        value = Fraction(value)
        return domain.convert(value.numerator) / domain.convert(value.denominator)

    sizes = target.sizes
    _, *symbols = polynomial_ring(
        ",".join(f"{x}{k}" for x, size in zip("ab", sizes, strict=False) for k in range(size)), domain
    )
    zero = symbols[0] - symbols[0]
    operands = symbols[: sizes[0]], symbols[sizes[0] :]
    remaining = [zero] * sizes[2]
    for q in range(scheme.rank):
        left, right = (
            sum((symbol * number(c) for c, symbol in zip(row.tolist(), operand, strict=True) if c), zero)
            for row, operand in zip((scheme.U[q], scheme.V[q]), operands, strict=True)
        )
        product = left * right
        for z, c in enumerate(scheme.W[q].tolist()):
            if c:
                remaining[z] = remaining[z] + product * number(c)
    for x, y, z in zip(target.x.tolist(), target.y.tolist(), target.z.tolist(), strict=True):
        remaining[z] = remaining[z] - operands[0][x] * operands[1][y]
    return not any(remaining)


# ---- polynomial products and correlations ------------------------------------------------------------------------


def karatsuba() -> ConvolutionScheme:
    """(a0 + a1 x)(b0 + b1 x) by 3 products (A. Karatsuba and Yu. Ofman, 1962): a0 b0, a1 b1, (a0 + a1)(b0 + b1)."""
    U = np.array([[1, 0], [0, 1], [1, 1]])
    W = np.array([[1, -1, 0], [0, -1, 1], [0, 1, 0]])
    return ConvolutionScheme("polynomial", ((2, 2),), U, U, W, "ZT")


def toom_cook(k: int, points: Iterable[Point] | None = None, other: int | None = None) -> ConvolutionScheme:
    """The product of polynomials of k and `other` (k) coefficients by k + other - 1 products.

    Evaluate both at that many points, multiply the values, interpolate (A. L. Toom, 1963; S. A. Cook, 1966).

    Args:
        k, other: numbers of coefficients, 1 to 64.
        points: k + other - 1 distinct rationals, where "inf" means the leading coefficient; or one fewer without
            "inf", which is then added. The default is 0, 1, -1, 2, -2, 1/2, ... and infinity.

    Raises:
        BadInput: a length out of range, a wrong number of points, a repeated point, or a point that is not a number.
    """
    other = k if other is None else other
    for length in (k, other):
        if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= MAX_LENGTH:
            raise BadInput(f"a polynomial of {length!r} coefficients: 1 to {MAX_LENGTH} are allowed")
    chosen = choose_points(k + other - 1, points)
    U, V, full = (_evaluation(chosen, size) for size in (k, other, k + other - 1))
    return ConvolutionScheme("polynomial", ((k, other),), U, V, _inverse_transposed(full), "Q").simplest_ring()


def winograd_convolution(
    m: int, r: int, points: Iterable[Point] | None = None, dimensions: int = 1
) -> ConvolutionScheme:
    """F(m, r): m outputs of an r-tap filter from m + r - 1 inputs by m + r - 1 products per dimension.

    (S. Winograd, Arithmetic complexity of computations, 1980.) It is the transpose of Toom-Cook's product of m by r
    coefficients, y = A^T ((B^T d) * (G g)) with B^T = U, G = V, A = W. Each row of B^T is scaled to integers and G
    takes the fractions, because filters are transformed in advance.

    Args:
        m: number of outputs.
        r: number of filter taps.
        points: m + r - 2 points and infinity, as in `toom_cook`.
        dimensions: 1 to 3; 2 is the nested F(m x m, r x r).

    Raises:
        BadInput: what `toom_cook` raises, or dimensions outside 1 to 3.
    """
    if dimensions not in (1, 2, 3):
        raise BadInput(f"dimensions = {dimensions!r}, but 1, 2 or 3 are allowed")
    one = whole_data_side(toom_cook(m, points, r).transposed())
    result = one
    for _ in range(dimensions - 1):
        result = result.nested(one)
    return result


def whole_data_side(scheme: ConvolutionScheme) -> ConvolutionScheme:
    """The same products with each row of U scaled to coprime integers and the inverse factor in V."""
    scale = []
    for row in scheme.U.tolist():
        numbers = [Fraction(x) for x in row]
        denominators = int(np.lcm.reduce([x.denominator for x in numbers]))
        divisor = int(np.gcd.reduce([int(x * denominators) for x in numbers]))
        scale.append(Fraction(denominators, divisor))
    factors = np.array(scale, dtype=object)[:, None]
    U, V = scheme.U * factors, scheme.V / factors
    return ConvolutionScheme(scheme.kind, scheme.sizes, U, V, scheme.W, "Q").simplest_ring()


def choose_points(count: int, points: Iterable[Point] | None = None) -> tuple[Fraction | None, ...]:
    """`count` distinct interpolation points, where None means infinity.

    Raises:
        BadInput: a wrong number of points, a repeated point, or a point that is not a number.
    """
    if points is None:
        extra = [str(x) for j in range(5, count) for x in (j, -j)]  # beyond the tabulated points
        return (*(Fraction(x) for x in (*_POINTS, *extra)[: count - 1]), None)
    chosen = tuple(None if str(x) in ("inf", "oo", "infinity") else exact_fraction(x) for x in points)
    if len(chosen) == count - 1 and None not in chosen:
        chosen = (*chosen, None)
    if len(chosen) != count:
        raise BadInput(f"{len(chosen)} points were given, but {count} are needed ({count - 1} and infinity)")
    twice = [str(x) for x in set(chosen) if chosen.count(x) > 1]
    if twice:
        raise BadInput(f"the point {'infinity' if twice[0] == 'None' else twice[0]} is given twice; points must differ")
    return chosen


def _evaluation(points: Sequence[Fraction | None], size: int) -> Array:
    """[points, size]: maps coefficients to the polynomial's values, at infinity to its leading coefficient."""
    rows = [[Fraction(int(j == size - 1)) if x is None else x**j for j in range(size)] for x in points]
    return np.array(rows, dtype=object)


def _inverse_transposed(matrix: Array) -> Array:
    import sympy

    rows = [[sympy.Rational(x.numerator, x.denominator) for x in row] for row in matrix.tolist()]
    inverse = sympy.polys.matrices.DomainMatrix.from_Matrix(sympy.Matrix(rows)).to_field().inv().to_Matrix()
    cells = [[Fraction(int(x.p), int(x.q)) for x in inverse.row(i)] for i in range(len(rows))]
    return np.array(cells, dtype=object).T.copy()


def composition(outer: Any, *inner: Any) -> Any:
    """Each algorithm applied inside the one before it: matrix products, polynomial products or filters; ranks multiply.

    Raises:
        BadInput: the schemes compute different kinds of maps.
    """
    from basis_search.schemes.algebra.transforms import tensor_product

    for scheme in inner:
        if isinstance(outer, BilinearScheme) and isinstance(scheme, BilinearScheme):
            outer = tensor_product(outer, scheme)
        elif isinstance(outer, ConvolutionScheme) and isinstance(scheme, ConvolutionScheme):
            outer = outer.composed(scheme) if outer.kind == "polynomial" else outer.nested(scheme)
        else:
            raise BadInput(f"{outer!r} and {scheme!r} do not compose; both must multiply matrices or both convolve")
    return outer

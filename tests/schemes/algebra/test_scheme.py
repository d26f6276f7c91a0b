"""Exact schemes: Brent's equations, rings, canonical form, transforms, and multiplication."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch

import basis_search.schemes as schemes
from basis_search.errors import BadInput
from basis_search.schemes import BilinearScheme
from basis_search.schemes.algebra.brent import _moduli
from basis_search.schemes.algebra.multiply import multiply
from basis_search.schemes.algebra.rings import Gaussian, ring_named
from basis_search.schemes.algebra.transforms import (
    cycle,
    extend,
    merge,
    project,
    sandwich,
    tensor_product,
    to_format,
    transpose,
)

pytestmark = pytest.mark.fast

RINGS = ("ZT", "Z", "Z[1/2]", "Q", "Z[i]", "Z[i,1/2]", "Q[i]")


def changed(s: BilinearScheme, matrix: str, q: int, entry: int, value: object, ring: str = "Z") -> BilinearScheme:
    parts = {letter: getattr(s, letter).astype(object if isinstance(value, Fraction) else np.int64) for letter in "UVW"}
    parts[matrix][q, entry] = value
    return BilinearScheme(s.n, s.m, s.p, **parts, ring=ring)


def brent_by_loops(s: BilinearScheme) -> bool:
    """The equations in Python numbers, by plain loops."""
    p = s.ring_of.characteristic
    for i in range(s.n):
        for k in range(s.m):
            for l in range(s.m):  # noqa: E741
                for j in range(s.p):
                    for a in range(s.n):
                        for b in range(s.p):
                            x, y, z = i * s.m + k, l * s.p + j, a * s.p + b
                            total = sum(s.U[q, x] * s.V[q, y] * s.W[q, z] for q in range(s.rank))
                            needed = int(k == l and a == i and b == j)
                            if (total - needed) % p if p else total != needed:
                                return False
    return True


def test_strassen_and_winograd_verify_in_every_ring() -> None:
    for scheme in (schemes.strassen(), schemes.winograd()):
        for ring in RINGS:
            assert scheme.to_ring(ring).verify()
        for p in (2, 3, 7, 65537, 1048573):
            assert scheme.reduce_mod(p).verify()
        assert scheme.to_ring("R").verify()
        assert scheme.residual() == 0


@pytest.mark.parametrize("matrix", ["U", "V", "W"])
def test_every_single_change_of_strassen_is_detected(matrix: str) -> None:
    s = schemes.strassen()
    for q in range(7):
        for entry in range(4):
            for value in (-1, 0, 1):
                if getattr(s, matrix)[q, entry] == value:
                    continue
                broken = changed(s, matrix, q, entry, value)
                assert not broken.verify()
                assert not brent_by_loops(broken)
                assert broken.residual() > 0
                assert not broken.to_ring("Q").verify()
                assert not broken.to_ring("Z[i]").verify()
                assert not broken.to_ring("R").verify()


def test_verification_agrees_with_loops_modulo_two() -> None:
    s = schemes.strassen().reduce_mod(2)
    assert brent_by_loops(s)
    odd = 0
    for q in range(7):
        for entry in range(4):
            broken = changed(s, "V", q, entry, 1 - s.V[q, entry], "Z2")
            assert broken.verify() == brent_by_loops(broken)
            odd += not broken.verify()
    assert odd == 28


def test_first_violation_names_the_equation_and_its_value() -> None:
    broken = changed(schemes.standard(2, 3, 2), "W", 0, 0, 5)
    sentence = broken.first_violation()
    assert sentence is not None
    assert "A[0,0] B[0,0] in C[0,0]" in sentence
    assert "add up to 5, but 1 is needed" in sentence
    last = changed(schemes.standard(2, 3, 2), "U", 0, 5, 1)
    assert "A[1,2] B[0,0] in C[0,0]" in str(last.first_violation())
    assert "add up to 1, but 0 is needed" in str(last.first_violation())
    assert "add up to 1/3" in str(changed(schemes.standard(1, 1, 1), "U", 0, 0, Fraction(1, 3), "Q").first_violation())


def test_first_violation_is_the_first_one_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("basis_search.schemes.algebra.brent._BLOCK_ENTRIES", 1)  # one row of the tensor at a time
    s = schemes.standard(3, 3, 3)
    assert s.verify()
    broken = changed(changed(s, "U", 26, 8, 2), "U", 13, 4, 2)
    assert "A[1,1]" in str(broken.first_violation())


def test_large_coefficients_are_exact() -> None:
    s = schemes.strassen().to_ring("Q")
    big = 10**30 + 7
    scaled = BilinearScheme(2, 2, 2, s.U * big, s.V / big, s.W, "Q")
    assert len(_moduli(scaled._numerators)) > 1  # decided modulo several primes
    assert scaled.verify()
    off = np.array(scaled.U)
    off[0, 0] += Fraction(1, 10**40)
    assert not BilinearScheme(2, 2, 2, off, scaled.V, scaled.W, "Q").verify()
    imaginary = scaled.to_ring("Q[i]")
    twisted = BilinearScheme(
        2, 2, 2, imaginary.U * Gaussian.of(1j), imaginary.V * Gaussian.of(-1j), imaginary.W, "Q[i]"
    )
    assert twisted.verify()
    assert not BilinearScheme(2, 2, 2, imaginary.U * Gaussian.of(1j), imaginary.V, imaginary.W, "Q[i]").verify()
    integers = schemes.standard(2, 2, 2)
    U, V = np.array(integers.U), np.array(integers.V)
    U[0] *= 1 << 40
    assert not BilinearScheme(2, 2, 2, U, V, integers.W, "Z").verify()


def test_an_error_that_is_a_multiple_of_a_prime_is_detected() -> None:
    s = schemes.standard(1, 1, 1)
    primes = _moduli(changed(s, "U", 0, 0, 1 << 61).to_ring("Q")._numerators)
    assert len(primes) > 1
    for p in primes:
        assert not changed(s, "U", 0, 0, 1 + p * (1 << 36)).verify()


def test_equality_is_up_to_order_and_signs_of_terms() -> None:
    s = schemes.strassen()
    rng = np.random.default_rng(0)
    order = rng.permutation(7)
    U, V, W = (np.array(x)[order] for x in (s.U, s.V, s.W))
    for q in range(7):
        a, b = rng.choice([-1, 1], 2)
        U[q], V[q], W[q] = a * U[q], b * V[q], a * b * W[q]
    same = BilinearScheme(2, 2, 2, U, V, W, "Z")
    assert same.verify()
    assert same == s
    assert hash(same) == hash(s)
    assert same.fingerprint == s.fingerprint
    assert same != schemes.winograd()
    assert s.reduce_mod(2) != s
    assert s.reduce_mod(7) == BilinearScheme(2, 2, 2, U % 7, V % 7, W % 7, "Z7")
    canonical = same.canonical()
    assert (canonical.U == s.canonical().U).all()
    assert canonical.verify()
    assert canonical == s
    assert s.to_ring("Z[i]").canonical().verify()
    assert s.reduce_mod(5).canonical().verify()


def test_schemes_are_immutable() -> None:
    s = schemes.strassen()
    with pytest.raises(ValueError, match="read-only"):
        s.U[0, 0] = 3
    with pytest.raises(AttributeError):
        s.n = 3  # type: ignore[misc]


def test_changing_the_callers_array_does_not_change_the_scheme() -> None:
    U = np.array(schemes.strassen().U)
    s = BilinearScheme(2, 2, 2, U, schemes.strassen().V, schemes.strassen().W, "Z")
    U[0, 0] = 9
    assert s.verify()


SLOW = [pytest.param(ring, marks=pytest.mark.slow) for ring in RINGS if ring == "Q" or "i" in ring]


@pytest.mark.slow
@pytest.mark.parametrize("ring", ["ZT", "Z", "Z[1/2]", *SLOW, "Z2", "Z7", "R"])
def test_transforms_keep_schemes_exact(ring: str) -> None:
    s = tensor_product(schemes.strassen(), schemes.standard(1, 2, 3))
    s = s.reduce_mod(int(ring[1:])) if ring in ("Z2", "Z7") else s.to_ring(ring)
    assert s.shape == (2, 4, 6)
    assert cycle(s).shape == (4, 6, 2)
    assert transpose(s).shape == (6, 4, 2)
    for acted in (cycle(s), transpose(s)):
        assert acted.verify()
        assert acted.ring == s.ring
    assert cycle(cycle(cycle(s))) == s
    assert transpose(transpose(s)) == s
    for shape in ((2, 4, 6), (2, 6, 4), (4, 2, 6), (4, 6, 2), (6, 2, 4), (6, 4, 2)):
        assert to_format(s, *shape).shape == shape
        assert to_format(s, *shape).verify()
    P, Q, R = (np.eye(side, dtype=int) for side in s.shape)
    P[0, 1] = Q[1, 3] = R[4, 2] = 1
    acted = sandwich(s, P, Q, R)
    assert acted.verify()
    assert acted != s
    for axis in "nmp":
        grown = extend(s, axis)
        assert grown.verify()
        assert grown.rank == s.rank + 48 // getattr(s, axis)
        assert project(grown, axis) == s
        assert project(grown, axis, 0).verify()
        assert merge(s, s, axis).verify()
        assert merge(s, s, axis).rank == 2 * s.rank


def test_sandwich_extends_the_ring_only_as_needed() -> None:
    s = schemes.strassen()
    eye = [[1, 0], [0, 1]]
    assert sandwich(s, [[1, 1], [0, 1]], eye, eye).ring == "ZT"
    assert sandwich(s, [[2, 0], [0, 1]], eye, eye).ring == "Z[1/2]"
    assert sandwich(s, [[3, 0], [0, 1]], eye, eye).ring == "Q"
    assert sandwich(s.to_ring("Q"), eye, eye, eye).ring == "Q"
    with pytest.raises(BadInput, match="not in the ring Z"):
        sandwich(s, [[3, 0], [0, 1]], eye, eye, ring="Z")
    with pytest.raises(BadInput, match="Q is singular over ZT"):
        sandwich(s, eye, [[1, 1], [1, 1]], eye)
    with pytest.raises(BadInput, match="singular over Z2"):
        sandwich(s.reduce_mod(2), [[1, 1], [1, 1]], eye, eye)
    with pytest.raises(BadInput, match=r"P has shape \[3, 3\]"):
        sandwich(s, np.eye(3, dtype=int), eye, eye)


def test_sandwich_is_an_action() -> None:
    s = schemes.strassen()
    rng = np.random.default_rng(1)

    def unimodular() -> np.ndarray:
        lower, upper = np.eye(2, dtype=int), np.eye(2, dtype=int)
        lower[1, 0], upper[0, 1] = rng.integers(-3, 4, 2)
        return lower @ upper

    first, second = [unimodular() for _ in range(3)], [unimodular() for _ in range(3)]
    both = [b @ a for a, b in zip(first, second, strict=True)]
    assert sandwich(sandwich(s, *second), *first) == sandwich(s, *both)


def test_merging_and_joining_rings() -> None:
    s = schemes.strassen()
    assert merge(s, schemes.standard(2, 2, 1).to_ring("Q"), "p").ring == "Q"
    assert tensor_product(s.to_ring("Z[1/2]"), s.to_ring("Z[i]")).ring == "Z[i,1/2]"
    with pytest.raises(BadInput, match="share no ring"):
        tensor_product(s, s.reduce_mod(2))
    with pytest.raises(BadInput, match="differ in m"):
        merge(s, schemes.standard(2, 3, 2), "n")
    with pytest.raises(BadInput, match="axis 'q'"):
        merge(s, s, "q")
    with pytest.raises(BadInput, match="that side is already 1"):
        project(schemes.standard(1, 2, 2), "n")
    with pytest.raises(BadInput, match="index 5 is out of range for side n"):
        project(s, "n", 5)
    with pytest.raises(BadInput, match="3x3x3 is not a permutation of 2x2x2"):
        to_format(s, 3, 3, 3)


def test_projection_drops_terms() -> None:
    s = project(extend(schemes.strassen(), "n"), "n", 0)
    assert s.shape == (2, 2, 2)
    assert s.verify()
    assert s.rank <= 10


def test_reduction_modulo_p() -> None:
    half = sandwich(schemes.strassen(), [[2, 0], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [0, 1]])
    assert half.reduce_mod(3).verify()
    with pytest.raises(BadInput, match="denominators divisible by 2"):
        half.reduce_mod(2)
    i = Gaussian.of(1j)
    s = schemes.strassen().to_ring("Z[i]")
    turned = BilinearScheme(2, 2, 2, s.U * i, s.V * -i, s.W, "Z[i]")
    assert turned.verify()
    for p in (2, 5, 13):
        assert turned.reduce_mod(p).verify()
    with pytest.raises(BadInput, match="no square root modulo 7"):
        turned.reduce_mod(7)
    with pytest.raises(BadInput, match="cannot be reduced"):
        s.reduce_mod(2).reduce_mod(3)
    with pytest.raises(BadInput, match=r"lift\(\) searches"):
        schemes.strassen().reduce_mod(2).to_ring("Z")


@pytest.mark.parametrize(
    ("name", "parsed"),
    [("Z2", "Z2"), ("GF(7)", "Z7"), ("Z/3", "Z3"), ("C", "Q[i]"), (" Z ", "Z"), ("Z[i]/2", "Z[i,1/2]")],
)
def test_ring_spellings(name: str, parsed: str) -> None:
    assert ring_named(name).name == parsed


@pytest.mark.parametrize("name", ["Z4", "Z1", "Zp", "", "ZZ", "GF(6)", "Z1048583", "q", "Q[j]"])
def test_unknown_rings_are_refused(name: str) -> None:
    with pytest.raises(BadInput, match=r"ring|prime"):
        BilinearScheme(1, 1, 1, [[1]], [[1]], [[1]], name)


def test_a_near_miss_is_named() -> None:
    with pytest.raises(BadInput, match=r"did you mean 'Z\[1/2\]'"):
        ring_named("Z[1/2")


@pytest.mark.parametrize(
    ("ring", "value"),
    [
        *[("ZT", 2), ("Z2", 2), ("Z2", -1), ("Z7", 7), ("Z", Fraction(1, 2)), ("Z", 0.5), ("Z", 1 << 62), ("Q", 1j)],
        *[("Z[1/2]", Fraction(1, 3)), ("Z[1/2]", "2/3"), ("Z[i]", 0.5), ("Z[i,1/2]", Fraction(1, 3)), ("Q", 1 / 3)],
        *[("Q", "1/0"), ("Q", "x"), ("Q", float("nan")), ("R", float("nan")), ("Q", Fraction(1, 1 << 5000))],
    ],
)
def test_coefficients_outside_the_ring_are_refused(ring: str, value: object) -> None:
    with pytest.raises(BadInput):
        BilinearScheme(1, 1, 1, np.array([[value]], dtype=object) if ring != "R" else [[value]], [[1]], [[1]], ring)


def test_malformed_schemes_are_refused() -> None:
    s = schemes.strassen()
    for n in (0, -1, 65, 2.0, True):
        with pytest.raises(BadInput, match="1 to 64"):
            BilinearScheme(n, 2, 2, s.U, s.V, s.W, "Z")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"U has shape \[7, 4\], but format 2x3x2 with 7 products needs \[7, 6\]"):
        BilinearScheme(2, 3, 2, s.U, s.V, s.W, "Z")
    with pytest.raises(BadInput, match=r"V has shape \[6, 4\]"):
        BilinearScheme(2, 2, 2, s.U, s.V[:6], s.W, "Z")
    with pytest.raises(BadInput, match="0 rows"):
        BilinearScheme(2, 2, 2, s.U[:0], s.V[:0], s.W[:0], "Z")
    with pytest.raises(BadInput, match="a matrix"):
        BilinearScheme(2, 2, 2, [1, 2], s.V, s.W, "Z")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="1 to 64"):
        schemes.standard(0, 2, 2)


@pytest.mark.parametrize("levels", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", [(8, 8, 8), (1, 1, 1), (5, 7, 3), (16, 15, 17)])
def test_multiplication_of_integers_is_exact(levels: int, shape: tuple[int, int, int]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.integers(-9, 10, shape[:2]), rng.integers(-9, 10, shape[1:])
    for scheme in (
        schemes.strassen(),
        schemes.laderman(),
        tensor_product(schemes.winograd(), schemes.standard(2, 1, 3)),
    ):
        assert (scheme.multiply(a, b, levels) == a @ b).all()
        assert (scheme.multiply(torch.tensor(a), torch.tensor(b), levels) == torch.tensor(a @ b)).all()
    s = schemes.strassen().reduce_mod(5)
    assert (s.multiply(a, b, levels) == a @ b % 5).all()


def test_multiplication_keeps_kind_dtype_and_leading_dimensions() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 5, 6)), rng.normal(size=(2, 3, 6, 7))
    s = schemes.strassen()
    np.testing.assert_allclose(s.multiply(a, b, 2), a @ b, rtol=0, atol=1e-13)
    assert s.multiply(a.astype(np.float32), b.astype(np.float32)).dtype == np.float32
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x, y = torch.tensor(a, dtype=dtype), torch.tensor(b, dtype=dtype)
        c = s.multiply(x, y)
        assert c.dtype == dtype
        assert c.shape == (2, 3, 5, 7)
        assert float((c.double() - torch.tensor(a @ b)).abs().max()) < 64 * torch.finfo(dtype).eps
    complex_scheme = s.to_ring("Z[i]")
    np.testing.assert_allclose(complex_scheme.multiply(a, b), a @ b, rtol=0, atol=1e-13)
    assert complex_scheme.multiply(torch.tensor(a), torch.tensor(b)).dtype == torch.complex128


def test_multiplication_of_fractions_is_exact_and_of_blocks_calls_the_product() -> None:
    rng = np.random.default_rng(0)
    a, b = (np.array([[Fraction(int(x), 3) for x in row] for row in rng.integers(-9, 9, (4, 4))]) for _ in range(2))
    s = sandwich(schemes.strassen(), [[3, 0], [0, 1]], [[1, 0], [0, 1]], [[1, 0], [0, 1]])
    assert (s.multiply(a, b, 2) == a.dot(b)).all()
    seen = []

    def product(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        seen.append((x.shape, y.shape))
        return x @ y

    c = multiply(schemes.strassen(), np.ones((4, 4)), np.ones((4, 4)), 1, product)
    assert (c == 4).all()
    assert seen == [((7, 2, 2), (7, 2, 2))]


def test_bad_multiplications_are_refused() -> None:
    s = schemes.strassen()
    with pytest.raises(BadInput, match="do not multiply"):
        s.multiply(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(BadInput, match="0 to 12"):
        s.multiply(np.ones((2, 2)), np.ones((2, 2)), levels=13)
    with pytest.raises(BadInput, match="modulo 2"):
        s.reduce_mod(2).multiply(np.ones((2, 2)), np.ones((2, 2)))
    with pytest.raises(BadInput, match="numpy arrays or torch tensors"):
        s.multiply(np.ones((2, 2)), torch.ones(2, 2))


def test_exponent_and_counts() -> None:
    s = schemes.strassen()
    assert s.exponent == pytest.approx(np.log2(7))
    assert (s.nnz, s.naive_additions) == (36, 18)
    assert repr(s) == "BilinearScheme(2x2x2, rank 7, ring ZT)"


def test_additions_of_the_classics() -> None:
    assert schemes.strassen().additions() == 18
    assert schemes.winograd().additions() == 15

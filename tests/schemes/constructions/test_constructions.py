"""Constructions: each is derived, proved as a polynomial identity, and compared with the definition."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

import basis_search.schemes as schemes
from basis_search.errors import BadInput
from basis_search.schemes import ConvolutionScheme
from basis_search.schemes.algebra.bilinear import BilinearMap
from basis_search.schemes.constructions import rounding
from basis_search.schemes.constructions.derived import (
    choose_points,
    derive,
    prove,
    whole_data_side,
)
from basis_search.schemes.constructions.points import (
    bound,
    candidates,
    neighbours,
    rationals,
    search_points,
)

pytestmark = pytest.mark.fast


def test_stored_matrices_equal_the_derived_ones() -> None:
    for name, stored in (
        ("strassen", schemes.strassen()),
        ("winograd", schemes.winograd()),
        ("laderman", schemes.laderman()),
    ):
        derived = derive(name)
        for letter in "UVW":
            assert (getattr(derived, letter) == getattr(stored, letter)).all()
    with pytest.raises(BadInput, match="does not know 'karatsuba'"):
        derive("karatsuba")


@pytest.mark.parametrize(
    ("made", "rank", "ring"),
    [
        (lambda: schemes.standard(2, 3, 4), 24, "ZT"),
        (lambda: schemes.strassen(), 7, "ZT"),
        (lambda: schemes.winograd(), 7, "ZT"),
        (lambda: schemes.laderman(), 23, "ZT"),
        (lambda: schemes.tensor_product(schemes.strassen(), schemes.winograd()), 49, "ZT"),
        (lambda: schemes.composition(schemes.strassen(), schemes.laderman()), 161, "ZT"),
        (lambda: schemes.strassen().reduce_mod(2), 7, "Z2"),
        (lambda: schemes.strassen().to_ring("Z[i]"), 7, "Z[i]"),
        (lambda: schemes.karatsuba(), 3, "ZT"),
        (lambda: schemes.toom_cook(1), 1, "ZT"),
        (lambda: schemes.toom_cook(2), 3, "ZT"),
        (lambda: schemes.toom_cook(3), 5, "Q"),
        (lambda: schemes.toom_cook(4), 7, "Q"),
        (lambda: schemes.toom_cook(3, [0, 1, -1, "1/2", "inf"]), 5, "Q"),
        (lambda: schemes.toom_cook(3, [5, "7/3", -2, 11, "1/9"]), 5, "Q"),
        (lambda: schemes.toom_cook(3, other=2), 4, "Z[1/2]"),
        (lambda: schemes.winograd_convolution(2, 3), 4, "Z[1/2]"),
        (lambda: schemes.winograd_convolution(4, 3), 6, "Q"),
        (lambda: schemes.winograd_convolution(6, 3, [0, 1, -1, "2/3", "-2/3", 2, -2]), 8, "Q"),
        (lambda: schemes.winograd_convolution(2, 3, dimensions=2), 16, "Z[1/2]"),
        (lambda: schemes.karatsuba().composed(schemes.karatsuba()), 9, "ZT"),
        (lambda: schemes.composition(schemes.karatsuba(), schemes.toom_cook(3)), 15, "Q"),
        (lambda: schemes.composition(schemes.karatsuba(), schemes.karatsuba(), schemes.karatsuba()), 27, "ZT"),
        (lambda: schemes.winograd_convolution(2, 2).nested(schemes.winograd_convolution(3, 2)), 12, "Z[1/2]"),
    ],
)
def test_constructions_are_proved_symbolically_and_by_brent(
    made: Callable[[], BilinearMap], rank: int, ring: str
) -> None:
    scheme = made()
    assert prove(scheme)
    assert scheme.verify()
    assert (scheme.rank, scheme.ring) == (rank, ring)


def test_the_proof_fails_where_the_identity_does() -> None:
    for scheme in (schemes.strassen(), schemes.toom_cook(3), schemes.winograd_convolution(2, 3)):
        for letter in "UVW":
            parts = {x: np.array(getattr(scheme, x), dtype=object) for x in "UVW"}
            parts[letter][1, 0] += 1
            broken = scheme._with_matrices([parts[x] for x in "UVW"], "Q")
            assert not prove(broken)
            assert not broken.verify()
            assert broken.first_violation() is not None


def test_naive_additions_of_the_literature() -> None:
    assert schemes.strassen().naive_additions == 18
    assert schemes.laderman().naive_additions == 98


@pytest.mark.parametrize("k", [2, 3, 5])
def test_toom_cook_multiplies_integers_exactly(k: int) -> None:
    rng = np.random.default_rng(k)
    scheme = schemes.toom_cook(k)
    a, b = (np.array([int(x) for x in rng.integers(-(10**9), 10**9, k)], dtype=object) for _ in range(2))
    product = scheme.apply(a, b)
    expected = [sum(a[i] * b[j - i] for i in range(k) if 0 <= j - i < k) for j in range(2 * k - 1)]
    assert product.tolist() == expected


@pytest.mark.parametrize(("m", "r"), [(1, 1), (1, 3), (2, 3), (4, 3), (3, 5), (2, 1)])
def test_winograd_convolution_is_the_correlation(m: int, r: int) -> None:
    rng = np.random.default_rng(0)
    scheme = schemes.winograd_convolution(m, r)
    assert (scheme.rank, scheme.format) == (m + r - 1, f"F({m},{r})")
    d, g = rng.normal(size=(7, m + r - 1)), rng.normal(size=(7, r))
    expected = np.stack([(d[:, k : k + r] * g).sum(axis=1) for k in range(m)], axis=1)
    np.testing.assert_allclose(scheme.apply(d, g), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(
        scheme.apply(torch.tensor(d), torch.tensor(g)), torch.tensor(expected), rtol=0, atol=1e-12
    )


def test_nested_winograd_is_the_correlation_of_images() -> None:
    rng = np.random.default_rng(0)
    scheme = schemes.winograd_convolution(2, 3, dimensions=2)
    d, g = rng.normal(size=(5, 4, 4)), rng.normal(size=(5, 3, 3))
    got = scheme.apply(d.reshape(5, 16), g.reshape(5, 9)).reshape(5, 2, 2)
    expected = torch.nn.functional.conv2d(torch.tensor(d)[None], torch.tensor(g)[:, None], groups=5)[0].numpy()
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)


def test_the_data_side_has_integers() -> None:
    scheme = schemes.winograd_convolution(6, 3)
    assert all(x.denominator == 1 for x in scheme.U.flat)
    assert whole_data_side(scheme) == scheme


def test_toom_cook_at_0_1_and_infinity_is_karatsuba() -> None:
    assert schemes.toom_cook(2) == schemes.karatsuba()


def test_transposition_is_an_involution() -> None:
    scheme = schemes.toom_cook(4, other=3)
    assert scheme.transposed().verify()
    assert scheme.transposed().transposed() == scheme


def test_default_points_are_distinct_for_any_count() -> None:
    for count in (1, 2, 9, 18, 30):
        points = choose_points(count)
        assert len(set(points)) == len(points) == count
        assert points[-1] is None
    assert schemes.winograd_convolution(16, 5).verify()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: schemes.toom_cook(0), "0 coefficients"),
        (lambda: schemes.toom_cook(65), "65 coefficients"),
        (lambda: schemes.toom_cook(2, [0, 1, 1]), "point 1 is given twice"),
        (lambda: schemes.toom_cook(2, [0, "1/2", "2/4"]), "point 1/2 is given twice"),
        (lambda: schemes.toom_cook(2, ["inf", "inf", 0]), "infinity is given twice"),
        (lambda: schemes.toom_cook(2, [0]), "1 points were given, but 3"),
        (lambda: schemes.toom_cook(2, [0, "x"]), "not a number"),
        (lambda: schemes.toom_cook(2, [0, 0.1]), "not a short binary fraction"),
        (lambda: schemes.winograd_convolution(2, 3, dimensions=4), "dimensions = 4"),
        (lambda: schemes.composition(schemes.strassen(), schemes.karatsuba()), "do not compose"),
        (lambda: schemes.karatsuba().nested(schemes.winograd_convolution(2, 3)), "do not nest"),
        (lambda: schemes.karatsuba().composed(schemes.karatsuba().nested(schemes.karatsuba())), "in one dimension"),
        (lambda: ConvolutionScheme("cyclic", ((2, 2),), [[1]], [[1]], [[1]], "Z"), "unknown kind 'cyclic'"),
        (lambda: ConvolutionScheme("polynomial", ((0, 2),), [[1]], [[1]], [[1]], "Z"), "1 to 64"),
        (lambda: ConvolutionScheme("polynomial", ((2, 2),), [[1]], [[1]], [[1]], "Z"), "needs"),
        (lambda: search_points(1, 1), "0 finite points"),
        (lambda: rounding.measure(schemes.karatsuba()), "is not F"),
        (lambda: rounding.measure(schemes.winograd_convolution(2, 3), "fp8"), "unknown precision 'fp8'"),
        (
            lambda: rounding.change_of_basis(schemes.winograd_convolution(2, 3), "laguerre", "legendre", "legendre"),
            "basis",
        ),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call: object, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call()  # type: ignore[operator]


# ---- points and bases --------------------------------------------------------------------------------------------


def test_measured_error_is_plausible_and_grows_for_a_wrong_scheme() -> None:
    found = rounding.measure(schemes.winograd_convolution(2, 3), "fp32", 1, 2048)
    assert 1e-9 < found.mean < 1e-6
    assert found.largest >= found.mean
    assert 1e-9 < found.direct < found.mean
    assert rounding.measure(schemes.winograd_convolution(2, 3), "fp16", 1, 512).mean > 100 * found.mean
    wrong = np.array(schemes.winograd_convolution(2, 3).W)
    wrong[0, 0] = 2
    broken = schemes.winograd_convolution(2, 3)
    broken = ConvolutionScheme("correlation", broken.sizes, broken.U, broken.V, wrong, "Q")
    assert rounding.measure(broken, "fp32", 1, 512).mean > 1e-2


@pytest.mark.parametrize(
    "names", [("legendre",) * 3, ("chebyshev", "monomial", "legendre"), ("monomial", "hermite", "monomial")]
)
def test_a_change_of_basis_keeps_the_algorithm_exact(names: tuple[str, str, str]) -> None:
    scheme = schemes.winograd_convolution(4, 3)
    split = rounding.change_of_basis(scheme, *names)
    for half, change, whole in zip(
        split.halves, (split.phi, split.psi, split.omega), (scheme.U, scheme.V, scheme.W), strict=True
    ):
        assert (half.dot(change) == whole).all()
    assert rounding.measure(split, "fp32", 2, 512).mean < 1e-5


def test_monic_legendre_polynomials() -> None:
    psi = rounding.change_of_basis(schemes.winograd_convolution(2, 4), "monomial", "legendre", "monomial").psi
    # x^3 = P3 + 3/5 P1 and x^2 = P2 + 1/3 P0, with monic P
    assert psi[:, 3].tolist() == [0, Fraction(3, 5), 0, 1]
    assert psi[:, 2].tolist() == [Fraction(1, 3), 0, 1, 0]


def test_balancing_changes_neither_the_map_nor_the_rounding() -> None:
    scheme = schemes.winograd_convolution(4, 3)
    even = rounding.balanced(scheme)
    assert even.verify()
    assert rounding.measure(even, "fp32", 2, 256).mean == rounding.measure(scheme, "fp32", 2, 256).mean
    lengths = [
        (sum(float(x) ** 2 for x in u), sum(float(x) ** 2 for x in v)) for u, v in zip(even.U, even.V, strict=True)
    ]
    assert all(0.2 < a / b < 5 for a, b in lengths)


def test_candidate_sets_have_distinct_points() -> None:
    assert rationals(2) == [1, Fraction(1, 2), 2]
    for count in (2, 3, 4, 7):
        for points in candidates(count, 3):
            assert len(set(points)) == count
    for points in neighbours((Fraction(0), Fraction(1), Fraction(-1)), 2):
        assert len(set(points)) == 3


def test_the_bound_ranks_sets_as_the_measured_error_does() -> None:
    sets = [
        ("0", "1", "-1", "2", "-2"),
        ("0", "3/2", "-3/2", "2/3", "-2/3"),
        ("0", "1", "-1", "4", "-4"),
        ("0", "1", "2", "3", "4"),
    ]
    fractions = [tuple(Fraction(x) for x in points) for points in sets]
    bounds = [bound(points, 4, 3) for points in fractions]
    errors = [
        rounding.measure(schemes.winograd_convolution(4, 3, points), "fp32", 2, 1024).mean for points in fractions
    ]
    assert np.argsort(bounds).tolist() == np.argsort(errors).tolist() == [1, 0, 2, 3]


@pytest.mark.slow
def test_search_finds_better_points_than_the_default() -> None:
    found = search_points(4, 3, seconds=4, largest=3)
    assert found.scheme.verify()
    assert len(found.points) == 5
    assert found.error.mean < 0.75 * found.default.mean  # 2.4e-7 against 3.9e-7
    assert found.scheme == rounding.balanced(schemes.winograd_convolution(4, 3, found.points))


@pytest.mark.slow
def test_importing_the_schemes_imports_no_sympy() -> None:
    code = (
        "import sys, basis_search.schemes as s; s.strassen().verify(); s.winograd(); s.karatsuba()\n"
        "sys.exit(any(x in sys.modules for x in ('sympy', 'networkx', 'scipy', 'hydra')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_module_has_the_name_of_an_exported_function() -> None:
    """Importing such a module would put it in the place of the function."""
    modules = {path.stem for path in Path(str(schemes.__file__)).parent.iterdir()}
    assert not modules & set(schemes.__all__)


@pytest.mark.slow
def test_the_code_blocks_of_the_documentation_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[3] / "docs" / "schemes.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 11
    exec(compile("\n".join(blocks), "docs/schemes.md", "exec"), {})

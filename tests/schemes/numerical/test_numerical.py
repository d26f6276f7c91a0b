"""Numerical discovery: schemes are exact over the requested ring, and impossible ranks are not found."""

from fractions import Fraction

import numpy as np
import pytest

import basis_search as bs
from basis_search.errors import BadInput
from basis_search.schemes.numerical.discover import (
    SOLVED,
    _exact_scheme,
    _round_to_exact,
    discover_numerically,
    solve,
)
from basis_search.schemes.numerical.least_squares import change_basis, product_tensor, residual
from basis_search.schemes.numerical.normal_form import normal_form

pytestmark = pytest.mark.fast


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "rank", "ring", "seed"),
    [
        ((2, 2, 2), 7, "ZT", 0),
        ((2, 2, 2), 7, "Q", 1),
        pytest.param((2, 2, 3), 11, "Z[1/2]", 0, marks=pytest.mark.slow),
        pytest.param((2, 3, 3), 15, "Q", 2, marks=pytest.mark.slow),
    ],
)
def test_known_ranks_are_reached_exactly(shape, rank, ring, seed):
    tried = []
    found = discover_numerically(*shape, rank, ring, seconds=60, seed=seed, progress=tried.append)
    assert (found.shape, found.rank, found.verify()) == (shape, rank, True)
    held = {Fraction(x) for matrix in (found.U, found.V, found.W) for x in matrix.ravel().tolist()}
    if ring == "ZT":
        assert held <= {-1, 0, 1}
    if ring == "Z[1/2]":
        assert all(x.denominator & (x.denominator - 1) == 0 for x in held)
    assert [a.start for a in tried] == list(range(len(tried)))
    assert [a.exact for a in tried] == [False] * (len(tried) - 1) + [True]


@pytest.mark.slow
def test_no_start_reaches_an_impossible_rank():
    tried = []
    assert discover_numerically(2, 2, 2, 6, seconds=2, progress=tried.append) is None
    assert tried
    assert all(a.residual > SOLVED or a.largest > 1 for a in tried)
    assert not any(a.exact for a in tried)


@pytest.mark.slow
def test_a_scheme_after_a_real_change_of_basis_is_found_again():
    random = np.random.default_rng(3)
    known = bs.schemes.laderman()
    changes = [np.eye(3) + 0.4 * random.standard_normal((3, 3)) for _ in range(3)]
    hidden = change_basis(tuple(m.astype(float) for m in (known.U, known.V, known.W)), 3, 3, 3, *changes)
    T = product_tensor(3, 3, 3)
    assert residual(T, hidden) < SOLVED
    assert residual(T, normal_form(hidden, (3, 3, 3), random)) < SOLVED
    found = _round_to_exact(T, (3, 3, 3), hidden, "Z", random, float("inf"))
    assert (found.rank, found.verify()) == (23, True)


def test_floats_are_read_as_fractions_only_where_the_scheme_is_exact():
    known = bs.schemes.strassen()
    U, V, W = (m.astype(float) for m in (known.U, known.V, known.W))
    assert _exact_scheme((2, 2, 2), (U, V, W), "Z").rank == 7
    assert _exact_scheme((2, 2, 2), (U / 3, V, 3 * W), "Q").rank == 7
    assert _exact_scheme((2, 2, 2), (U / 3, V, 3 * W), "Z[1/2]") is None
    assert _exact_scheme((2, 2, 2), (U / np.pi, V, np.pi * W), "Q") is None
    assert _exact_scheme((2, 2, 2), (U, V, 2 * W), "Q") is None


def test_a_start_stops_at_the_deadline():
    T = product_tensor(3, 3, 3)
    factors = solve(T, 23, np.random.default_rng(0), deadline=0.0)
    assert [f.shape for f in factors] == [(23, 9)] * 3


def test_bad_input_is_refused_with_a_sentence():
    with pytest.raises(BadInput, match="rounds to the rings ZT, Z, Z\\[1/2\\], Q, not to 'Z2'"):
        discover_numerically(2, 2, 2, 7, "Z2")
    with pytest.raises(BadInput, match="rank 9 for 2x2x2: the numerical search takes ranks up to 8"):
        discover_numerically(2, 2, 2, 9)
    with pytest.raises(BadInput, match="131072 equations"):
        discover_numerically(8, 8, 8, 343)
    with pytest.raises(BadInput, match="seconds"):
        discover_numerically(2, 2, 2, 7, seconds=0)

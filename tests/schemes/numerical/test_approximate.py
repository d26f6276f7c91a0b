"""Approximate bases of the matrix product: every stored residual is recomputed, known values are reached."""

import numpy as np
import pytest
from stored_bases import files, leftover

from basis_search.errors import BadInput
from basis_search.schemes import strassen, tensor_product
from basis_search.schemes.numerical import approximation, starts
from basis_search.schemes.numerical.approximation import (
    FOLDER,
    approximate,
    known_ranks,
    load,
    store,
)
from basis_search.schemes.numerical.least_squares import (
    alternate,
    change_basis,
    largest_coefficient,
    objective,
    polish,
    product_tensor,
    residual,
)

pytestmark = pytest.mark.fast

FILES = files(FOLDER, known_ranks)


@pytest.mark.parametrize(("form", "rank"), FILES)
def test_stored_residuals_are_recomputed(form, rank):
    n, m, p = form
    stored = load(n, m, p, rank)
    assert stored.U.shape == (rank, n * m)
    assert stored.V.shape == (rank, m * p)
    assert stored.W.shape == (rank, n * p)
    assert leftover(stored.U, stored.V, stored.W, form) == pytest.approx(stored.residual, rel=1e-9, abs=1e-12)
    assert largest_coefficient((stored.U, stored.V, stored.W)) == pytest.approx(stored.coefficient, rel=1e-9)
    assert stored.coefficient <= 3.5


def test_more_rank_never_has_more_residual():
    for n, m, p in sorted({form for form, _ in FILES}):
        residuals = [load(n, m, p, rank).residual for rank in known_ranks(n, m, p)]
        assert residuals == sorted(residuals, reverse=True)
        assert all(r < 1 - rank / (n * m * p) + 1e-6 for r, rank in zip(residuals, known_ranks(n, m, p), strict=True))


def test_the_residual_is_the_error_on_gaussian_matrices():
    stored = load(4, 4, 4, 24)
    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((2, 20000, 4, 4))
    C = A @ B
    got = ((A.reshape(-1, 16) @ stored.U.T) * (B.reshape(-1, 16) @ stored.V.T)) @ stored.W
    error = ((C.reshape(-1, 16) - got) ** 2).sum() / (C**2).sum()
    assert error == pytest.approx(stored.residual, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "bound"), [(4, 0.451), (5, 0.2530), (6, 0.1255)])
def test_two_by_two_reaches_the_known_residuals_without_stored_bases(rank, bound, monkeypatch):
    monkeypatch.setattr(approximation, "known_ranks", lambda *form: ())
    scheme = approximate(2, 2, 2, rank, seconds=1)
    assert scheme.rank == rank
    assert scheme.ring == "R"
    factors = (scheme.U, scheme.V, scheme.W)
    assert residual(product_tensor(2, 2, 2), factors) < bound
    assert largest_coefficient(factors) < 3


@pytest.mark.parametrize(("form", "rank"), [((4, 4, 4), 24), ((4, 4, 4), 47), ((4, 2, 4), 20), ((3, 3, 3), 17)])
def test_the_result_is_never_worse_than_the_stored_bases(form, rank):
    stored, T = load(*form, rank), product_tensor(*form)
    scheme = approximate(*form, rank, seconds=0.01)
    before, after = (
        objective(T, factors, 1e-3) for factors in ((stored.U, stored.V, stored.W), (scheme.U, scheme.V, scheme.W))
    )
    assert scheme.rank == rank
    assert after <= before * (1 + 1e-9)


def test_an_exact_rank_is_exact():
    assert approximate(2, 2, 2, 7, seconds=1).residual() == 0
    assert approximate(2, 3, 2, 12, seconds=1).residual() == 0


@pytest.mark.slow
def test_a_rectangular_format():
    scheme = approximate(1, 2, 3, 5, seconds=0.5)
    factors = (scheme.U, scheme.V, scheme.W)
    # 1 x 2 x 3 has rank 6, and no five terms do better than five of its six.
    assert 1 / 6 - 1e-9 < residual(product_tensor(1, 2, 3), factors) < 1 / 6 + 1e-3


def test_the_ridge_objective_falls_at_every_step():
    T = product_tensor(2, 2, 3)
    rng = np.random.default_rng(1)
    factors = tuple(rng.standard_normal((7, width)) for width in T.shape)
    last = objective(T, factors, 1e-2)
    for _ in range(5):
        factors = alternate(T, factors, 1e-2, 1)
        now = objective(T, factors, 1e-2)
        assert now <= last + 1e-12
        last = now
    polished = polish(T, factors, 1e-2, 50)
    assert objective(T, polished, 1e-2) < last
    # a local minimum: no single factor can be improved
    rest = objective(T, polished, 1e-2)
    assert objective(T, alternate(T, polished, 1e-2, 1), 1e-2) == pytest.approx(rest, rel=1e-4)


def test_change_of_basis_keeps_a_scheme_exact():
    rng = np.random.default_rng(2)
    scheme = tensor_product(strassen(), strassen())
    P, Q, R = rng.standard_normal((3, 4, 4)) + 2 * np.eye(4)
    factors = tuple(np.asarray(f, dtype=float) for f in (scheme.U, scheme.V, scheme.W))
    moved = change_basis(factors, 4, 4, 4, P, Q, R)
    assert residual(product_tensor(4, 4, 4), moved) < 1e-20
    assert not np.allclose(moved[0], factors[0])


def test_store_and_load_round_trip(tmp_path):
    stored = load(2, 2, 2, 5)
    path = store(2, 2, 2, (stored.U, stored.V, stored.W), stored.ridge, stored.found, folder=tmp_path)
    assert path.read_bytes() == (FOLDER / "2x2x2" / "5.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n is 0"),
        ({"p": 9}, "p is 9"),
        ({"m": 2.5}, "m is 2.5"),
        ({"rank": 0}, "rank is 0"),
        ({"rank": 9}, "from 1 to 8"),
        ({"ridge": 0.0}, "ridge is 0"),
        ({"ridge": float("nan")}, "ridge is nan"),
        ({"seconds": 0}, "seconds is 0"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(BadInput, match=message):
        approximate(**{"n": 2, "m": 2, "p": 2, "rank": 5, **arguments})
    with pytest.raises(BadInput, match="stored ranks are"):
        load(4, 4, 4, 3)


@pytest.mark.slow
@pytest.mark.parametrize("form", [(2, 2, 2), (3, 3, 3), (4, 4, 4), (2, 4, 4), (4, 4, 8)])
def test_starts_have_at_least_the_rank(form):
    rng = np.random.default_rng(0)
    n, m, p = form
    rank = n * m * p * 3 // 8
    for name, draw in starts.by_kind(form, rank, 1e-3, rng).items():
        factors = draw()
        if factors is None:
            assert name in ("discovered", "product"), name
            continue
        assert len(factors[0]) == rank if name in ("random", "polynomial") else len(factors[0]) >= rank, name
        assert [f.shape[1] for f in factors] == [n * m, m * p, n * p], name
        if name in ("exact", "discovered"):
            assert residual(product_tensor(*form), factors) < 1e-16, name


def test_all_polynomial_terms_together_are_the_product():
    rng = np.random.default_rng(0)
    factors = starts.polynomial((2, 3, 2), 2 * 2 * 5, rng)  # every term once
    assert residual(product_tensor(2, 3, 2), factors) < 1e-20


def test_a_product_of_exact_bases_is_exact():
    for form, rank in (((4, 4, 4), 49), ((2, 4, 4), 28)):
        factors = starts.product(form, rank, 1e-3, np.random.default_rng(3))
        assert len(factors[0]) >= rank
        assert residual(product_tensor(*form), factors) < 1e-16

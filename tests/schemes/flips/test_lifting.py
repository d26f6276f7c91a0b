"""Lifting: lifted schemes are exact over Z or Q and reduce to the scheme they come from."""

import numpy as np
import pytest

from basis_search.errors import BadInput
from basis_search.schemes import laderman, lift, standard, strassen, tensor_product, towards_ternary, winograd
from basis_search.schemes.algebra.scheme import BilinearScheme
from basis_search.schemes.algebra.transforms import sandwich
from basis_search.schemes.flips.walk import WalkSettings, walk

pytest.importorskip("basis_kernels.schemes._cpu")


def is_exact(scheme):
    """Integer or rational Brent equations, term by term."""
    n, m, p = scheme.shape
    t = np.zeros((n, m, m, p, n, p), dtype=object)
    for i, k, j in np.ndindex(n, m, p):
        t[i, k, k, j, i, j] = 1
    parts = [np.array(x, dtype=object) for x in (scheme.U, scheme.V, scheme.W)]
    total = sum(np.multiply.outer(np.multiply.outer(u, v), w) for u, v, w in zip(*parts, strict=True))
    return (total == t.reshape(n * m, m * p, n * p)).all()


@pytest.mark.parametrize(
    "scheme", [strassen(), winograd(), laderman(), standard(2, 3, 4), tensor_product(strassen(), strassen())]
)
def test_reductions_of_integer_schemes_lift(scheme):
    lifted = lift(scheme.reduce_mod(2))
    assert lifted is not None
    assert is_exact(lifted)
    assert lifted.reduce_mod(2) == scheme.reduce_mod(2)


def test_most_walks_lift():
    lifted = 0
    for seed in range(12):
        found = walk(standard(3, 3, 3), "Z2", seed, WalkSettings(10_000_000, 5_000, 2), target=23).scheme
        assert found.rank == 23
        over_z = lift(found)
        if over_z is not None:
            lifted += 1
            assert over_z.verify()
            assert over_z.rank == 23
            assert (
                all((np.array(getattr(over_z, x)) % 2 == getattr(found, x)).all() for x in "UVW") or over_z.ring == "Q"
            )
    assert lifted >= 10


def test_lifting_refuses_other_rings_and_inexact_schemes():
    with pytest.raises(BadInput, match="starts from a scheme over Z2, not over ZT"):
        lift(strassen())
    s = strassen().reduce_mod(2)
    wrong = s.U.copy()
    wrong[0, 0] ^= 1
    with pytest.raises(BadInput, match="only an exact scheme can be lifted"):
        lift(BilinearScheme(2, 2, 2, wrong, s.V, s.W, "Z2"))


def unimodular(random, side, factors):
    """A product of elementary matrices."""
    matrix = np.eye(side, dtype=np.int64)
    for _ in range(factors):
        i, j = random.choice(side, 2, replace=False)
        matrix[i] += random.choice([-1, 1]) * matrix[j]
    return matrix


@pytest.mark.parametrize("scheme", [strassen(), laderman(), standard(2, 3, 4)])
def test_changes_of_basis_are_reversed(scheme):
    random = np.random.default_rng(1)
    moved, factors = scheme, 0
    while moved.ring != "Z":
        factors += 1
        moved = sandwich(scheme, *(unimodular(random, side, factors) for side in scheme.shape))
    assert moved.verify()
    found = towards_ternary(moved)
    assert found.ring == "ZT"
    assert is_exact(found)
    assert found.rank == scheme.rank
    assert found.nnz <= moved.nnz
    assert towards_ternary(moved, seed=3) == towards_ternary(moved, seed=3)


def test_a_ternary_scheme_stays_ternary_and_gets_no_denser():
    found = towards_ternary(laderman(), rounds=10)
    assert found.ring == "ZT"
    assert found.nnz <= laderman().nnz
    assert is_exact(found)
    assert towards_ternary(standard(1, 1, 1)) == standard(1, 1, 1)


def test_only_integer_coefficients_are_made_ternary():
    with pytest.raises(BadInput, match="the scheme is over Q"):
        towards_ternary(strassen().to_ring("Q"))
    with pytest.raises(BadInput, match="rounds = -1"):
        towards_ternary(strassen(), rounds=-1)

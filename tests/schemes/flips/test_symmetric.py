"""Walks over orbits: schemes are exact and Z3-symmetric, and a search over them is stored, resumed and refused."""

import numpy as np
import pytest

import basis_search as bs
from basis_search.errors import BadInput
from basis_search.schemes import Search, standard
from basis_search.schemes.flips.symmetric import (
    OrbitPool,
    Orbits,
    is_symmetric,
    start,
    walk_orbits,
)
from basis_search.schemes.flips.walk import WalkSettings, compiled, kernels

pytest.importorskip("basis_kernels.schemes._cpu")


def turned_tensor(orbits):
    """The sum over cubes and all three turns of the orbits, mod 2, by plain products."""
    total = np.einsum("qa,qb,qc->abc", *(orbits.cubes.astype(np.int64),) * 3)
    U, V, W = (x.astype(np.int64) for x in (orbits.U, orbits.V, orbits.W))
    for one, two, three in ((U, V, W), (V, W, U), (W, U, V)):
        total += np.einsum("qa,qb,qc->abc", one, two, three)
    return total % 2


def cyclic_matmul(n):
    """trace(A B C): entries A[i, j] B[j, k] C[k, i]."""
    t = np.zeros((n, n, n, n, n, n), dtype=np.int64)
    for i in range(n):
        for j in range(n):
            for k in range(n):
                t[i, j, j, k, k, i] = 1
    return t.reshape((n * n,) * 3)


@pytest.mark.parametrize("parts", [[[0], [1], [2]], [[0, 2], [1]], [[2, 1, 0]]])
def test_a_start_is_the_tensor_for_any_partition_of_the_diagonal(parts):
    orbits = start(3, parts)
    assert (turned_tensor(orbits) == cyclic_matmul(3)).all()
    assert orbits.scheme().verify()
    assert orbits.rank == orbits.scheme().rank == len(parts) + 3 * len(orbits.U)
    assert is_symmetric(orbits.scheme())


@pytest.mark.parametrize("parts", [[[0]], [[0, 1], [1, 2]], [[0, 1, 2], []]])
def test_parts_that_are_not_a_partition_are_refused(parts):
    with pytest.raises(BadInput, match="not a partition of the 3 places"):
        start(3, parts)


@pytest.mark.parametrize("n", [3, 5, 6, 8])
def test_walks_keep_the_tensor_and_the_symmetry_with_every_kernel(n):
    begin = start(n, [list(range(k, n, 2)) for k in (0, 1)])
    walked = [walk_orbits(begin, 3, WalkSettings(30_000, 500, 3), kernel=name) for name in kernels()]
    for one in walked:
        assert (turned_tensor(one.orbits) == cyclic_matmul(n)).all()
        assert is_symmetric(one.scheme)
        assert one.scheme.rank < begin.rank
        assert one.scheme == walked[0].scheme


def test_orbits_of_equal_terms_become_cubes_and_equal_cubes_cancel():
    one = start(2, [[0], [1]])
    extra = np.array([[1, 1, 0, 1]], dtype=np.int8)
    doubled = Orbits(
        2, np.concatenate([one.cubes, extra]), *(np.concatenate([x, extra]) for x in (one.U, one.V, one.W))
    )
    assert doubled.scheme().verify()
    assert doubled.absorbed().rank == one.rank == doubled.rank - 4
    assert doubled.absorbed().scheme().verify()


def test_asymmetric_schemes_are_recognised():
    assert is_symmetric(standard(3, 3, 3).reduce_mod(2))
    assert not is_symmetric(bs.schemes.laderman().reduce_mod(2))
    assert not is_symmetric(standard(2, 3, 3).reduce_mod(2))
    assert not is_symmetric(standard(2, 2, 2))


@pytest.mark.parametrize(("n", "rank"), [(2, 7), (3, 23)])
def test_symmetric_searches_reach_known_ranks(n, rank):
    found = bs.schemes.discover(n, n, n, rank=rank, seconds=60, symmetry="Z3", seed=5)
    assert (found.rank, found.verify(), is_symmetric(found)) == (rank, True, True)


def test_symmetric_searches_are_reproducible_and_resume(tmp_path):
    settings = WalkSettings(300_000, 5_000, 2)

    def run(folder):
        search = Search(4, 4, 4, seed=2, symmetry="Z3", settings=settings, directory=folder)
        return search, search.run(rank=55, seconds=60)

    (first, found), (_, again) = run(tmp_path / "a"), run(tmp_path / "b")
    assert found == again
    assert found.rank <= 55
    resumed = Search(4, 4, 4, seed=2, symmetry="Z3", settings=settings, directory=tmp_path / "a")
    resumed.resume()
    assert {c: [o.rank for o in held] for c, held in resumed.orbits.held.items()} == {
        c: [o.rank for o in held] for c, held in first.orbits.held.items()
    }
    stored = next(path for path in (tmp_path / "a").iterdir() if path.name.startswith("orbits-of-"))
    stored.write_bytes(stored.read_bytes()[:100])
    with pytest.raises(BadInput, match="is not a stored pool of orbits"):
        OrbitPool.load(4, stored)


def test_symmetries_that_do_not_fit_are_refused():
    with pytest.raises(BadInput, match="symmetry Z3, which needs square matrices"):
        Search(3, 3, 4, symmetry="Z3")
    with pytest.raises(BadInput, match="over ZT cannot be searched with symmetry Z3"):
        Search(3, 3, 3, "ZT", symmetry="Z3")
    with pytest.raises(BadInput, match="'Z5' is unknown; choose one of auto, Z3, none"):
        Search(3, 3, 3, symmetry="Z5")
    with pytest.raises(BadInput, match="beyond the symmetric walk"):
        walk_orbits(start(9, [list(range(9))]), 0, WalkSettings())
    assert compiled().MAX_ORBIT_BITS == 64

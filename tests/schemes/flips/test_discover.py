"""Flip-graph search: every scheme is exact, equal seeds find equal schemes, interrupted searches lose nothing."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import basis_search as bs
from basis_search.errors import BadInput
from basis_search.schemes import Search, catalogue, standard
from basis_search.schemes.flips.format_graph import starts_for
from basis_search.schemes.flips.walk import (
    WalkSettings,
    compiled,
    kernels,
    walk,
)

pytest.importorskip("basis_kernels.schemes._cpu")


def tensor(scheme):
    """sum_q u_q x v_q x w_q by three nested products, independent of Brent's equations in the library."""
    return np.einsum("qa,qb,qc->abc", *(m.astype(np.int64) for m in (scheme.U, scheme.V, scheme.W)))


def matmul(n, m, p):
    t = np.zeros((n, m, m, p, n, p), dtype=np.int64)
    for i in range(n):
        for k in range(m):
            for j in range(p):
                t[i, k, k, j, i, j] = 1
    return t.reshape(n * m, m * p, n * p)


@pytest.mark.parametrize(
    ("shape", "bits"), [((2, 3, 4), 16), ((3, 5, 5), 32), ((5, 5, 7), 64), ((1, 9, 9), 128), ((4, 4, 17), 128)]
)
@pytest.mark.parametrize("ring", ["Z2", "ZT"])
def test_walk_keeps_the_tensor(shape, bits, ring):
    if ring == "ZT" and bits == 128:
        pytest.skip("ternary factors take two bits an entry")
    start = standard(*shape)
    found = walk(start, ring, 1, WalkSettings(flips=30_000, plus_after=300, margin=3)).scheme
    deviation = tensor(found) - matmul(*shape)
    assert not (deviation % 2 if ring == "Z2" else deviation).any()
    if ring == "ZT":
        assert set(np.unique(found.U)) <= {-1, 0, 1}
    before = {row.tobytes() for row in np.hstack([start.U, start.V, start.W]).astype(np.int8)}
    after = {row.tobytes() for row in np.hstack([found.U, found.V, found.W]).astype(np.int8)}
    assert before != after  # it did walk


@pytest.mark.parametrize("ring", ["Z2", "ZT"])
@pytest.mark.parametrize("shape", [(3, 3, 3), (4, 4, 4), (3, 5, 5), (5, 7, 5), (4, 4, 9)])
def test_kernels_agree(shape, ring):
    walked = [
        walk(standard(*shape), ring, 5, WalkSettings(flips=20_000, plus_after=500, margin=2), kernel=name)
        for name in kernels()
    ]
    for other in walked[1:]:
        assert other.flips == walked[0].flips
        for letter in "UVW":
            assert np.array_equal(getattr(other.scheme, letter), getattr(walked[0].scheme, letter))


def test_kernels_agree_on_128_bits():
    walked = [walk(standard(2, 9, 9), "Z2", 5, WalkSettings(5_000, 100, 2), kernel=name).scheme for name in kernels()]
    assert all(np.array_equal(w.V, walked[0].V) for w in walked)
    assert walked[0].verify()


def test_known_ranks_from_the_standard_algorithm():
    for shape, rank in (((2, 2, 2), 7), ((2, 2, 3), 11), ((2, 3, 3), 15), ((3, 3, 3), 23)):
        for ring in ("Z2", "Z", "ZT"):
            found = bs.schemes.discover(*shape, ring=ring, rank=rank, seconds=30, seed=3)
            assert (found.rank, found.ring in (ring, "ZT"), found.verify()) == (rank, True, True)


def test_a_format_with_a_long_side_grows_from_smaller_ones():
    found = bs.schemes.discover(2, 2, 5, rank=18, seconds=20)
    assert (found.shape, found.rank, found.verify()) == ((2, 2, 5), 18, True)


@pytest.mark.parametrize("workers", [1, 3])
def test_seeds_are_reproducible(workers):
    def run(seed):
        search = Search(3, 3, 3, seed=seed, workers=workers, settings=WalkSettings(200_000, 3_000, 2))
        return search.run(rank=23, seconds=60)

    first, again, other = run(7), run(7), run(8)
    assert all(np.array_equal(getattr(first, x), getattr(again, x)) for x in "UVW")
    assert first != other


def test_a_search_resumes_from_the_state_on_disk(tmp_path):
    settings = WalkSettings(100_000, 3_000, 2)
    search = Search(3, 3, 4, seed=1, directory=tmp_path, settings=settings)
    reached = search.run(rank=33, seconds=60)
    again = Search(3, 3, 4, seed=1, directory=tmp_path, settings=settings)
    assert again.best.rank == 36
    again.resume()
    assert again.best.rank == reached.rank
    assert (again.jobs, again.flips) == (search.jobs, search.flips)
    assert again.run(rank=reached.rank - 1, seconds=60).rank < reached.rank
    with pytest.raises(BadInput, match="belongs to seed 1, not 2"):
        Search(3, 3, 4, seed=2, directory=tmp_path).resume()


def test_every_best_scheme_is_on_disk_when_it_is_reported(tmp_path):
    seen = []

    def progress(report):
        if report.found is not None:
            files = catalogue(tmp_path)
            assert files.best(3, 3, 3).rank == report.rank == report.found.rank
            seen.append(report.rank)

    bs.schemes.discover(3, 3, 3, rank=23, seconds=60, directory=tmp_path, progress=progress)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == 23
    stored = catalogue(tmp_path)
    assert stored.provenance("3x3x3_r23_Z2")["seed"] == 0


def test_control_c_returns_and_stores_the_best_scheme(tmp_path):
    # A shell that starts the tests in the background makes them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        begin = time.monotonic()
        found = bs.schemes.discover(4, 4, 4, seconds=100, directory=tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - begin < 60
    assert found.rank < 64
    assert found.verify()
    assert catalogue(tmp_path).best(4, 4, 4).rank == found.rank
    assert (tmp_path / "search-4x4x4-Z2.npz").exists()


def test_an_unwritable_directory_loses_no_scheme(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    with pytest.warns(UserWarning, match="kept in memory"):
        found = bs.schemes.discover(2, 2, 2, rank=7, seconds=20, directory=Path(blocked))
    assert found.rank == 7


def test_a_damaged_state_is_refused(tmp_path):
    search = Search(2, 2, 2, directory=tmp_path)
    search.run(rank=7, seconds=20)
    path = tmp_path / "search-2x2x2-Z2.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(BadInput, match="is not a stored search"):
        Search(2, 2, 2, directory=tmp_path).resume()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"n": 0}, "n = 0, but each side"),
        ({"n": 65}, "n = 65, but each side"),
        ({"ring": "Z3"}, "ring 'Z3' cannot be searched"),
        ({"rank": 0}, "rank = 0"),
        ({"seconds": 0}, "seconds = 0"),
        ({"seconds": float("nan")}, "seconds = nan"),
        ({"workers": 0}, "workers = 0"),
        ({"seed": -1}, "seed = -1"),
        ({"n": 12, "m": 12, "p": 1}, "packs at most 128"),
        ({"n": 9, "m": 9, "p": 9}, "rank 729 is beyond"),
        ({"starts": [standard(2, 2, 3)]}, "a start of format 2x2x3"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(arguments, sentence):
    with pytest.raises(BadInput, match=sentence):
        bs.schemes.discover(**({"n": 2, "m": 2, "p": 2, "seconds": 1.0} | arguments))


def test_walk_refuses_unknown_kernels():
    with pytest.raises(BadInput, match="no walk kernel 'cpu-none'"):
        walk(standard(2, 2, 2), "Z2", 0, kernel="cpu-none")
    assert compiled().MAX_RANK == 512


def test_a_table_starts_formats_from_one_another_and_resumes(tmp_path):
    formats = [(2, 2, 2), (2, 2, 3), (2, 3, 3)]
    first = bs.schemes.discover_table(formats, seconds=60, directory=tmp_path)
    assert {f: (s.rank, s.verify()) for f, s in first.items()} == {
        (2, 2, 2): (7, True),
        (2, 2, 3): (11, True),
        (2, 3, 3): (15, True),
    }
    begin = time.monotonic()
    again = bs.schemes.discover_table(formats, seconds=60, directory=tmp_path)
    assert {f: s.rank for f, s in again.items()} == {f: s.rank for f, s in first.items()}
    assert time.monotonic() - begin < 30
    assert set(catalogue(tmp_path)) >= {"2x2x2_r7_Z2", "2x2x3_r11_Z2", "2x3x3_r15_Z2"}


def test_catalogue_schemes_are_exact_by_independent_code():
    held = catalogue()
    found = [name for name in held if name.endswith(("_Z2", "_Z", "_ZT"))]
    assert len(found) >= 20
    for name in found:
        scheme = held[name]
        deviation = tensor(scheme) - matmul(*scheme.shape)
        assert not (deviation % 2 if scheme.ring == "Z2" else deviation).any(), name


def test_a_table_logs_each_improvement_with_its_time(tmp_path):
    rows = []
    table = bs.schemes.Table([(2, 2, 2), (2, 2, 3)], "Z", directory=tmp_path)
    found = table.run(30, rows.append)
    assert {f: s.rank for f, s in found.items()} == {(2, 2, 2): 7, (2, 2, 3): 11}
    lines = [json.loads(line) for line in (tmp_path / "table.jsonl").read_text().splitlines()]
    assert [line["sum"] for line in lines] == sorted((line["sum"] for line in lines), reverse=True)
    assert lines[-1]["sum"] == table.total == rows[-1].total == 18
    clocks = [line["clock seconds"] for line in lines]
    assert clocks == sorted(clocks)
    assert {line["format"] for line in lines} == {"2x2x2", "2x2x3"}
    provenance = catalogue(tmp_path).provenance("2x2x2_r7_ZT")
    assert provenance["clock seconds"] >= 0


def test_a_table_that_cannot_write_its_log_continues(tmp_path):
    (tmp_path / "table.jsonl").mkdir()  # as unwritable as a full disk
    with pytest.warns(UserWarning, match=r"table.jsonl could not be written"):
        found = bs.schemes.discover_table([(2, 2, 2)], "Z2", seconds=30, directory=tmp_path)
    assert found[(2, 2, 2)].rank == 7


def test_projections_start_from_changed_bases():
    random = np.random.default_rng(0)
    known = {(2, 2, 3): [standard(2, 2, 3).reduce_mod(2)]}
    starts = [s for _ in range(6) for s in starts_for((2, 2, 2), known, random)]
    assert all(s.verify() and s.shape == (2, 2, 2) for s in starts)
    assert len({s.fingerprint for s in starts}) > 3
